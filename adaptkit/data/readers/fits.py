"""The reader `fits`: images of astronomy in FITS files."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.contracts import Raster, Reader


@dataclass(frozen=True)
class Fits:
    """FITS files; with BLANK, BSCALE, BZERO and NaN, also compressed.

    Images of three axes or more have the last two of NumPy's order as height and width, and the one before as bands.
    """

    name: ClassVar[str] = "fits"
    suffixes: ClassVar[tuple[str, ...]] = (*(".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fts.gz", ".fits.fz"),)
    unavailable: ClassVar[str] = (
        "" if importlib.util.find_spec("astropy") else "FITS files need astropy: pip install astropy"
    )

    extension: str = field(default="auto", metadata={"help": "number or name of the extension; auto: the first image"})
    plane: Annotated[int | None, Field(ge=1)] = field(
        default=None, metadata={"help": "number of the plane of a cube, from 1; none: all planes are bands"}
    )

    def read(self, path: Path) -> Raster:
        """Return the image in a file; raise ValueError if there is none."""
        import warnings

        import numpy
        from astropy.io import fits

        from adaptkit.contracts import Raster

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(path, memmap=False, lazy_load_hdus=False) as units:
                unit = self._chosen(units)
                header = unit.header.copy()  # reading the data removes the keywords of scaling
                values = numpy.asarray(unit.data)
        blank = header.get("BLANK")
        missing = None
        if blank is not None and values.dtype.kind in "iu":
            # astropy sets BLANK to NaN only if values are scaled; with BZERO alone they are unsigned integers.
            missing = values == blank + int(header.get("BZERO", 0))
        while values.ndim > 3 and values.shape[0] == 1:
            values = values[0]
        values = values[None] if values.ndim == 2 else values
        if values.ndim != 3:
            raise ValueError(f"its image has the axes {list(values.shape)}, not [height, width] or [planes, ...]")
        missing = None if missing is None else missing.reshape(values.shape)
        if self.plane is not None:
            if self.plane > len(values):
                raise ValueError(f"it has {len(values)} planes, so no plane {self.plane}")
            part = slice(self.plane - 1, self.plane)
            values, missing = values[part], None if missing is None else missing[part]
        return Raster(values, missing)

    def _chosen(self, units: Any) -> Any:
        """Return the extension with the image."""
        named = {str(place): unit for place, unit in enumerate(units)}
        images = {place: unit for place, unit in named.items() if unit.is_image and unit.header.get("NAXIS", 0) >= 2}
        if self.extension == "auto":
            if not images:
                raise ValueError("it has no image, only tables or empty extensions")
            return next(iter(images.values()))
        by_name = {unit.name.lower(): place for place, unit in reversed(named.items())}
        place = by_name.get(self.extension.lower(), self.extension)
        if place not in images:
            known = ", ".join(f"{place} ({unit.name})" if unit.name else place for place, unit in images.items())
            raise ValueError(f"it has no image in extension {self.extension}; its images: {known or 'none'}")
        return images[place]


@hookimpl
def adaptkit_readers() -> list[type[Reader]]:
    """Return the reader `fits`."""
    return [Fits]
