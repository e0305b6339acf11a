"""Checks of a shift on grey and colour images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptkit.contracts import Shift
from adaptkit.errors import listed
from adaptkit.testing.outcomes import CheckFailed, NotTried, described, require, watched


@dataclass(frozen=True)
class Shifting:
    """A shift, created by `create()`, and the channels of its test images."""

    create: Callable[[], Shift]
    channels: int

    def images(self) -> Tensor:
        """Return float images in 0..1."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(6, self.channels, 12, 12, generator=generator)

    def shifted(self, seed: int = 0) -> Tensor:
        """Return shifted images; raise NotTried if `apply` fails."""
        try:
            with watched():
                return self.create().apply(self.images(), torch.Generator().manual_seed(seed))
        except Exception as error:
            raise NotTried("apply() fails") from error


def gives_images(shifting: Shifting) -> None:
    """Check that the number, shape and type of images stay the same, with values in 0..1."""
    images = shifting.images()
    try:
        with watched():
            shifted = shifting.create().apply(images, torch.Generator().manual_seed(0))
    except Exception as error:
        raise CheckFailed(f"apply() raises {described(error)}") from error
    require(shifted.shape == images.shape, f"it changes the shape from {list(images.shape)} to {list(shifted.shape)}")
    require(shifted.dtype == images.dtype, f"it changes the type from {images.dtype} to {shifted.dtype}")
    inside = bool(((shifted >= 0) & (shifted <= 1)).all())
    require(inside, f"its values are not in 0..1: {shifted.min().item():.3g} to {shifted.max().item():.3g}")


def changes_something(shifting: Shifting) -> None:
    """Check that the images change."""
    require(not torch.equal(shifting.shifted(), shifting.images()), "it does not change the images")


def leaves_its_input(shifting: Shifting) -> None:
    """Check that the input tensor is not changed."""
    shifting.shifted()
    images = shifting.images()
    with watched():
        shifting.create().apply(images, torch.Generator().manual_seed(0))
    require(torch.equal(images, shifting.images()), "it changes its input in place; return a copy")


def repeats_itself(shifting: Shifting) -> None:
    """Check that the same generator gives the same images, and that no other generator is used."""
    before = torch.get_rng_state()
    same = torch.equal(shifting.shifted(), shifting.shifted())
    unmoved = torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    require(same, "the same generator gives different images; use only the generator of apply()")
    require(unmoved, "it uses torch's global generator; use the generator of apply()")


def changes_no_global_state(shifting: Shifting) -> None:
    """Check that no global state changes."""
    shifting.shifted()  # imports happen here, before global state is compared
    with watched() as changes:
        shifting.create().apply(shifting.images(), torch.Generator().manual_seed(0))
    require(not changes, f"it changes {listed(changes)} for the whole process")


#: in the order of the output
CHECKS: dict[str, Callable[[Shifting], None]] = {
    "gives images": gives_images,
    "changes something": changes_something,
    "leaves its input": leaves_its_input,
    "repeats itself": repeats_itself,
    "changes no global state": changes_no_global_state,
}
