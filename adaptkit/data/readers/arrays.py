"""The reader `numpy`: arrays in files of NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.contracts import Raster, Reader


class NumpyFile:
    """Arrays `[bands, h, w]`, `[h, w, bands]` or `[h, w]` in files .npy and .npz.

    The shorter one of the first and the last axis holds the bands. A file .npz holds one array, or one array `[h, w]`
    for each band, whose names are those of the bands. An array `missing` is a mask of missing values.
    """

    name: ClassVar[str] = "numpy"
    suffixes: ClassVar[tuple[str, ...]] = (".npy", ".npz")

    def read(self, path: Path) -> Raster:
        """Return the array in a file; raise ValueError for other contents."""
        import numpy

        from adaptkit.contracts import Raster
        from adaptkit.data.raw_values import bands_first

        # Arrays of objects are never loaded, because they can run code.
        loaded = numpy.load(path, allow_pickle=False)
        if isinstance(loaded, numpy.ndarray):
            return Raster(bands_first(loaded))
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        missing = arrays.pop("missing", None)
        if not arrays:
            raise ValueError("it holds no array")
        if len(arrays) == 1:
            (values,) = arrays.values()
            return Raster(bands_first(values), None if missing is None else bands_first(missing))
        shapes = {array.shape for array in arrays.values()}
        if len(shapes) > 1 or len(next(iter(shapes))) != 2:
            shown = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise ValueError(f"several arrays must be bands [h, w] of equal size: {shown}")
        return Raster(numpy.stack(list(arrays.values())), missing, tuple(arrays))


@hookimpl
def adaptkit_readers() -> list[type[Reader]]:
    """Return the reader `numpy`."""
    return [NumpyFile]
