"""Shifts that make more of few training images: mirror images and parts of them, drawn anew for each image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from adaptkit.contracts import Shift

# As in shifts.py, every draw is made on the CPU, whatever the images are on.


@dataclass(frozen=True)
class Flip:
    """Mirror images, left to right, with a probability."""

    name: ClassVar[str] = "flip"
    probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = field(
        metadata={"help": "share of the images that are mirrored"}
    )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return copies, some of them mirrored."""
        if self.probability == 0:
            return images.clone()
        import torch

        mirrored = torch.rand(len(images), generator=generator, dtype=torch.float64) < self.probability
        return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


@dataclass(frozen=True)
class Crop:
    """Cut a square out of each image, its side drawn from share to all of the image's, and enlarge it to full size."""

    name: ClassVar[str] = "crop"
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = field(
        metadata={"help": "smallest share of the side that is kept"}
    )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return enlarged parts, bilinearly; where they are cut out is uniform too."""
        if self.share == 1:
            return images.clone()
        import torch

        draws = torch.rand(len(images), 3, generator=generator, dtype=torch.float64)
        sides = 1 - (1 - self.share) * draws[:, 0]
        return cropped(images, sides, (1 - sides)[:, None] * draws[:, 1:])


def cropped(images: Tensor, sides: Tensor, corners: Tensor) -> Tensor:
    """Return parts of images `[n, c, h, w]`, enlarged to their size.

    `sides` `[n]` and the upper left `corners` `[n, 2]`, x before y, are shares of the width and the height (float64, on
    the CPU).
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    # From -1 to 1, as grid_sample counts, the middle of a part is at twice its corner, plus its side, less one.
    middles = 2 * corners + sides[:, None] - 1
    scales = torch.eye(2, dtype=torch.float64) * sides.view(-1, 1, 1)
    places = torch.cat([scales, middles[:, :, None]], dim=2).to(images)
    grid = affine_grid(places, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@hookimpl
def adaptkit_shifts() -> list[type[Shift]]:
    """Offer flip and crop."""
    return [Flip, Crop]
