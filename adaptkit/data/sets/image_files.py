"""Decode a picture of whatever kind into the bytes that a model is fed, or say why it cannot be."""

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

#: formats that Pillow reads by itself: it hands others, such as EPS, to programs, which pictures must not start
FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "AVIF", "HEIF", "TIFF", "JPEG2000"),
    *("PPM", "QOI", "ICO", "ICNS", "SGI", "PCX", "DDS", "TGA"),
)
#: what undoes an EXIF orientation
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: modes of 32-bit integers, in which Pillow gives what these formats keep in 16 bits
SIXTEEN_BITS = (None, "PNG", "PPM")


def read_picture(source: Path | Image.Image, size: int) -> Tensor:
    """Return a picture as uint8 `[3, size, size]`: upright, its shorter side brought to `size`, its middle cut out.

    What is transparent becomes white; of several frames the first counts. Raises BadInput("PATH: reason").
    """
    try:
        return _read(source, size)
    except Exception as error:
        # Pillow's readers raise whatever their parsing trips over, struct.error and SyntaxError among it.
        named = printable_line(str(source)) if isinstance(source, Path) else "the picture"
        raise BadInput(f"{named}: {_reason(error)}") from None


def fault_of(path: Path, size: int) -> str:
    """Return why a file cannot be read as a picture of this size; nothing if it can."""
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
        raise BadInput(f"a path or a PIL image is needed, not {type(path).__name__}")
    if not path.is_file():
        reason = (
            "a link to nothing" if path.is_symlink() else "not a file" if path.exists() else "there is no such file"
        )
        raise BadInput(reason)
    if path.stat().st_size == 0:
        raise BadInput("empty (0 bytes)")
    image = Image.open(path, formats=_formats())
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        # Pillow only warns of up to twice as many, and that may be switched off.
        image.close()
        raise BadInput(_bomb(pixels))
    return image


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow from warning of each odd picture; of bombs it must not only warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return image  # damaged notes beside a picture are no reason to refuse it
    return image if turn is None else image.transpose(turn)


def _coloured(image: Image.Image) -> Image.Image:
    """Return the picture in mode RGB."""
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
    """Return a grey picture of more than 8 bits in mode L: Pillow itself would cut its values off at 255."""
    values = numpy.asarray(image)
    least, most = values.min(), values.max()
    if image.mode == "F":
        if not (least >= 0 and most <= 1):
            raise BadInput(f"its values are floats from {least:g} to {most:g}, not from 0 to 1")
        return Image.fromarray((values * 255).round().astype(numpy.uint8))
    if image.mode == "I" and not (image.format in SIXTEEN_BITS and least >= 0 and most <= 65535):
        raise BadInput(f"its values are 32-bit integers from {least} to {most}, of which none is known to be white")
    return Image.fromarray((values / numpy.float32(257)).round().astype(numpy.uint8))


def _cropped(image: Image.Image, size: int) -> Tensor:
    """Return the middle, as if the picture were first resized and then cropped, in one step."""
    sides = [max(size, int(size * side / min(image.size))) for side in image.size]
    starts = [round((side - size) / 2) * before / side for side, before in zip(sides, image.size, strict=True)]
    ends = [start + size * before / side for start, side, before in zip(starts, sides, image.size, strict=True)]
    box = (starts[0], starts[1], min(ends[0], image.width), min(ends[1], image.height))
    small = image.resize((size, size), Image.Resampling.BILINEAR, box)
    return torch.from_numpy(numpy.array(small)).permute(2, 0, 1).contiguous()


def _bomb(pixels: int) -> str:
    return f"{pixels:,} pixels, more than the {Image.MAX_IMAGE_PIXELS:,} that are safe to decode"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, BadInput):
        return text
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = re.search(r"\((\d+) pixels\)", text)
        return _bomb(int(pixels[1])) if pixels else text
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that can be read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged: {text or type(error).__name__}"


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
