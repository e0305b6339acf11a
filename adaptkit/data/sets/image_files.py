"""Decode image files to uint8 tensors, check them in parallel, and store which files are readable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image
from torch import Tensor

from adaptkit.data.pixels import decoded
from adaptkit.data.sets import read_picture as decoder
from adaptkit.data.sets.read_picture import UnreadableError
from adaptkit.errors import BadInput
from adaptkit.system.folders import cache_folder, warn_of_damage
from adaptkit.system.streams import printable_line


def read_picture(source: Path | Image.Image, size: int) -> Tensor:
    """Return an image as uint8 `[3, size, size]`; raise BadInput("PATH: reason") if it cannot be read."""
    if not isinstance(source, Path | Image.Image):
        raise BadInput(f"the picture: must be a path or a PIL image, not {type(source).__name__}")
    try:
        return torch.from_numpy(decoder.read_picture(source, size))
    except UnreadableError as error:
        title = printable_line(str(source)) if isinstance(source, Path) else "the picture"
        raise BadInput(f"{title}: {error}") from None


def fault_of(path: Path, size: int) -> str:
    """Return the reason why a file cannot be read as an image of this size; an empty string if it can."""
    try:
        decoder.read_picture(path, size)
    except UnreadableError as error:
        return str(error)
    return ""


#: maximum numbers of folders whose readable files are stored, and of files in such a folder
KEPT_FOLDERS = 100
KEPT_FILES = 1_000_000
#: number of bytes in which a decoding process returns the reason for a bad file
FAULT_BYTES = 400
#: number of files that are checked in one part
PART = 4096


def faults(root: Path, names: Sequence[str], size: int) -> dict[str, str]:
    """Return the reason for each file that cannot be read as an image, by name.

    Files that were readable before and have the same size and modification time are not read again.
    """
    record = _record(root)
    readable = _remembered(record)
    stamps = {name: _stamp(root / name) for name in names}
    unknown = tuple(name for name in names if stamps[name] is None or readable.get(name) != stamps[name])
    if not unknown:
        return {}
    checks = _Checks(str(root), unknown, size)
    parts = decoded(checks, torch.arange(len(unknown)).split(PART))
    texts = (bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for part in parts for row in part.flatten(1))
    bad = {name: text for name, text in zip(unknown, texts, strict=True) if text}
    # Bad files are not stored, because the reason for the failure may be temporary.
    _remember(record, {name: stamp for name, stamp in stamps.items() if stamp is not None and name not in bad})
    return bad


@dataclass(frozen=True)
class _Checks:
    """Check results as stored images, so that the decoding processes can compute them."""

    root: str
    names: tuple[str, ...]
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.names), 1, 1, FAULT_BYTES

    def __getitem__(self, index: int) -> Tensor:
        text = fault_of(Path(self.root, self.names[index]), self.size).encode(errors="replace")[:FAULT_BYTES]
        return torch.tensor(list(text.ljust(FAULT_BYTES, b"\0")), dtype=torch.uint8).view(1, 1, -1)


def _stamp(path: Path) -> list[int] | None:
    """Return the size and the modification time of a file; None if it does not exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _record(root: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]
    return cache_folder() / "pictures" / f"{digest}.json"


def _circumstances() -> list[Any]:
    """Return the versions that can change the result of a check; the first is the version of the decoder."""
    return [2, PIL.__version__]


def _remembered(record: Path) -> Mapping[str, Any]:
    """Return the stamps of the files that were readable; empty if the record cannot be read."""
    try:
        content = read_record(record)
    except OSError:
        return {}
    if content is None:
        warn_of_damage(record)
        return {}
    return content["sound"] if content["circumstances"] == _circumstances() else {}


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the content of a record of checked files; None if it was changed. Raises OSError if it does not exist."""
    content = path.read_bytes()
    try:
        record = json.loads(content)
        signed = {key: record[key] for key in ("circumstances", "sound")}
        # The bytes must be exactly the bytes that were written.
        return record if isinstance(record["sound"], dict) and content == _written(signed) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _written(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a record: its checksum, then its content."""
    text = json.dumps(content, separators=(",", ":"))
    return f'{{"sha256":"{hashlib.sha256(text.encode()).hexdigest()}",{text[1:]}'.encode("ascii")


def _remember(record: Path, readable: Mapping[str, Sequence[int]]) -> None:
    """Write the stamps atomically; delete the oldest records above the limit."""
    if len(readable) > KEPT_FILES:
        return
    content = _written({"circumstances": _circumstances(), "sound": readable})
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=".pictures-", dir=record.parent)
        try:
            with open(handle, "wb") as file:
                file.write(content)
            os.replace(scratch, record)
        finally:
            Path(scratch).unlink(missing_ok=True)
        records = sorted(record.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in records[KEPT_FOLDERS:]:
            old.unlink(missing_ok=True)
