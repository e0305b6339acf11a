"""Built-in shifts: their random amounts and their effect on images."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torchvision.transforms.v2 import functional as reference

from adaptkit.data.sets.mnist5k import Mnist5k
from adaptkit.data.shifts import Blur, Contrast, Noise, Rotate, blurred, luminance, rotated
from adaptkit.data.views import CHUNK, shifted_views
from adaptkit.errors import BadInput
from adaptkit.plugins.components import options_of
from adaptkit.plugins.loading import load_plugins

SHIFTS = {"rotate": Rotate, "noise": Noise, "blur": Blur, "contrast": Contrast}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images(count=8, channels=1, height=28, width=28):
    return torch.rand(count, channels, height, width, generator=seeded(9))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    pixels = Mnist5k().load(tmp_path_factory.mktemp("unused")).train.pixels
    return pixels[:: len(pixels) // 64][:64]


def test_plugin_modules_import_no_heavy_packages():
    code = (
        "import sys, adaptkit.data.sets.mnist5k, adaptkit.data.sets.digits\n"
        "import adaptkit.data.sets.torchvision_sets, adaptkit.data.shifts\n"
        "print(sorted({'torch', 'torchvision', 'numpy', 'sklearn', 'mlxtend', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_built_in_shifts():
    offers = load_plugins().components["shift"]
    amounts = {name: list(options_of(offers[name].cls).items()) for name in SHIFTS}
    helps = {name: (field, details.metadata["help"]) for name, [(field, details)] in amounts.items()}
    assert helps == {
        "rotate": ("degrees", "largest angle in either direction, in degrees"),
        "noise": ("std", "standard deviation (sigma); 1 is the range from black to white"),
        "blur": ("sigma", "largest standard deviation (sigma), in pixels"),
        "contrast": ("amount", "largest change of the factor in either direction"),
    }
    assert all(offers[name].summary.endswith(".") for name in SHIFTS)


@pytest.mark.parametrize(
    ("cls", "field", "most"),
    [(Rotate, "degrees", 180), (Noise, "std", 1e6), (Blur, "sigma", 20), (Contrast, "amount", 1)],
)
def test_bounds_of_amounts(cls, field, most):
    adapter = TypeAdapter(cls)
    assert adapter.validate_python({field: "0"}) == cls(0.0)
    assert adapter.validate_python({field: most}) == cls(most)
    refused = ["x", -0.1, math.nan, math.inf] + ([most + 0.1] if cls is not Noise else [])
    for amount in refused:
        with pytest.raises(ValidationError):
            adapter.validate_python({field: amount})
    with pytest.raises(ValidationError):
        adapter.validate_python({})


@pytest.mark.parametrize("shape", [(28, 28), (20, 31), (7, 64), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_rotation_equals_torchvision(shape, channels):
    angles = [-180.0, -45.0, -13.7, 0.0, 0.5, 30.0, 45.0, 137.2, 180.0]
    if (
        shape[0] - shape[1]
    ) % 2 == 0:  # otherwise positions are between two pixels, and rounding depends on the processor
        angles += [-90.0, 90.0]
    images = some_images(len(angles), channels, *shape) + 0.01
    ours = rotated(images, torch.tensor(angles, dtype=torch.float64))
    for image, angle, result in zip(images, angles, ours, strict=True):
        assert torch.equal(result, reference.rotate(image, angle)), angle


def test_rotation_direction_and_black_corners():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 2] = 1
    assert rotated(image, torch.tensor([90.0]).double())[0, 0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    white = torch.ones(1, 1, 28, 28)
    turned = rotated(white, torch.tensor([45.0]).double())
    assert turned[0, 0, 0, 0] == 0 and turned[0, 0, 14, 14] == 1 and set(turned.unique().tolist()) == {0.0, 1.0}


def test_rotation_angles_are_uniform():
    # A bright pixel far from the centre shows the angle of rotation.
    images = torch.zeros(1000, 1, 101, 101)
    images[:, 0, 48:53, 94:99] = 1
    turned = Rotate(40.0).apply(images, seeded())[:, 0]
    ramp = torch.arange(101.0) - 50
    mass = turned.sum(dim=(1, 2))
    angles = torch.rad2deg(torch.atan2(-(turned.sum(2) @ ramp) / mass, (turned.sum(1) @ ramp) / mass))
    assert -41 < angles.min() < -39 and 39 < angles.max() < 41
    assert abs(angles.mean()) < 2 and abs(angles.std() - 40 / math.sqrt(3)) < 1.5
    assert ((angles > 0).float().mean() - 0.5).abs() < 0.05


def test_noise_standard_deviation_and_clamping():
    grey = torch.full((50, 1, 28, 28), 0.5)
    noise = Noise(0.1).apply(grey, seeded()) - 0.5
    assert abs(noise.mean()) < 0.002 and abs(noise.std() - 0.1) < 0.002
    loud = Noise(3.0).apply(grey, seeded())
    assert loud.min() == 0 and loud.max() == 1
    expected = (grey + 0.3 * torch.randn(grey.shape, generator=seeded(4))).clamp(0, 1)
    assert torch.equal(Noise(0.3).apply(grey, seeded(4)), expected)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(28, 28), (16, 23)])
def test_blur_equals_torchvision(sigma, shape):
    reach = math.ceil(3 * sigma)
    images = some_images(4, 3, *shape)
    kernel = [2 * reach + 1] * 2
    ours = blurred(images, torch.full((4,), sigma, dtype=torch.float64), reach)
    torch.testing.assert_close(ours, reference.gaussian_blur(images, kernel, [sigma] * 2), atol=2e-6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2), (3, 28)])
def test_blur_of_small_constant_images(shape):
    images = torch.full((6, 1, *shape), 0.25)
    torch.testing.assert_close(Blur(20.0).apply(images, seeded()), images)


def test_blur_widths():
    images = torch.zeros(500, 1, 28, 28)
    images[:, :, 14, 14] = 1
    results = Blur(2.0).apply(images, seeded())
    peaks = results[:, 0, 14, 14]
    torch.testing.assert_close(results.sum(dim=(1, 2, 3)), torch.ones(500))
    assert peaks.max() > 0.95 and peaks.unique().numel() > 400
    assert peaks.min() == pytest.approx(1 / (2 * math.pi * 2.0**2), rel=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_equals_torchvision(channels):
    images = some_images(6, channels)
    results = Contrast(0.8).apply(images, seeded(3))
    draws = torch.rand(6, generator=seeded(3), dtype=torch.float64)
    factors = 1 + 0.8 * (2 * draws - 1)
    for image, factor, result in zip(images, factors.tolist(), results, strict=True):
        torch.testing.assert_close(result, reference.adjust_contrast(image, factor), atol=2e-4, rtol=0)
    assert results.min() >= 0 and results.max() <= 1


def test_contrast_factors_are_uniform():
    images = torch.full((2000, 1, 2, 2), 0.5)
    images[:, 0, 0] = 0.6
    images[:, 0, 1] = 0.4
    factors = (Contrast(0.5).apply(images, seeded())[:, 0, 0, 0] - 0.5) / 0.1
    assert factors.min() > 0.5 - 1e-4 and factors.max() < 1.5 + 1e-4
    assert abs(factors.mean() - 1) < 0.02 and abs(factors.std() - 0.5 / math.sqrt(3)) < 0.02


def test_luminance_weights():
    assert luminance(torch.eye(3).view(3, 3, 1, 1)).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


@pytest.mark.parametrize("cls", SHIFTS.values())
def test_zero_amount_is_the_identity(cls):
    images = some_images()
    result = cls(0.0).apply(images, seeded())
    assert torch.equal(result, images) and result.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("shift", [Rotate(45.0), Noise(0.3), Blur(2.0), Contrast(0.5)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_has_its_own_random_amount(shift, channels):
    before = some_images(1, channels)
    images = before.repeat(16, 1, 1, 1)
    results = shift.apply(images, seeded())
    assert len({result.numpy().tobytes() for result in results}) == 16
    assert torch.equal(images, before.repeat(16, 1, 1, 1))  # not changed in place
    assert results.shape == images.shape and results.dtype == torch.float32
    assert torch.equal(results, shift.apply(images, seeded()))
    assert not torch.equal(results, shift.apply(images, seeded(1)))


@pytest.mark.parametrize("shift", [Rotate(45.0), Noise(0.3), Blur(2.0), Contrast(0.5)], ids=str)
def test_only_the_generator_is_used(shift):
    torch.manual_seed(1)
    first = shift.apply(some_images(), seeded())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(shift.apply(some_images(), seeded()), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_views_without_shifts(digits):
    views = shifted_views(digits, (), seed=3)
    assert views.dtype == torch.float32 and torch.equal(views, digits / 255)
    assert views.min() == 0 and views.max() == 1


def test_views_repeat_with_the_seed(digits):
    shifts = [Rotate(45.0), Noise(0.3)]
    views = shifted_views(digits, shifts, seed=3)
    assert torch.equal(views, shifted_views(digits, shifts, seed=3))
    assert not torch.equal(views, shifted_views(digits, shifts, seed=4))
    assert not torch.equal(views, shifted_views(digits, shifts[::-1], seed=3))
    assert views.min() == 0 and views.max() == 1


def test_views_do_not_depend_on_later_images(digits):
    shifts = [Rotate(45.0), Noise(0.3), Blur(1.0), Contrast(0.5)]
    views = shifted_views(digits, shifts, seed=3)
    assert torch.equal(shifted_views(digits[:10], shifts, seed=3), views[:10])


def test_views_differ_between_chunks():
    pixels = torch.full((2 * CHUNK + 5, 1, 4, 4), 128, dtype=torch.uint8)
    views = shifted_views(pixels, [Noise(0.2)], seed=0)
    assert len({view.numpy().tobytes() for view in views}) == len(pixels)
    assert torch.equal(views[:CHUNK], shifted_views(pixels[:CHUNK], [Noise(0.2)], seed=0))


def test_shifts_draw_independently(digits):
    plain, none = (shifted_views(digits, [Noise(std), Rotate(45.0)], seed=0) for std in (1e-6, 0.0))
    torch.testing.assert_close(plain, none, atol=1e-4, rtol=0)


def test_shift_that_changes_the_shape(digits):
    class Crop:
        name = "crop"

        def apply(self, images, generator):
            return images[..., 1:]

    with pytest.raises(BadInput) as caught:
        shifted_views(digits[:2], [Crop()], seed=0)
    assert str(caught.value) == "shift crop: changed the shape of images from [2, 1, 28, 28] to [2, 1, 28, 27]"
