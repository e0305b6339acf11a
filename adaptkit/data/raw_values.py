"""Convert the raw values of an image to the input of a model: choose bands, fill missing values, stretch and resize.

This module needs only NumPy and Pillow: adaptkit copies it into the folders of exported models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy
from PIL import Image

Array = numpy.ndarray[Any, Any]

#: types of values whose largest value is white; other types have no known white
WHITE = {"bool": 1.0, "uint8": 255.0, "uint16": 65535.0}
#: keys of the conversion, and of the options of readers, in the description of a model's preprocessing
RAW_VALUES, READERS = "raw_values", "readers"
#: maximum number of pixels of an image
MAX_PIXELS = 89_478_485
#: constants of the asinh and log stretches, as in astropy.visualization
SOFTENING, LOG_SCALE = 0.1, 1000.0


class RawValuesError(ValueError):
    """An image whose values cannot be converted; the message is the reason."""


@dataclass(frozen=True)
class Conversion:
    """How raw values `[bands, h, w]` of any type become float32 `[bands, size, size]` in 0..1.

    Values are computed in float64 and rounded to float32 once; resizing is bilinear with antialiasing, in float32.

    Parameters
    ----------
    size : int
        Side of the result in pixels.
    bands : tuple of int or str, optional
        Bands to use: numbers from 1, or names. None: all bands.
    stretch : str, optional
        Function from values to 0..1, given the values that become 0 and 1 (`limits`). "linear", "asinh", "log" and
        "sqrt" are that of astropy.visualization; "none" takes values that are in 0..1 already. The limits are those of
        all bands of an image together. For "linear" they are 0 and the largest value of the types uint8 and uint16, and
        otherwise, as for "asinh", "log" and "sqrt", the smallest and largest value of the image. "percentile" is linear
        between two percentiles, and "zscale" between the limits of IRAF's zscale.
    limits : tuple of float, optional
        The limits of all images, in place of those of each image; for "percentile", the percentiles.
    missing : str, optional
        What missing values become: "zero" (0 in the result), "median" (the median of the band of the image), or "error"
        (the image cannot be converted).
    fit : str, optional
        How images that are not square become square: "crop" (the centre), "pad" (with 0) or "stretch".

    Examples
    --------
    >>> Conversion(size=2)(numpy.array([[[0, 65535], [13107, 26214]]], "uint16")).tolist()
    [[[0.0, 1.0], [0.20000000298023224, 0.4000000059604645]]]
    """

    size: int
    bands: tuple[int | str, ...] | None = None
    stretch: str = "linear"
    limits: tuple[float, float] | None = None
    missing: str = "zero"
    fit: str = "crop"

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Conversion:
        """Return the conversion that `described` describes, as read from a JSON file."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in described.items()
        }
        return cls(**fields)

    @property
    def described(self) -> dict[str, Any]:
        """Return the fields in types of JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __call__(self, values: Array, missing: Array | None = None, names: Sequence[str] | None = None) -> Array:
        """Return the values, of which some may be missing, as float32 `[bands, size, size]`.

        `names` are the names of the bands. Raises RawValuesError for values that cannot be converted.
        """
        chosen, absent = self.select(values, missing, names)
        return self.resized(self.stretched(chosen, absent))

    def select(
        self, values: Array, missing: Array | None = None, names: Sequence[str] | None = None
    ) -> tuple[Array, Array]:
        """Return the chosen bands, and a mask of their missing values."""
        values = numpy.asarray(values)
        values = values[None] if values.ndim == 2 else values
        if values.ndim != 3 or 0 in values.shape:
            raise RawValuesError(f"its values have the shape {list(values.shape)}, not [bands, height, width]")
        if values.dtype.kind not in "buif":
            raise RawValuesError(f"its values are of type {values.dtype}, not numbers")
        if values.shape[1] * values.shape[2] > MAX_PIXELS:
            pixels = values.shape[1] * values.shape[2]
            raise RawValuesError(f"{pixels:,} pixels, more than the safe maximum of {MAX_PIXELS:,}")
        absent = numpy.zeros(values.shape, bool) if values.dtype.kind != "f" else ~numpy.isfinite(values)
        if missing is not None:
            mask = numpy.asarray(missing, bool)
            mask = mask[None] if mask.ndim == 2 else mask
            if mask.shape[1:] != values.shape[1:] or len(mask) not in (1, len(values)):
                raise RawValuesError(f"its mask has the shape {list(mask.shape)}, and its values {list(values.shape)}")
            absent |= mask
        if self.bands is None:
            return values, absent
        places = [_place(band, len(values), names) for band in self.bands]
        return values[places], absent[places]

    def stretched(self, values: Array, absent: Array) -> Array:
        """Return values as float32 in 0..1, before they are resized."""
        if absent.any():
            if self.missing == "error":
                raise RawValuesError(
                    f"{int(absent.sum()):,} of {absent.size:,} values are missing; set image.missing=zero or median"
                )
            if absent.all():
                raise RawValuesError("all its values are missing")
        exact = values.astype(numpy.float64)
        present = exact[~absent]
        low, high = self.limits_of(present, values.dtype.name)
        if not numpy.isfinite(high - low):
            raise RawValuesError(f"its values are from {low:g} to {high:g}, a range that is too large")
        if self.stretch == "none" and not (present.min() >= 0 and present.max() <= 1):
            least, most = present.min(), present.max()
            raise RawValuesError(f"its values are from {least:g} to {most:g}, not from 0 to 1; set image.stretch")
        if self.missing == "median":
            for band, gaps in zip(exact, absent, strict=True):
                if gaps.any() and not gaps.all():
                    band[gaps] = numpy.median(band[~gaps])
                    gaps[:] = False
        exact[absent] = low
        shares = ((exact - low) / (high - low)).clip(0, 1) if high > low else numpy.zeros_like(exact)
        return curved(shares, self.stretch).astype(numpy.float32)

    def limits_of(self, present: Array, kind: str) -> tuple[float, float]:
        """Return the values that become 0 and 1, of the values of an image that are not missing, of this type."""
        if self.stretch == "none":
            return 0.0, 1.0
        if self.stretch == "percentile":
            assert self.limits is not None
            low, high = numpy.percentile(present, self.limits)
            return float(low), float(high)
        if self.limits is not None:
            return self.limits
        if self.stretch == "zscale":
            return zscale(present)
        if self.stretch == "linear" and kind in WHITE:
            return 0.0, WHITE[kind]
        return float(present.min()), float(present.max())

    def resized(self, shares: Array) -> Array:
        """Return float32 `[bands, h, w]` in 0..1 as `[bands, size, size]`; squares of this size do not change."""
        size = self.size
        if self.fit == "pad":
            side = max(shares.shape[1:])
            top, left = ((side - length) // 2 for length in shares.shape[1:])
            square = numpy.zeros((len(shares), side, side), numpy.float32)
            square[:, top : top + shares.shape[1], left : left + shares.shape[2]] = shares
            shares = square
        height, width = shares.shape[1:]
        box = (0.0, 0.0, float(width), float(height))
        if self.fit == "crop":
            # Resize and crop in one step, as for pictures.
            sides = [max(size, int(size * length / min(width, height))) for length in (width, height)]
            scales = [width / sides[0], height / sides[1]]
            left, top = (round((side - size) / 2) * scale for side, scale in zip(sides, scales, strict=True))
            box = (left, top, min(left + size * scales[0], width), min(top + size * scales[1], height))
        bands = [
            numpy.asarray(Image.fromarray(band).resize((size, size), Image.Resampling.BILINEAR, box))
            for band in numpy.ascontiguousarray(shares)
        ]
        return numpy.stack(bands).clip(0, 1)


def curved(shares: Array, stretch: str) -> Array:
    """Return numbers in 0..1 after the curve of a stretch."""
    result: Array = shares
    if stretch == "asinh":
        result = numpy.arcsinh(shares / SOFTENING) / numpy.arcsinh(1 / SOFTENING)
    elif stretch == "log":
        result = numpy.log(LOG_SCALE * shares + 1) / numpy.log(LOG_SCALE + 1)
    elif stretch == "sqrt":
        result = numpy.sqrt(shares)
    return result


def zscale(values: Array) -> tuple[float, float]:
    """Return the limits of IRAF's zscale: a line through about 1,000 sorted values, without outliers.

    Contrast 0.25, rejection at 2.5 standard deviations, at most 5 iterations, as in astropy.visualization.
    """
    step = int(max(1.0, len(values) / 1000))
    sample = numpy.sort(values[::step][:1000])
    count = len(sample)
    low, high = float(sample[0]), float(sample[-1])
    least = max(5, int(count * 0.5))
    growth = max(1, int(count * 0.01))
    x = numpy.arange(count)
    rejected = numpy.zeros(count, bool)
    good, before = count, count + 1
    slope, intercept = 0.0, 0.0
    for _ in range(5):
        if good >= before or good < least:
            break
        slope, intercept = numpy.polyfit(x, sample, deg=1, w=(~rejected).astype(int))
        flat = sample - (slope * x + intercept)
        spread = 2.5 * flat[~rejected].std()
        rejected = numpy.convolve(rejected | (abs(flat) > spread), numpy.ones(growth, bool), mode="same")
        before, good = good, int((~rejected).sum())
    if good >= least:
        slope /= 0.25
        middle = (count - 1) // 2
        median = float(numpy.median(sample))
        low = max(low, median - (middle - 1) * slope)
        high = min(high, median + (count - middle) * slope)
    return float(low), float(high)


def _place(band: int | str, count: int, names: Sequence[str] | None) -> int:
    """Return the index of a band; raise RawValuesError if the image does not have it."""
    if isinstance(band, int):
        if not 1 <= band <= count:
            raise RawValuesError(f"it has {count} {'band' if count == 1 else 'bands'}, so no band {band}")
        return band - 1
    if names is None:
        raise RawValuesError(f"its {count} bands have no names; choose numbers, as in image.bands=1,2,3")
    if band not in names:
        raise RawValuesError(f"it has no band {band!r}; its bands: {', '.join(names)}")
    return list(names).index(band)
