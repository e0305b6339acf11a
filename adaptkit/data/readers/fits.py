"""The reader `fits`: images of astronomy in FITS files."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

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
    suffixes: ClassVar[tuple[str, ...]] = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fts.gz", ".fits.fz")
    unavailable: ClassVar[str] = (
        "" if importlib.util.find_spec("astropy") else "FITS files need astropy: pip install astropy"
    )

    extension: str = field(default="auto", metadata={"help": "number or name of the extension; auto: the first image"})
    plane: Annotated[int | None, Field(ge=1)] = field(
        default=None, metadata={"help": "number of the plane of a cube, from 1; none: all planes are bands"}
    )

    def read(self, path: Path) -> Raster:
        """Return the image in a file; raise ValueError if there is none."""
        from adaptkit.contracts import Raster
        from adaptkit.data.readers.decode import read_fits

        return Raster(*read_fits(path, self.extension, self.plane))


@hookimpl
def adaptkit_readers() -> list[type[Reader]]:
    """Return the reader `fits`."""
    return [Fits]
