"""Flip and crop: their random amounts and their effect on images."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from adaptkit.contracts import Shift
from adaptkit.data.augmentations import Crop, Flip, cropped
from adaptkit.data.views import shifted_views
from adaptkit.plugins.components import options_of
from adaptkit.plugins.loading import load_plugins

SHIFTS = [Flip(0.5), Crop(0.4)]


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int = 8, channels: int = 3, height: int = 20, width: int = 28) -> Tensor:
    return torch.rand(count, channels, height, width, generator=seeded(9))


def test_built_in_augmentations() -> None:
    offers = load_plugins().components["shift"]
    amounts = {name: list(options_of(offers[name].cls).items()) for name in ("flip", "crop")}
    assert {name: (field, details.metadata["help"]) for name, [(field, details)] in amounts.items()} == {
        "flip": ("probability", "probability that an image is mirrored"),
        "crop": ("share", "smallest side of the part, as a share of the image"),
    }


@pytest.mark.parametrize(("cls", "field", "least"), [(Flip, "probability", 0), (Crop, "share", 0.01)])
def test_bounds_of_amounts(cls: type[Shift], field: str, least: float) -> None:
    adapter = TypeAdapter(cls)
    assert adapter.validate_python({field: str(least)}) == cls(least)
    assert adapter.validate_python({field: 1}) == cls(1.0)
    for amount in ("x", -0.1, 1.1, math.nan, math.inf, *([0] if cls is Crop else [])):
        with pytest.raises(ValidationError):
            adapter.validate_python({field: amount})


def test_flip() -> None:
    images = some_images(2000, 1, 2, 3)
    results = Flip(0.3).apply(images, seeded())
    mirrored = (results == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(results[~mirrored], images[~mirrored])
    assert mirrored.float().mean() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(Flip(1.0).apply(images, seeded()), images.flip(-1))


@pytest.mark.parametrize(("x", "y", "width", "height"), [(0, 0, 14, 10), (14, 10, 14, 10), (7, 5, 14, 10)])
def test_crop(x: int, y: int, width: int, height: int) -> None:
    images = some_images(2)
    sides = torch.full((2,), width / 28, dtype=torch.float64)
    corners = torch.tensor([[x / 28, y / 20]] * 2, dtype=torch.float64)
    part = images[:, :, y : y + height, x : x + width]
    expected = interpolate(part, size=(20, 28), mode="bilinear")
    # At its edges a crop uses pixels outside of it, and interpolate does not.
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(cropped(images, sides, corners)[inner], expected[inner], atol=1e-5, rtol=0)


def test_crop_sizes_and_positions_are_uniform() -> None:
    # Brightness encodes the position: horizontal in one channel, vertical in the other.
    images = torch.zeros(3000, 2, 40, 40)
    images[:, 0] = (torch.arange(40.0) + 0.5) / 40
    images[:, 1] = ((torch.arange(40.0) + 0.5) / 40)[:, None]
    results = Crop(0.4).apply(images, seeded())
    left, right = results[:, 0, 20, 1], results[:, 0, 20, -2]
    top, bottom = results[:, 1, 1, 20], results[:, 1, -2, 20]
    sides = (right - left) * 40 / 37
    torch.testing.assert_close(sides, (bottom - top) * 40 / 37, atol=0.03, rtol=0)
    assert 0.39 < sides.min() < 0.42 and sides.max() > 0.95
    assert sides.mean() == pytest.approx(0.7, abs=0.01)
    for low, high in ((left, right), (top, bottom)):
        assert low.min() < 0.03 and high.max() > 0.97
        assert ((low + high) / 2).mean() == pytest.approx(0.5, abs=0.01)


def test_zero_amount_is_the_identity() -> None:
    images = some_images()
    for shift in (Flip(0.0), Crop(1.0)):
        result = shift.apply(images, seeded())
        assert torch.equal(result, images) and result.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_has_its_own_random_amount(shift: Shift, channels: int) -> None:
    before = some_images(1, channels)
    images = before.repeat(16, 1, 1, 1)
    results = shift.apply(images, seeded())
    assert len({result.numpy().tobytes() for result in results}) == (2 if isinstance(shift, Flip) else 16)
    assert torch.equal(images, before.repeat(16, 1, 1, 1))  # not changed in place
    assert results.shape == images.shape and results.dtype == torch.float32
    assert results.min() >= 0 and results.max() <= 1
    assert torch.equal(results, shift.apply(images, seeded()))
    assert not torch.equal(results, shift.apply(images, seeded(1)))


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
def test_only_the_generator_is_used(shift: Shift) -> None:
    state = torch.get_rng_state()
    first = shift.apply(some_images(), seeded())
    torch.manual_seed(2)
    assert torch.equal(shift.apply(some_images(), seeded()), first)
    torch.set_rng_state(state)


def test_views_do_not_depend_on_later_images() -> None:
    pixels = (some_images(40) * 255).to(torch.uint8)
    views = shifted_views(pixels, SHIFTS, seed=3)
    torch.testing.assert_close(shifted_views(pixels[:7], SHIFTS, seed=3), views[:7], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 224])
def test_crop_of_any_size(size: int) -> None:
    grey = torch.full((2, 3, size, size), 0.25)
    torch.testing.assert_close(Crop(0.1).apply(grey, seeded()), grey)
