"""Decode a picture of whatever kind into the bytes that a model is fed, or say why it cannot be."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from adaptkit.errors import BadInput
from adaptkit.printing import printable

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
        named = shown(str(source)) if isinstance(source, Path) else "the picture"
        raise BadInput(f"{named}: {_reason(error)}") from None


def fault_of(path: Path, size: int) -> str:
    """Return why a file cannot be read as a picture of this size; nothing if it can."""
    try:
        _read(path, size)
    except Exception as error:
        return _reason(error)
    return ""


def shown(text: str) -> str:
    """Return a path as it can be printed in one line, whatever bytes its name is made of."""
    return printable(text, keep="")


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
