"""Read files whole that others made: never a device, a pipe that nobody writes to, or more than fits."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import stat
import tempfile
import time
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary neighbour, then by renaming."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


#: bytes of a file that people write, or that says what lies in others; a split of a million images has 50 MB
MOST_BYTES = 1 << 28


def read_file(path: Path, most: int | None = MOST_BYTES, wait: float = 0.0) -> bytes:
    """Return the bytes of a regular file or, if it may take so many seconds until they come, of a pipe.

    Raises OSError, with a reason in words, for anything else, and for more bytes than `most` (None: no bound).
    """
    # Without O_NONBLOCK, a pipe would not even open before somebody writes to it.
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
                raise OSError(errno.ETIMEDOUT, f"a pipe that nobody wrote to within {wait:.0f} s")
            part = stream.read(1 << 20)
            if not part:
                return bytes(content)
            content += part
            if most is not None and len(content) > most:
                raise OSError(errno.EFBIG, f"larger than {most:,} bytes")


def expanded(path: str | Path) -> Path:
    """Return a path with `~` as the home folder; one of a user that there is not stays as it is, a path of nothing."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
