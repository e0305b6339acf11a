"""Shifts for augmentation: random mirror images, symmetries of a square, and enlarged crops."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from adaptkit.contracts import Shift

# As in shifts.py, random numbers are drawn on the CPU, so that a seed gives the same images on every device.


@dataclass(frozen=True)
class Flip:
    """Mirror images left to right with a probability."""

    name: ClassVar[str] = "flip"
    probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = field(
        metadata={"help": "probability that an image is mirrored"}
    )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return copies of the images, some of them mirrored."""
        if self.probability == 0:
            return images.clone()
        import torch

        mirrored = torch.rand(len(images), generator=generator, dtype=torch.float64) < self.probability
        return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


@dataclass(frozen=True)
class D4:
    """Turn and mirror images by the eight symmetries of a square; for images without an up or a left.

    Pixels keep their values. The symmetries form the dihedral group D4.
    """

    name: ClassVar[str] = "d4"
    probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = field(
        default=1.0, metadata={"help": "probability that an image gets one of the eight symmetries, all equally likely"}
    )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return copies of the images, each under a random symmetry."""
        import torch

        draws = torch.rand(len(images), 2, generator=generator, dtype=torch.float64)
        chosen = torch.where(draws[:, 0] < self.probability, (8 * draws[:, 1]).long(), 0)
        turned = images.clone()
        for symmetry in range(1, 8):
            rows = (chosen == symmetry).nonzero().flatten().to(images.device)
            mirrored = images[rows].flip(-1) if symmetry >= 4 else images[rows]
            turned[rows] = mirrored.rot90(symmetry % 4, (-2, -1))
        return turned


@dataclass(frozen=True)
class Crop:
    """Enlarge a random part of each image to full size.

    The sides of the part are from `share` to 1 times the sides of the image.
    """

    name: ClassVar[str] = "crop"
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = field(
        metadata={"help": "smallest side of the part, as a share of the image"}
    )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return parts at uniform random positions, enlarged by bilinear interpolation."""
        if self.share == 1:
            return images.clone()
        import torch

        draws = torch.rand(len(images), 3, generator=generator, dtype=torch.float64)
        sides = 1 - (1 - self.share) * draws[:, 0]
        return cropped(images, sides, (1 - sides)[:, None] * draws[:, 1:])


def cropped(images: Tensor, sides: Tensor, corners: Tensor) -> Tensor:
    """Return parts of images `[n, c, h, w]`, enlarged to full size.

    `sides` `[n]` and the upper left `corners` `[n, 2]`, x before y, are shares of the width and the height (float64, on
    the CPU).
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    # In the coordinates of grid_sample, from -1 to 1, the middle of a part is 2 * corner + side - 1.
    middles = 2 * corners + sides[:, None] - 1
    scales = torch.eye(2, dtype=torch.float64) * sides.view(-1, 1, 1)
    transforms = torch.cat([scales, middles[:, :, None]], dim=2).to(images)
    grid = affine_grid(transforms, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@hookimpl
def adaptkit_shifts() -> list[type[Shift]]:
    """Return the shifts `flip`, `d4` and `crop`."""
    return [Flip, D4, Crop]
