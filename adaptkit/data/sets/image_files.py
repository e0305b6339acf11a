"""Decode image files to uint8 tensors, check them in parallel, and store which files are readable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import PIL
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from adaptkit.data.pixels import decoded
from adaptkit.errors import BadInput
from adaptkit.system.folders import cache_folder, warn_of_damage
from adaptkit.system.streams import printable_line

#: formats that Pillow decodes itself; for other formats, such as EPS, it would start external programs
FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "AVIF", "HEIF", "TIFF", "JPEG2000"),
    *("PPM", "QOI", "ICO", "ICNS", "SGI", "PCX", "DDS", "TGA"),
)
#: transpositions that undo an EXIF orientation
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: formats whose 16-bit values Pillow returns as 32-bit integers
SIXTEEN_BITS = (None, "PNG", "PPM")


def read_picture(source: Path | Image.Image, size: int) -> Tensor:
    """Return an image as uint8 `[3, size, size]`: upright, shorter side resized to `size`, cropped to the centre.

    Transparent pixels become white. If there are several frames, the first is used. Raises BadInput("PATH: reason").
    """
    try:
        return _read(source, size)
    except Exception as error:
        # The readers of Pillow raise many types of errors, such as struct.error and SyntaxError.
        title = printable_line(str(source)) if isinstance(source, Path) else "the picture"
        raise BadInput(f"{title}: {_reason(error)}") from None


def fault_of(path: Path, size: int) -> str:
    """Return the reason why a file cannot be read as an image of this size; an empty string if it can."""
    try:
        _read(path, size)
    except Exception as error:
        return _reason(error)
    return ""


def _read(source: Path | Image.Image, size: int) -> Tensor:
    with _quiet():
        if isinstance(source, Image.Image):
            return _cropped(_coloured(_upright(source)), size)
        with _opened(source) as image:
            image.load()
            return _cropped(_coloured(_upright(image)), size)


def _opened(path: Path) -> Image.Image:
    if not isinstance(path, Path):
        raise BadInput(f"must be a path or a PIL image, not {type(path).__name__}")
    if not path.is_file():
        reason = "a broken link" if path.is_symlink() else "not a file" if path.exists() else "there is no such file"
        raise BadInput(reason)
    if path.stat().st_size == 0:
        raise BadInput("empty (0 bytes)")
    image = Image.open(path, formats=_formats())
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        # Up to twice this limit, Pillow only warns, and the warning can be disabled.
        image.close()
        raise BadInput(_bomb(pixels))
    return image


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of Pillow, but convert the warning about decompression bombs to an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return image  # an image with damaged metadata can still be used
    return image if turn is None else image.transpose(turn)


def _coloured(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _grey(image: Image.Image) -> Image.Image:
    """Convert a grey image with more than 8 bits to mode L, because Pillow would clip its values at 255."""
    values = numpy.asarray(image)
    least, most = values.min(), values.max()
    if image.mode == "F":
        if not (least >= 0 and most <= 1):
            raise BadInput(f"its values are floats from {least:g} to {most:g}, not from 0 to 1")
        return Image.fromarray((values * 255).round().astype(numpy.uint8))
    if image.mode == "I" and not (image.format in SIXTEEN_BITS and least >= 0 and most <= 65535):
        raise BadInput(f"its values are 32-bit integers from {least} to {most}, and the value of white is unknown")
    return Image.fromarray((values / numpy.float32(257)).round().astype(numpy.uint8))


def _cropped(image: Image.Image, size: int) -> Tensor:
    """Resize and crop to the centre in one step."""
    sides = [max(size, int(size * side / min(image.size))) for side in image.size]
    starts = [round((side - size) / 2) * before / side for side, before in zip(sides, image.size, strict=True)]
    ends = [start + size * before / side for start, side, before in zip(starts, sides, image.size, strict=True)]
    box = (starts[0], starts[1], min(ends[0], image.width), min(ends[1], image.height))
    small = image.resize((size, size), Image.Resampling.BILINEAR, box)
    return torch.from_numpy(numpy.array(small)).permute(2, 0, 1).contiguous()


def _bomb(pixels: int) -> str:
    return f"{pixels:,} pixels, more than the safe maximum of {Image.MAX_IMAGE_PIXELS:,}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, BadInput):
        return text
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = re.search(r"\((\d+) pixels\)", text)
        return _bomb(int(pixels[1])) if pixels else text
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged: {text or type(error).__name__}"


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
    """Return the versions and limits that can change the result of a check."""
    return [1, PIL.__version__, Image.MAX_IMAGE_PIXELS]


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
