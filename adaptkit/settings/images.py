"""Settings of raw values: which bands of an image are used, and how they become floats in 0..1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from adaptkit.settings.group import SettingsGroup

#: functions from values to 0..1; LIMITED ones may be followed by two limits, as in `linear:0,4095`
LIMITED = ("linear", "asinh", "log", "sqrt")
STRETCHES = (*LIMITED, "percentile:LOW,HIGH", "zscale", "none")
ALL = "all"


def parse_bands(text: str) -> tuple[int | str, ...] | None:
    """Return the bands that a text names: numbers from 1, or names; None for all.

    Examples
    --------
    >>> parse_bands("3,2,1"), parse_bands("red,nir"), parse_bands("all")
    ((3, 2, 1), ('red', 'nir'), None)
    """
    if text.strip() == ALL:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"must be all, or numbers or names of bands such as 1,2,3, not {text!r}")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"band {repeated[0]} appears twice")
    is_numbered = all(name.isascii() and name.isdigit() for name in names)
    if is_numbered and "0" in {name.lstrip("0") or "0" for name in names}:
        raise ValueError("bands are numbered from 1, so there is no band 0")
    return tuple(int(name) if is_numbered else name for name in names)


def parse_stretch(text: str) -> tuple[str, tuple[float, float] | None]:
    """Return the name of a stretch, and its limits or percentiles, if it has any.

    Examples
    --------
    >>> parse_stretch("percentile:1,99"), parse_stretch("asinh")
    (('percentile', (1.0, 99.0)), ('asinh', None))
    """
    name, colon, numbers = text.strip().partition(":")
    if name not in (*LIMITED, "percentile", "zscale", "none") or (colon and name in ("zscale", "none")):
        raise ValueError(f"must be {', '.join(STRETCHES[:-1])} or {STRETCHES[-1]}, not {text!r}")
    if not colon:
        if name == "percentile":
            raise ValueError("percentile needs two numbers, as in percentile:1,99")
        return name, None
    try:
        low, high = (float(number) for number in numbers.split(","))
    except ValueError:
        raise ValueError(f"{name} takes two numbers, as in {name}:1,99, not {numbers!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the first number of {name} must be less than the second, not {numbers!r}")
    if name == "percentile" and not 0 <= low < high <= 100:
        raise ValueError(f"percentiles must be in 0..100, not {numbers!r}")
    return name, (low, high)


def _bands(value: object) -> object:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    """Return a check of texts that `parse` must accept; the texts stay as they are."""

    def check(text: str | None) -> str | None:
        if text is not None:
            parse(text)
        return text

    return AfterValidator(check)


IMAGE_DEFAULTS = {"bands": ALL, "stretch": "linear", "missing": "zero", "fit": "crop"}


class ImageSettings(SettingsGroup):
    """How raw values of image files become the input of a model; None if the user has not chosen it."""

    bands: Annotated[str | None, BeforeValidator(_bands), _parsed_by(parse_bands)] = Field(
        None, description="bands of raw images: all, numbers from 1 as in 3,2,1, or names; by default all"
    )
    stretch: Annotated[str | None, _parsed_by(parse_stretch)] = Field(
        None,
        description="how raw values become 0..1: linear, asinh, log or sqrt (linear:LOW,HIGH sets the limits), "
        "percentile:1,99, zscale or none; by default linear",
    )
    missing: Literal["zero", "median", "error"] | None = Field(
        None, description="what missing raw values become: zero, median (of the band) or error; by default zero"
    )
    fit: Literal["crop", "pad", "stretch"] | None = Field(
        None, description="how raw images become square: crop, pad or stretch; by default crop"
    )

    @property
    def chosen(self) -> dict[str, str]:
        """Return the settings that the user chose."""
        return {key: value for key, value in self.model_dump().items() if value is not None}

    @property
    def complete(self) -> ImageSettings:
        """Return the settings with their defaults."""
        return ImageSettings.model_validate(IMAGE_DEFAULTS | self.chosen)

    @property
    def fields(self) -> dict[str, Any]:
        """Return the chosen settings as fields of a conversion of raw values."""
        fields: dict[str, Any] = self.chosen
        if self.bands is not None:
            fields["bands"] = parse_bands(self.bands)
        if self.stretch is not None:
            fields["stretch"], fields["limits"] = parse_stretch(self.stretch)
        return fields
