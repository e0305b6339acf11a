"""Raw values as floats in 0..1: bands, limits and curves of stretches, missing values, and shapes."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from astropy import visualization
from PIL import Image

from adaptkit.data.raw_values import Conversion, RawValuesError, zscale
from adaptkit.data.readers.decode import bands_first

RANDOM = numpy.random.default_rng(0)
FLOATS = RANDOM.normal(5, 2, (2, 8, 8)).astype(numpy.float32)
WHOLE = RANDOM.integers(0, 65536, (13, 8, 8)).astype(numpy.uint16)


def shares(values: Any, low: float, high: float) -> Any:
    return ((values.astype(numpy.float64) - low) / (high - low)).clip(0, 1)


@pytest.mark.parametrize(("kind", "white"), [("uint8", 255), ("uint16", 65535), (">u2", 65535), ("bool", 1)])
def test_linear_stretch_of_types_with_a_known_white(kind: str, white: int) -> None:
    values = RANDOM.integers(0, white + 1, (3, 8, 8)).astype(kind)
    expected = (values.astype(numpy.float64) / white).astype(numpy.float32)
    assert numpy.array_equal(Conversion(8)(values), expected)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint32", "float32", ">f8", "float16"])
def test_linear_stretch_between_the_limits_of_the_image(kind: str) -> None:
    values = RANDOM.integers(-100 if kind != "uint32" else 0, 100, (2, 8, 8)).astype(kind)
    expected = shares(values, float(values.min()), float(values.max())).astype(numpy.float32)
    assert numpy.array_equal(Conversion(8)(values), expected)


def test_all_16_bits_are_kept() -> None:
    result = Conversion(256)(numpy.arange(65536, dtype=numpy.uint16).reshape(256, 256))
    assert len(numpy.unique(result)) == 65536


@pytest.mark.parametrize("stretch", ["asinh", "log", "sqrt"])
def test_curves_are_those_of_astropy(stretch: str) -> None:
    curve = {
        "asinh": visualization.AsinhStretch(),
        "log": visualization.LogStretch(),
        "sqrt": visualization.SqrtStretch(),
    }[stretch]
    for limits in (None, (2.0, 9.0)):
        low, high = limits or (float(FLOATS.min()), float(FLOATS.max()))
        result = Conversion(8, stretch=stretch, limits=limits)(FLOATS)
        assert numpy.allclose(result, curve(shares(FLOATS, low, high)), atol=1e-6)
    # the limits are those of the image, not of the type
    assert Conversion(8, stretch=stretch)(WHOLE // 100).max() == 1


def test_percentiles_and_zscale() -> None:
    low, high = numpy.percentile(FLOATS, [1, 99])
    expected = shares(FLOATS, low, high).astype(numpy.float32)
    assert numpy.allclose(Conversion(8, stretch="percentile", limits=(1, 99))(FLOATS), expected, atol=1e-7)
    sky = RANDOM.normal(100, 3, (60, 70))
    sky[20:30, 20:30] += 5000
    assert zscale(sky.ravel()) == pytest.approx(visualization.ZScaleInterval().get_limits(sky))
    assert zscale(numpy.array([1.0, 5.0])) == (1.0, 5.0)
    result = Conversion(70, stretch="zscale", fit="pad")(sky)
    assert (result[0, 25:35, 20:30] == 1).all()


def test_values_without_a_stretch() -> None:
    values = RANDOM.random((1, 8, 8), dtype=numpy.float32)
    assert numpy.array_equal(Conversion(8, stretch="none")(values), values)
    with pytest.raises(RawValuesError, match=r"its values are from 0 to 200, not from 0 to 1; set image\.stretch"):
        Conversion(2, stretch="none")(numpy.array([[[0, 200], [0, 0]]]))


def test_missing_values() -> None:
    values = numpy.array([[[1.0, 2, numpy.nan], [4, 5, numpy.inf], [7, 8, 9]], [[11, 12, 13.0]] * 3])
    mask = numpy.zeros(values.shape, bool)
    mask[1, 0] = True
    zero = Conversion(3)(values, mask)
    assert zero[0, 0, 2] == zero[0, 1, 2] == 0 and (zero[1, 0] == 0).all()
    assert zero[0, 2, 2] == numpy.float32((9 - 1) / 12) and zero[1, 1, 2] == 1  # limits of values that are present
    median = Conversion(3, missing="median")(values, mask)
    assert median[0, 0, 2] == numpy.float32((5 - 1) / 12) and median[1, 0, 0] == numpy.float32((12 - 1) / 12)
    with pytest.raises(RawValuesError, match=r"5 of 18 values are missing; set image\.missing=zero or median"):
        Conversion(3, missing="error")(values, mask)
    with pytest.raises(RawValuesError, match="all its values are missing"):
        Conversion(3)(numpy.full((1, 3, 3), numpy.nan))
    assert not numpy.isnan(values[1]).any()
    assert (Conversion(3, missing="median")(numpy.stack([values[1], values[1] * numpy.nan]))[1] == 0).all()
    assert (Conversion(2)(numpy.full((1, 2, 2), 7.0)) == 0).all()  # an image of one value


def test_bands_by_number_and_by_name() -> None:
    every = Conversion(8)(WHOLE)
    assert numpy.array_equal(Conversion(8, bands=(13, 1))(WHOLE), every[[12, 0]])
    names = [f"B{number}" for number in range(13)]
    assert numpy.array_equal(Conversion(8, bands=("B3", "B2"))(WHOLE, None, names), every[[3, 2]])
    for bands, given, message in (
        ((14,), None, "it has 13 bands, so no band 14"),
        (("red",), None, r"its 13 bands have no names; choose numbers, as in image\.bands=1,2,3"),
        (("red",), names, "it has no band 'red'; its bands: B0, B1"),
    ):
        with pytest.raises(RawValuesError, match=message):
            Conversion(8, bands=bands)(WHOLE, None, given)  # type: ignore[arg-type]


def test_images_that_are_not_square() -> None:
    wide = numpy.zeros((1, 4, 8))
    wide[0, :, 2:6] = 1
    assert (Conversion(4)(wide) == 1).all()
    padded = Conversion(8, fit="pad")(wide)
    assert padded[0, 2:6, 2:6].min() == 1 and padded.sum() == 16
    assert numpy.allclose(Conversion(4, fit="stretch")(wide)[0, 0], [0, 1, 1, 0], atol=0.2)


@pytest.mark.parametrize("size", [5, 16, 30])
def test_resizing_is_that_of_pillow_in_float32(size: int) -> None:
    image = Image.fromarray(shares(FLOATS[0], FLOATS.min(), FLOATS.max()).astype(numpy.float32))
    expected = numpy.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    assert numpy.allclose(Conversion(size)(FLOATS)[0], expected, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (numpy.zeros(3), r"its values have the shape \[3\], not \[bands, height, width\]"),
        (numpy.zeros((1, 0, 3)), r"the shape \[1, 0, 3\]"),
        (numpy.zeros((1, 2, 2), complex), "its values are of type complex128, not numbers"),
        (numpy.array([["a"]]), "not numbers"),
        (numpy.array([[-1e308, 1e308]]), "a range that is too large"),
        (numpy.broadcast_to(numpy.uint8(0), (1, 10000, 10000)), "100,000,000 pixels, more than the safe maximum"),
    ],
)
def test_values_that_cannot_be_converted(values: Any, message: str) -> None:
    with pytest.raises(RawValuesError, match=message):
        Conversion(2)(values)


def test_description_makes_the_same_conversion() -> None:
    for conversion in (Conversion(4), Conversion(4, bands=("a", "b"), stretch="percentile", limits=(1, 99))):
        assert Conversion.of(conversion.described) == conversion


def test_bands_are_the_last_axis_if_it_is_the_shortest() -> None:
    assert bands_first(numpy.zeros((13, 8, 8))).shape == (13, 8, 8)
    assert bands_first(numpy.zeros((8, 9, 3))).shape == (3, 8, 9)
    assert bands_first(numpy.zeros((3, 8, 9))).shape == (3, 8, 9)
