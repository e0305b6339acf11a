"""Read and write complete files safely: with limits on size and time, and without partial results."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the sha256 of the content of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, by renaming a temporary file."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a temporary file that replaces `path` at the end of the block; after an error, it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


#: maximum size of a text file in bytes; a split of a million images has 50 MB
MOST_BYTES = 1 << 28


def read_file(path: Path, most: int | None = MOST_BYTES, wait: float = 0.0) -> bytes:
    """Return the content of a regular file, or of a pipe if `wait` (maximum time in seconds) is given.

    Raises OSError for any other kind of file, and for more than `most` bytes (None: no limit).
    """
    # Without O_NONBLOCK, opening a pipe would block until another process opens it for writing.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb", buffering=0) as stream:
        kind = os.fstat(handle).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        is_pipe = stat.S_ISFIFO(kind)
        if not (stat.S_ISREG(kind) or (is_pipe and wait)):
            raise OSError(errno.EINVAL, "not a regular file")
        until = time.monotonic() + wait
        content = bytearray()
        while True:
            if is_pipe and not select.select([handle], [], [], max(0.0, until - time.monotonic()))[0]:
                raise OSError(errno.ETIMEDOUT, f"no data from the pipe within {wait:.0f} s")
            part = stream.read(1 << 20)
            if not part:
                return bytes(content)
            content += part
            if most is not None and len(content) > most:
                raise OSError(errno.EFBIG, f"larger than {most:,} bytes")


def expanded(path: str | Path) -> Path:
    """Expand `~` in a path; a path with an unknown user remains unchanged."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
