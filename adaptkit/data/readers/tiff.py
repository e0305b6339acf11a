"""The reader `tiff`: TIFF files of any number of bands and any type of values."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.contracts import Raster, Reader


class Tiff:
    """TIFF files with many bands, or with values of more than 8 bits; GDAL's nodata are missing values.

    Files of 8 bits and at most four bands are read as pictures.
    """

    name: ClassVar[str] = "tiff"
    suffixes: ClassVar[tuple[str, ...]] = (".tif", ".tiff", ".btf", ".tf8")
    unavailable: ClassVar[str] = (
        ""
        if importlib.util.find_spec("tifffile")
        else "TIFF files of many bands or of more than 8 bits need tifffile: pip install tifffile imagecodecs"
    )

    def read(self, path: Path) -> Raster:
        """Return the bands of the first image in a file."""
        from adaptkit.contracts import Raster
        from adaptkit.data.readers.decode import read_tiff

        return Raster(*read_tiff(path))


@hookimpl
def adaptkit_readers() -> list[type[Reader]]:
    """Return the reader `tiff`."""
    return [Tiff]
