"""The reader `numpy`: arrays in files of NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.contracts import Raster, Reader


class NumpyFile:
    """Arrays `[bands, h, w]`, `[h, w, bands]` or `[h, w]` in files .npy and .npz.

    The last axis holds the bands if it is the shortest one. A file .npz holds one array, or one array `[h, w]` for each
    band, whose names are those of the bands. An array `missing` is a mask of missing values.
    """

    name: ClassVar[str] = "numpy"
    suffixes: ClassVar[tuple[str, ...]] = (".npy", ".npz")

    def read(self, path: Path) -> Raster:
        """Return the array in a file; raise ValueError for other contents."""
        from adaptkit.contracts import Raster
        from adaptkit.data.readers.decode import read_numpy

        return Raster(*read_numpy(path))


@hookimpl
def adaptkit_readers() -> list[type[Reader]]:
    """Return the reader `numpy`."""
    return [NumpyFile]
