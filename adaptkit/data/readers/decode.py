"""Decode FITS, TIFF and NumPy files to their raw values.

This module needs only NumPy, and the package of a format if such a file is read: adaptkit copies it into the folders of
exported models.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]
#: values `[bands, h, w]`, a mask of missing ones or None, and the names of the bands or None
Values = tuple[Array, Array | None, tuple[str, ...] | None]

NUMPY = (".npy", ".npz")
FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fts.gz", ".fits.fz")
TIFF = (".tif", ".tiff", ".btf", ".tf8")
#: numbers of TIFF tags
WIDTH, LENGTH, BITS_PER_SAMPLE, DESCRIPTION, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 256, 257, 258, 270, 277, 339
GDAL_METADATA, GDAL_NODATA = 42112, 42113
WHITE_IS_ZERO = 0


def decode(path: str | Path, options: Mapping[str, Mapping[str, Any]]) -> Values:
    """Return the values in a file; `options` are those of the readers, such as `{"fits": {"plane": 1}}`."""
    path = Path(path)
    name = path.name.lower()
    if name.endswith(NUMPY):
        return read_numpy(path)
    if name.endswith(FITS):
        return read_fits(path, **options.get("fits", {}))
    if name.endswith(TIFF) and not is_picture(path):
        return read_tiff(path)
    from adaptkit.data.sets.read_picture import stored_values

    return stored_values(path), None, None


def bands_first(values: Array) -> Array:
    """Return an array whose axes have no names as `[bands, h, w]`: the last axis is the bands if it is the shortest."""
    is_last = values.ndim == 3 and values.shape[-1] < min(values.shape[:2])
    return numpy.moveaxis(values, -1, 0) if is_last else values


def read_numpy(path: Path) -> Values:
    """Return the array in a file .npy or .npz; raise ValueError for other contents."""
    with open(path, "rb") as file:
        try:
            # Arrays of objects are never loaded, because they can run code.
            loaded: Any = numpy.load(file, allow_pickle=False)
            arrays = (
                {"": loaded} if isinstance(loaded, numpy.ndarray) else {name: loaded[name] for name in loaded.files}
            )
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise ValueError("it is not an array of numbers in NumPy's format") from error
            raise
    missing = arrays.pop("missing", None)
    if not arrays:
        raise ValueError("it holds no array")
    if len(arrays) == 1:
        (values,) = arrays.values()
        return bands_first(values), None if missing is None else bands_first(missing), None
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        shown = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"several arrays must be bands [h, w] of equal size: {shown}")
    return numpy.stack(list(arrays.values())), missing, tuple(arrays)


def read_fits(path: Path, extension: str = "auto", plane: int | None = None) -> Values:
    """Return the image in an extension of a FITS file; raise ValueError if there is none.

    `plane` selects a plane of a cube, from 1.
    """
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            units = fits.open(path, memmap=False, lazy_load_hdus=False)
        except OSError as error:
            if "SIMPLE" in str(error):
                raise ValueError("it is not a FITS file") from error
            raise
        with units:
            unit = _image_unit(units, extension)
            header = unit.header.copy()  # reading the data removes the keywords of scaling
            try:
                values = numpy.asarray(unit.data)
            except (ValueError, TypeError) as error:
                raise ValueError(f"damaged: its data cannot be read ({error})") from error
    missing = None
    if "BLANK" in header and values.dtype.kind in "iu":
        # astropy sets BLANK to NaN, but not in unsigned integers, which are stored with a BZERO.
        missing = values == header["BLANK"] + int(header.get("BZERO", 0))
    while values.ndim > 3 and values.shape[0] == 1:
        values = values[0]
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise ValueError(f"its image has the axes {list(values.shape)}, not [height, width] or [planes, ...]")
    missing = None if missing is None else missing.reshape(values.shape)
    if plane is not None:
        if plane > len(values):
            raise ValueError(f"it has {len(values)} planes, so no plane {plane}")
        part = slice(plane - 1, plane)
        values, missing = values[part], None if missing is None else missing[part]
    return values, missing, None


def _image_unit(units: Any, extension: str) -> Any:
    """Return the extension with the image."""
    named = {str(place): unit for place, unit in enumerate(units)}
    images = {place: unit for place, unit in named.items() if unit.is_image and unit.header.get("NAXIS", 0) >= 2}
    if extension == "auto":
        if not images:
            raise ValueError("it has no image, only tables or empty extensions")
        return next(iter(images.values()))
    by_name = {unit.name.lower(): place for place, unit in reversed(named.items())}
    place = by_name.get(extension.lower(), extension)
    if place not in images:
        known = ", ".join(f"{place} ({unit.name})" if unit.name else place for place, unit in images.items())
        raise ValueError(f"it has no image in extension {extension}; its images: {known or 'none'}")
    return images[place]


def read_tiff(path: Path) -> Values:
    """Return the bands of the first image in a TIFF file; GDAL's nodata are missing."""
    import tifffile

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
    return values, missing, names if names is not None and len(names) == len(values) else None


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
    tag = page.tags.get(GDAL_METADATA)
    if tag is None:
        return None
    pattern = r'<Item name="DESCRIPTION" sample="(\d+)"[^>]*>([^<]*)</Item>'
    found = {int(number): unescape(text).strip() for number, text in re.findall(pattern, str(tag.value))}
    return tuple(found[number] for number in sorted(found)) if sorted(found) == list(range(len(found))) else None


def _pages(tags: Any) -> int:
    """Return the number of bands that tifffile has written as pages of their own, which it describes as a shape."""
    match = re.match(r'\{"shape": \[(\d+), (\d+), (\d+)\]', str(tags.get(DESCRIPTION, "")))
    is_stack = match is not None and (tags.get(LENGTH), tags.get(WIDTH)) == (int(match[2]), int(match[3]))
    return int(match[1]) if match is not None and is_stack else 1


def is_picture(path: Path) -> bool:
    """Return whether a TIFF file has at most 8 bits a value and four bands; True if it cannot be read at all."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        with open(path, "rb") as file:
            header = file.read(8)
            header += file.read(8) if b"\x2b" in header[2:4] else b""  # BigTIFF
            tags = ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            bits, formats = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(SAMPLE_FORMAT, (1,))
            bands = max(int(tags.get(SAMPLES_PER_PIXEL, 1)), _pages(tags))
            return max(bits) <= 8 and bands <= 4 and {*formats} <= {1, 4}
    except Exception:  # damaged files raise many types of errors, and so does reading them as pictures
        return True
