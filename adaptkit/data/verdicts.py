"""Check all pictures of a folder by decoding them, and remember the sound ones, so that the next time is quick."""

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

from adaptkit.cache import cache_folder, warn_of_damage
from adaptkit.data.pictures import fault_of
from adaptkit.data.stored import decoded

#: folders whose sound files are remembered, and files of one folder
KEPT_FOLDERS = 100
KEPT_FILES = 1_000_000
#: a fault comes from the process that decodes as this many bytes
FAULT_BYTES = 400
#: pictures that are checked before their faults are collected
PART = 4096


def faults(root: Path, names: Sequence[str], size: int) -> dict[str, str]:
    """Return what is wrong with files below the folder that cannot be read as pictures, by their names."""
    record = _record(root)
    sound = _remembered(record)
    stamps = {name: _stamp(root / name) for name in names}
    unknown = tuple(name for name in names if stamps[name] is None or sound.get(name) != stamps[name])
    if not unknown:
        return {}
    checks = _Checks(str(root), unknown, size)
    parts = decoded(checks, torch.arange(len(unknown)).split(PART))
    texts = (bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for part in parts for row in part.flatten(1))
    found = {name: text for name, text in zip(unknown, texts, strict=True) if text}
    # Not the others: that a file could not be read may have had reasons that have gone since.
    _remember(record, {name: stamp for name, stamp in stamps.items() if stamp is not None and name not in found})
    return found


@dataclass(frozen=True)
class _Checks:
    """Faults in the guise of stored images: so that the processes that decode images find them."""

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
    """Return the size and the time of a file, by which it is known again."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _record(root: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]
    return cache_folder() / "pictures" / f"{digest}.json"


def _circumstances() -> list[Any]:
    """Return what a verdict depends on beside the file."""
    return [1, PIL.__version__, Image.MAX_IMAGE_PIXELS]


def _remembered(record: Path) -> Mapping[str, Any]:
    """Return the stamps of the files that were sound; none if they cannot be read."""
    try:
        content = read_record(record)
    except OSError:
        return {}
    if content is None:
        warn_of_damage(record)
        return {}
    return content["sound"] if content["circumstances"] == _circumstances() else {}


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what a record of pictures holds, None if that is not what was written; raise OSError without one."""
    content = path.read_bytes()
    try:
        record = json.loads(content)
        said = {key: record[key] for key in ("circumstances", "sound")}
        # Byte by byte: what was written, and nothing else.
        return record if isinstance(record["sound"], dict) and content == _written(said) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _written(said: Mapping[str, Any]) -> bytes:
    """Return the bytes of a record: what it says, with its checksum before it."""
    text = json.dumps(said, separators=(",", ":"))
    return f'{{"sha256":"{hashlib.sha256(text.encode()).hexdigest()}",{text[1:]}'.encode("ascii")


def _remember(record: Path, sound: Mapping[str, Sequence[int]]) -> None:
    """Write the stamps, wholly or not at all; forget the folders that were not checked for longest."""
    if len(sound) > KEPT_FILES:
        return
    content = _written({"circumstances": _circumstances(), "sound": sound})
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
