"""The reader `tiff`: TIFF files of any number of bands and any type of values."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.contracts import Raster, Reader

#: numbers of TIFF tags
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 258, 277, 339
GDAL_METADATA, GDAL_NODATA = 42112, 42113
WHITE_IS_ZERO = 0


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
        import logging

        import numpy
        import tifffile

        from adaptkit.contracts import Raster
        from adaptkit.data.raw_values import bands_first

        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # errors are raised, too
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            page = series.keyframe
            values, axes = series.asarray(), series.axes
            nodata, names = _nodata(page), _names(page)
        if "Q" in axes:  # axes without names
            values = bands_first(values.reshape(-1, *values.shape[-2:]))
        else:
            values = numpy.moveaxis(values, (axes.index("Y"), axes.index("X")), (-2, -1))
            values = values.reshape(-1, *values.shape[-2:])
        missing = None if nodata is None else values == nodata
        if page.photometric == WHITE_IS_ZERO and values.dtype.kind == "u":
            values = numpy.iinfo(values.dtype).max - values
        return Raster(values, missing, names if names is not None and len(names) == len(values) else None)


def _nodata(page: Any) -> float | None:
    """Return the value of missing values, which GDAL writes as text; None if there is none, or if it is NaN."""
    tag = page.tags.get(GDAL_NODATA)
    try:
        value = float(str(tag.value).strip("\0 ")) if tag is not None else None
    except ValueError:
        return None
    return None if value is None or value != value else value


def _names(page: Any) -> tuple[str, ...] | None:
    """Return the descriptions of the bands, which GDAL writes as XML; None if some bands have none."""
    import re
    from html import unescape

    tag = page.tags.get(GDAL_METADATA)
    if tag is None:
        return None
    pattern = r'<Item name="DESCRIPTION" sample="(\d+)"[^>]*>([^<]*)</Item>'
    found = {int(number): unescape(text).strip() for number, text in re.findall(pattern, str(tag.value))}
    return tuple(found[number] for number in sorted(found)) if sorted(found) == list(range(len(found))) else None


def is_picture(path: Path) -> bool:
    """Return whether a TIFF file has at most 8 bits a value and four bands; True if it cannot be read at all."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        with open(path, "rb") as file:
            header = file.read(8)
            header += file.read(8) if header[2:3] == b"\x2b" or header[3:4] == b"\x2b" else b""
            tags = ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            bits, formats = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(SAMPLE_FORMAT, (1,))
            return max(bits) <= 8 and int(tags.get(SAMPLES_PER_PIXEL, 1)) <= 4 and {*formats} <= {1, 4}
    except Exception:  # damaged files raise many types of errors, and so does reading them as pictures
        return True


@hookimpl
def adaptkit_readers() -> list[type[Reader]]:
    """Return the reader `tiff`."""
    return [Tiff]
