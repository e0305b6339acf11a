"""Built-in shifts, which process a batch of images and draw a random amount for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from adaptkit.contracts import Shift

# Random numbers are drawn on the CPU, so that a seed gives the same images on every device.


@dataclass(frozen=True)
class Rotate:
    """Rotate each image by a random angle within ±DEGREES.

    The centre of the rotation is the centre of the image. Corners become black.
    """

    name: ClassVar[str] = "rotate"
    degrees: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)] = field(
        metadata={"help": "largest angle in either direction, in degrees"}
    )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return rotated copies, with nearest-neighbour interpolation like torchvision's RandomRotation."""
        if self.degrees == 0:
            return images.clone()
        return rotated(images, self.degrees * _symmetric(len(images), generator))


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise to each pixel and channel, then clamp."""

    name: ClassVar[str] = "noise"
    std: Annotated[float, Field(ge=0, allow_inf_nan=False)] = field(
        metadata={"help": "standard deviation (sigma); 1 is the range from black to white", "unit": "sigma"}
    )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return noisy copies."""
        if self.std == 0:
            return images.clone()
        import torch

        noise = torch.randn(images.shape, generator=generator).to(images)
        return (images + self.std * noise).clamp(0, 1)


@dataclass(frozen=True)
class Blur:
    """Blur each image by a Gaussian of random width up to SIGMA.

    The width is a standard deviation in pixels.
    """

    name: ClassVar[str] = "blur"
    sigma: Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)] = field(
        metadata={"help": "largest standard deviation (sigma), in pixels"}
    )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return blurred copies; pixels beyond the edges are reflections of the image."""
        if self.sigma == 0:
            return images.clone()
        import torch

        sigmas = self.sigma * torch.rand(len(images), generator=generator, dtype=torch.float64)
        return blurred(images, sigmas, reach=math.ceil(3 * self.sigma))


@dataclass(frozen=True)
class Contrast:
    """Scale the contrast by a random factor within 1±AMOUNT.

    The mean brightness of the image does not change, except by clamping.
    """

    name: ClassVar[str] = "contrast"
    amount: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = field(
        metadata={"help": "largest change of the factor in either direction"}
    )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return copies with changed contrast, clamped to 0..1."""
        if self.amount == 0:
            return images.clone()
        factors = (1 + self.amount * _symmetric(len(images), generator)).to(images).view(-1, 1, 1, 1)
        grey = (luminance(images) if images.shape[1] == 3 else images).mean(dim=(1, 2, 3), keepdim=True)
        return (grey + factors * (images - grey)).clamp(0, 1)


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Return images `[n, c, h, w]` rotated counter-clockwise by `degrees` `[n]` (float64, on the CPU)."""
    import torch
    from torch.nn.functional import grid_sample

    height, width = images.shape[-2:]
    radians = torch.deg2rad(degrees)
    cos, sin = radians.cos(), radians.sin()
    # Each row is the change of the sampled position for one pixel in x or y, in the units of grid_sample (-1..1). The
    # grid is in pixels, because other units would shear images that are not square.
    turn = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2).float()
    turn = (turn / turn.new_tensor([width / 2, height / 2])).to(images)
    y, x = (torch.linspace((1 - size) / 2, (size - 1) / 2, size) for size in (height, width))
    pixels = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).view(1, -1, 2).to(images)
    grid = (pixels @ turn).view(-1, height, width, 2)
    return grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def blurred(images: Tensor, sigmas: Tensor, reach: int) -> Tensor:
    """Return images `[n, c, h, w]` blurred by Gaussians of width `sigmas` `[n]` (float64, on the CPU), cut at `reach`.

    `reach` is the same for all images, so that an image does not depend on the widths of other images.
    """
    rows, columns = (_blur_matrices(sigmas, size, reach).to(images).unsqueeze(1) for size in images.shape[-2:])
    return rows @ images @ columns.mT


def _blur_matrices(sigmas: Tensor, size: int, reach: int) -> Tensor:
    """Return matrices `[n, size, size]`: row i holds the weights of all pixels of a line for the blurred pixel i."""
    import torch
    from torch.nn.functional import one_hot

    radius = min(reach, size - 1)  # at most one reflection, so that indices stay within small images
    offsets = torch.arange(-radius, radius + 1)
    # The bound avoids 0 / 0 for a width of (nearly) zero, which does not change the image.
    kernels = torch.exp(-(offsets**2) / (2 * sigmas[:, None] ** 2).clamp(min=1e-12))
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).float()
    sources = (offsets[:, None] + torch.arange(size)).abs()
    sources = torch.where(sources < size, sources, 2 * (size - 1) - sources)
    places = one_hot(sources, size).to(kernels)  # [offsets, size, size]: the pixel at each offset
    return torch.einsum("no,oij->nij", kernels, places)


def luminance(images: Tensor) -> Tensor:
    """Return the brightness `[n, 1, h, w]` of colour images `[n, 3, h, w]` (ITU-R BT.601)."""
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    brightness: Tensor = (images * weights).sum(dim=1, keepdim=True)
    return brightness


def _symmetric(count: int, generator: Generator) -> Tensor:
    """Draw numbers uniformly from -1 to 1."""
    import torch

    return 2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1


@hookimpl
def adaptkit_shifts() -> list[type[Shift]]:
    """Return the built-in shifts."""
    return [Rotate, Noise, Blur, Contrast]
