"""Read an image file as in training.

This module needs only NumPy and Pillow: adaptkit copies it into the folders of exported models.
"""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

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
#: modes of PNG files -> how Pillow converts their values to 8 bits
TO_8_BITS: dict[str, Callable[[Any], Any]] = {
    "L;2": lambda value: value * 85,
    "L;4": lambda value: value * 17,
    "RGB;16B": lambda values: tuple(value >> 8 for value in values),
}
#: maximum number of pixels of an image, because a small file can expand to gigabytes; the default of Pillow
MAX_PIXELS = 89_478_485
#: brightness of red, green and blue (ITU-R BT.601)
LUMINANCE = numpy.array([0.299, 0.587, 0.114], numpy.float32)[:, None, None]
#: numbers of TIFF tags
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
WHITE_IS_ZERO = 0


class UnreadableError(Exception):
    """An image that cannot be read; the message is the reason."""


def read_picture(source: str | Path | Image.Image, size: int, channels: int = 3) -> numpy.ndarray[Any, Any]:
    """Return an image as uint8 `[channels, size, size]`.

    The image is turned upright according to its EXIF orientation, its shorter side is resized to `size`, and its centre
    is cropped. Transparent pixels become white. With one channel, the image is converted to its luminance. If there are
    several frames, the first is used. Raises UnreadableError.

    Example
    -------
    >>> read_picture("picture.png", size=224).shape
    (3, 224, 224)
    """
    try:
        with _settings_of_pillow():
            if isinstance(source, Image.Image):
                pixels = _converted(source, size)
            else:
                with _opened(Path(source)) as image:
                    pixels = _converted(image, size)
    except Exception as error:
        # The readers of Pillow raise many types of errors, such as struct.error and SyntaxError.
        raise UnreadableError(_reason(error)) from error
    if channels == 1:
        grey: numpy.ndarray[Any, Any] = (pixels.astype(numpy.float32) * LUMINANCE).sum(axis=0, keepdims=True)
        return grey.round().astype(numpy.uint8)
    return pixels


def stored_values(source: str | Path | Image.Image) -> numpy.ndarray[Any, Any]:
    """Return the values of an image as `[bands, h, w]` in the type in which they are stored.

    The image is turned upright, and palettes are resolved. Raises UnreadableError.
    """
    try:
        with _settings_of_pillow():
            if isinstance(source, Image.Image):
                return _values(source)
            with _opened(Path(source)) as image:
                return _values(image)
    except Exception as error:
        raise UnreadableError(_reason(error)) from error


def _values(image: Image.Image) -> numpy.ndarray[Any, Any]:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(_bomb(image.width * image.height))
    image.load()
    turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    image = image if turn is None else image.transpose(turn)
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    values = numpy.asarray(image)
    if image.mode == "I" and image.format in SIXTEEN_BITS and values.min() >= 0 and values.max() <= 65535:
        values = values.astype(numpy.uint16)
    return numpy.ascontiguousarray(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))


_lock = threading.Lock()
_readers = 0
_restored = contextlib.ExitStack()


@contextlib.contextmanager
def _settings_of_pillow() -> Iterator[None]:
    """Decode independently of global settings: the limits of Pillow, and filters for its warnings.

    All threads share these settings: the first thread that reads replaces them, the last one restores them.
    """
    global _readers
    with _lock:
        _readers += 1
        if _readers == 1:
            _restored.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for module, name, value in (
                (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
                (Image, "MAX_IMAGE_PIXELS", MAX_PIXELS),
            ):
                _restored.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, value)
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                _restored.close()


def _opened(path: Path) -> Image.Image:
    if not path.is_file():
        reason = "a broken link" if path.is_symlink() else "not a file" if path.exists() else "there is no such file"
        raise UnreadableError(reason)
    if path.stat().st_size == 0:
        raise UnreadableError("empty (0 bytes)")
    return Image.open(path, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _converted(image: Image.Image, size: int) -> numpy.ndarray[Any, Any]:
    """Return the image as uint8 `[3, size, size]`."""
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(_bomb(image.width * image.height))
    tiles = getattr(image, "tile", None)  # empty once the image is loaded
    image.load()
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        turn = None  # an image with damaged metadata can still be used
    # Turning loses the facts about the file that the colours depend on.
    coloured = _coloured(image, str(tiles[0][3]) if tiles else "")
    return _cropped(coloured if turn is None else coloured.transpose(turn), size)


def _coloured(image: Image.Image, stored: str) -> Image.Image:
    """Return the image in mode RGB, with white instead of transparent pixels; `stored` is the mode in the file."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if clear := TO_8_BITS.get(stored):
        # Pillow converts the values of pixels, but not the value that marks transparent pixels.
        image = image.copy()
        image.info["transparency"] = clear(image.info["transparency"])
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _grey(image: Image.Image) -> Image.Image:
    """Convert a grey image with more than 8 bits to mode L, because Pillow would clip its values at 255."""
    values = numpy.asarray(image)
    least, most = values.min(), values.max()
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        if not (least >= 0 and most <= 1):
            raise UnreadableError(f"its values are floats from {least:g} to {most:g}, not from 0 to 1")
        white = 1.0
    elif image.mode == "I" and not (image.format in SIXTEEN_BITS and least >= 0 and most <= 65535):
        reason = f"its values are 32-bit integers from {least} to {most}, and the value of white is unknown"
        raise UnreadableError(reason)
    else:
        white = 2.0 ** min(tags.get(BITS_PER_SAMPLE, (16,))[0], 16) - 1
    shares = values / numpy.float32(white)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        shares = 1 - shares
    if (clear := image.info.get("transparency")) is not None:
        shares[values == clear] = 1
    return Image.fromarray((shares * 255).round().astype(numpy.uint8))


def _cropped(image: Image.Image, size: int) -> numpy.ndarray[Any, Any]:
    """Resize and crop to the centre in one step."""
    sides = [max(size, int(size * side / min(image.size))) for side in image.size]
    starts = [round((side - size) / 2) * before / side for side, before in zip(sides, image.size, strict=True)]
    ends = [start + size * before / side for start, side, before in zip(starts, sides, image.size, strict=True)]
    box = (starts[0], starts[1], min(ends[0], image.width), min(ends[1], image.height))
    small = image.resize((size, size), Image.Resampling.BILINEAR, box)
    return numpy.ascontiguousarray(numpy.asarray(small).transpose(2, 0, 1))


def _bomb(pixels: int) -> str:
    return f"{pixels:,} pixels, more than the safe maximum of {MAX_PIXELS:,}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, UnreadableError):
        return text
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = re.search(r"\((\d+) pixels\)", text)
        return _bomb(int(pixels[1])) if pixels else text
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged: {text or type(error).__name__}"
