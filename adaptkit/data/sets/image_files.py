"""Decode image files to uint8 tensors, check them in parallel, and store which files are readable."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image
from torch import Tensor

from adaptkit.data.pixels import decoded
from adaptkit.data.readers.files import RawFiles
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
    check = functools.partial(_check_picture, size=size)
    bad, _ = _verified(root, names, check, circumstances=[2, PIL.__version__])
    return bad


def raw_faults(root: Path, names: Sequence[str], raw: RawFiles, channels: int) -> tuple[dict[str, str], dict[str, int]]:
    """Return the reason for each file whose raw values cannot be used, and the number of missing values of the others.

    `channels` is the number of bands that each file must have.
    """
    check = functools.partial(_check_raw, raw=raw, channels=channels)
    return _verified(root, names, check, circumstances=[1, PIL.__version__, raw.key, channels], is_raw=True)


def _check_picture(path: Path, *, size: int) -> tuple[int, str]:
    return 0, fault_of(path, size)


def _check_raw(path: Path, *, raw: RawFiles, channels: int) -> tuple[int, str]:
    try:
        values, missing = raw.read(path)
    except UnreadableError as error:
        return 0, str(error)
    count = len(values)
    return missing, "" if count == channels else f"{_bands(count)}, not {channels} as the first image"


def _bands(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"


@dataclass(frozen=True)
class _Checks:
    """Check results as stored images, so that the decoding processes can compute them.

    `check` returns the number of missing values of a file, and the reason why it cannot be read; "" if it can.
    """

    root: Path
    names: tuple[str, ...]
    check: Callable[[Path], tuple[int, str]]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.names), 1, 1, FAULT_BYTES

    def __getitem__(self, index: int) -> Tensor:
        missing, fault = self.check(Path(self.root, self.names[index]))
        text = f"{missing} {fault}".encode(errors="replace")[:FAULT_BYTES]
        return torch.tensor(list(text.ljust(FAULT_BYTES, b"\0")), dtype=torch.uint8).view(1, 1, -1)


def _verified(
    root: Path,
    names: Sequence[str],
    check: Callable[[Path], tuple[int, str]],
    *,
    circumstances: Sequence[Any],
    is_raw: bool = False,
) -> tuple[dict[str, str], dict[str, int]]:
    """Check files, and return the reasons for bad ones, and the numbers of missing values of the others.

    Good files are remembered by size and modification time, in one record for pictures and one for raw values.
    `circumstances` can change the result of a check; the first is the version of the decoder.
    """
    record = _record(root, ":raw" if is_raw else "")
    known = _remembered(record, circumstances)
    stamps = {name: _stamp(root / name) for name in names}
    missing = {
        name: known[name][2] if is_raw else 0
        for name, stamp in stamps.items()
        if stamp is not None and name in known and known[name][:2] == stamp
    }
    unknown = tuple(name for name in names if name not in missing)
    if not unknown:
        return {}, missing
    parts = decoded(_Checks(root, unknown, check), torch.arange(len(unknown)).split(PART))
    texts = (bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for part in parts for row in part.flatten(1))
    bad = {}
    for name, text in zip(unknown, texts, strict=True):
        count, _, fault = text.partition(" ")
        if fault:
            bad[name] = fault
        else:
            missing[name] = int(count)
    # Bad files are not stored, because the reason for the failure may be temporary.
    readable = {
        name: [*stamp, missing[name]] if is_raw else stamp
        for name, stamp in stamps.items()
        if stamp is not None and name not in bad
    }
    _remember(record, readable, circumstances)
    return bad, missing


def _stamp(path: Path) -> list[int] | None:
    """Return the size and the modification time of a file; None if it does not exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _record(root: Path, kind: str) -> Path:
    digest = hashlib.sha256(os.fsencode(f"{os.path.abspath(root)}{kind}")).hexdigest()[:32]
    return cache_folder() / "pictures" / f"{digest}.json"


def _remembered(record: Path, circumstances: Sequence[Any]) -> Mapping[str, Any]:
    """Return the stamps of the files that were readable; empty if the record cannot be read."""
    try:
        content = read_record(record)
    except OSError:
        return {}
    if content is None:
        warn_of_damage(record)
        return {}
    return content["sound"] if content["circumstances"] == circumstances else {}


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


def _remember(record: Path, readable: Mapping[str, Sequence[int]], circumstances: Sequence[Any]) -> None:
    """Write the stamps atomically; delete the oldest records above the limit."""
    if len(readable) > KEPT_FILES:
        return
    content = _written({"circumstances": circumstances, "sound": readable})
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
