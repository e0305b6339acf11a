"""Readers of FITS, TIFF and NumPy files: kinds of files that are read, and files that are refused with a reason."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import tifffile
from astropy.io import fits
from PIL import Image

from adaptkit.contracts import Reading
from adaptkit.data.readers.decode import is_picture
from adaptkit.data.readers.files import raw_files
from adaptkit.data.readers.fits import Fits
from adaptkit.data.readers.tiff import Tiff
from adaptkit.data.sets.read_picture import UnreadableError

FLOATS = numpy.random.default_rng(0).normal(0, 1, (8, 8)).astype(numpy.float32)
BANDS = numpy.random.default_rng(0).integers(0, 9000, (13, 8, 8)).astype(numpy.uint16)
SMALL = (BANDS // 64).astype(numpy.uint8)


def test_fits_of_scaled_integers_and_blank_values(own_folder: Path) -> None:
    stored = numpy.arange(9, dtype=numpy.int16).reshape(3, 3)
    unit = fits.PrimaryHDU(stored)
    unit.header["BLANK"] = 4
    unit.writeto("whole.fits")
    raster = Fits().read(Path("whole.fits"))
    assert numpy.isnan(raster.values).sum() == 1 and raster.values[0, 2, 2] == 8
    unit.header["BSCALE"], unit.header["BZERO"] = 0.5, 100.0
    unit.writeto("scaled.fits")
    scaled = Fits().read(Path("scaled.fits"))
    assert numpy.isnan(scaled.values[0, 1, 1]) and scaled.values[0, 2, 2] == 104
    unit = fits.PrimaryHDU(numpy.array([[0, 65535]], numpy.uint16))
    unit.header["BLANK"] = -32768
    unit.writeto("unsigned.fits")
    raster = Fits().read(Path("unsigned.fits"))
    assert raster.values.tolist() == [[[0, 65535]]] and raster.values.dtype == numpy.uint16
    assert raster.missing is not None and raster.missing.tolist() == [[[True, False]]]
    cube = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(numpy.arange(24.0).reshape(2, 3, 4), name="SCI")])
    cube.writeto("cube.fits")
    assert Fits().read(Path("cube.fits")).values.shape == (2, 3, 4)
    assert Fits(extension="sci", plane=2).read(Path("cube.fits")).values.min() == 12
    with pytest.raises(ValueError, match="it has 2 planes, so no plane 3"):
        Fits(plane=3).read(Path("cube.fits"))
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(stored.astype("float32"))]).writeto("packed.fits")
    assert Fits().read(Path("packed.fits")).values.shape == (1, 3, 3)


@pytest.mark.parametrize("layout", ["planar", "interleaved", "pages", "unnamed", "big", "compressed"])
def test_tiff_of_many_bands(layout: str, own_folder: Path) -> None:
    values = numpy.random.default_rng(0).integers(1, 60000, (13, 20, 24)).astype(numpy.uint16)
    values[3, 4, 5] = 0
    options: dict[str, Any] = {
        "planar": {"planarconfig": "separate", "photometric": "minisblack"},
        "interleaved": {"planarconfig": "contig", "photometric": "minisblack"},
        "big": {"bigtiff": True},
        "compressed": {"compression": "lzw", "predictor": True},
    }.get(layout, {})
    written = numpy.moveaxis(values, 0, -1) if layout in ("interleaved", "unnamed") else values
    names = "".join(f'<Item name="DESCRIPTION" sample="{n}" role="description">B{n}</Item>' for n in range(13))
    tags = [(42113, "s", 0, "0", True), (42112, "s", 0, f"<GDALMetadata>{names}</GDALMetadata>", True)]
    tifffile.imwrite("bands.tif", written, extratags=tags, **options)
    assert not is_picture(Path("bands.tif"))
    raster = Tiff().read(Path("bands.tif"))
    assert numpy.array_equal(raster.values, values)
    assert raster.missing is not None and numpy.array_equal(raster.missing, values == 0)
    assert raster.bands == tuple(f"B{number}" for number in range(13))


@pytest.mark.parametrize(
    ("kind", "bands", "expected"),
    [
        ("uint8", 1, True),
        ("uint8", 3, True),
        ("uint8", 4, True),
        ("uint8", 5, False),
        ("uint16", 1, False),
        ("float32", 1, False),
    ],
)
def test_which_tiff_files_are_pictures(kind: str, bands: int, expected: bool, own_folder: Path) -> None:
    values = numpy.zeros((8, 8, bands) if bands > 1 else (8, 8), kind)
    options: Any = {"photometric": "minisblack", "planarconfig": "contig"} if bands > 1 else {}
    tifffile.imwrite("one.tif", values, **options)
    assert is_picture(Path("one.tif")) is expected
    Path("broken.tif").write_bytes(Path("one.tif").read_bytes()[:6])
    assert is_picture(Path("broken.tif"))


def test_pages_of_8_bits_are_bands(own_folder: Path) -> None:
    tifffile.imwrite("pages.tif", SMALL)
    assert not is_picture(Path("pages.tif"))
    assert numpy.array_equal(raw_files(Reading(8)).raster(Path("pages.tif")).values, SMALL)
    tifffile.imwrite("colours.tif", numpy.zeros((8, 8, 3), numpy.uint8))
    assert is_picture(Path("colours.tif"))


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def saved(**arrays: Any) -> Callable[[Path], object]:
    return lambda path: numpy.savez(path, **arrays)


def in_numpy(values: Any, **options: Any) -> Callable[[Path], object]:
    return lambda path: numpy.save(path, values, **options)


def in_fits(values: Any) -> Callable[[Path], object]:
    return lambda path: fits.writeto(path, values)


def in_tiff(values: Any, **options: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, values, **options)


NOT_NUMBERS = "it is not an array of numbers in NumPy's format"


@pytest.mark.parametrize(
    ("name", "write", "shape"),
    [
        ("big-endian.fits", in_fits(FLOATS.astype(">f8")), (1, 8, 8)),
        ("whole.fits", in_fits(BANDS[0].astype(">i2")), (1, 8, 8)),
        ("one-plane.fits", in_fits(FLOATS[None, None]), (1, 8, 8)),
        ("big-endian.tif", in_tiff(BANDS, byteorder=">", photometric="minisblack"), (13, 8, 8)),
        ("floats.tif", in_tiff(FLOATS), (8, 8)),
        ("colours.tif", in_tiff(numpy.moveaxis(BANDS[:3], 0, -1), photometric="rgb"), (3, 8, 8)),
        ("tiles.tif", in_tiff(BANDS, photometric="minisblack", tile=(16, 16), compression="zstd"), (13, 8, 8)),
        ("named.ome.tif", in_tiff(BANDS, metadata={"axes": "CYX"}), (13, 8, 8)),
        ("complex-order.npy", in_numpy(numpy.asfortranarray(FLOATS)), (8, 8)),
        ("half.npy", in_numpy(FLOATS.astype(numpy.float16)), (8, 8)),
        ("picture.tif", lambda path: Image.new("RGB", (9, 9)).save(path, "PNG"), (3, 9, 9)),
        ("palette.png", lambda path: Image.new("P", (9, 9)).save(path), (3, 9, 9)),
        ("sixteen.png", lambda path: Image.fromarray(BANDS[0]).save(path), (1, 8, 8)),
    ],
)
def test_odd_files_are_read(name: str, write: Callable[[Path], object], shape: Any, own_folder: Path) -> None:
    write(Path(name))
    raw = raw_files(Reading(8))
    assert raw.raster(Path(name)).values.reshape(-1, *shape[-2:]).shape == (shape if len(shape) == 3 else (1, *shape))
    values, _ = raw.read(Path(name))
    assert values.dtype == numpy.float32 and 0 <= values.min() <= values.max() <= 1


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("empty.fits", written(b""), "Empty or corrupt FITS file"),
        ("text.fits", written(b"hello"), "it is not a FITS file"),
        ("table.fits", lambda path: fits.HDUList([fits.PrimaryHDU()]).writeto(path), "it has no image, only tables or"),
        ("line.fits", in_fits(FLOATS[0]), "it has no image, only tables or empty extensions"),
        ("cubes.fits", in_fits(numpy.zeros((3, 2, 4, 4))), "its image has the axes [3, 2, 4, 4], not [height, width]"),
        ("broken.fits.gz", written(gzip.compress(bytes(9999))[:20]), "Empty or corrupt FITS file"),
        ("objects.npy", in_numpy(numpy.array([1, "a"], object), allow_pickle=True), NOT_NUMBERS),
        ("pickle.npy", written(pickle.dumps([1])), NOT_NUMBERS),
        ("table.npz", written(b"file,class"), NOT_NUMBERS),
        ("broken.npz", written(b"PK\x03\x04junk"), "damaged: File is not a zip file"),
        ("none.npz", saved(), "it holds no array"),
        (
            "mixed.npz",
            saved(r=FLOATS, g=FLOATS[:3]),
            "several arrays must be bands [h, w] of equal size: r [8, 8]",
        ),
        ("mask.npz", saved(image=FLOATS, missing=FLOATS[:2] > 0), "its mask has the shape [1, 2, 8], and its values"),
        ("complex.npy", in_numpy(FLOATS.astype(complex)), "its values are of type complex128, not numbers"),
        ("dates.npy", in_numpy(numpy.zeros((3, 3), "M8[s]")), "its values are of type datetime64[s], not numbers"),
        ("number.npy", in_numpy(numpy.float32(3)), "its values have the shape [], not [bands, height, width]"),
        ("fits.png", in_fits(FLOATS), "not a picture in a known format"),
        ("folder.fits", lambda path: path.mkdir(), "not a file"),
        ("link.fits", lambda path: path.symlink_to("nowhere"), "there is no such file"),
    ],
)
def test_odd_files_are_refused(name: str, write: Callable[[Path], object], reason: str, own_folder: Path) -> None:
    if name == "fits.png":
        fits.writeto("other.fits", FLOATS)
        Path("other.fits").rename(name)
    else:
        write(Path(name))
    with pytest.raises(UnreadableError) as caught:
        raw_files(Reading(8)).read(Path(name))
    assert str(caught.value).startswith(reason)


def test_truncated_files_are_refused(own_folder: Path) -> None:
    fits.writeto("a.fits", FLOATS)
    tifffile.imwrite("a.tif", BANDS, photometric="minisblack")
    numpy.save("a.npy", FLOATS)
    for name, length in (("a.fits", 3000), ("a.tif", 300), ("a.npy", 300)):
        Path(name).write_bytes(Path(name).read_bytes()[:length])
        with pytest.raises(UnreadableError, match=r"damaged|failed to read|Failed to read"):
            raw_files(Reading(8)).read(Path(name))
