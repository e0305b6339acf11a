"""What a shift promises: each function tries one promise on images of one kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptkit.contracts import Shift
from adaptkit.testing.outcomes import CheckFailed, NotTried, listed, require, told, watched


@dataclass(frozen=True)
class Shifting:
    """A shift, made anew by `create()`, and the channels of the images that it is tried on."""

    create: Callable[[], Shift]
    channels: int

    def images(self) -> Tensor:
        """Return float images in 0..1."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(6, self.channels, 12, 12, generator=generator)

    def shifted(self, seed: int = 0) -> Tensor:
        """Return shifted images; raise NotTried where there are none."""
        try:
            with watched():
                return self.create().apply(self.images(), torch.Generator().manual_seed(seed))
        except Exception as error:
            raise NotTried("apply() fails") from error


def gives_images(shifting: Shifting) -> None:
    """As many images of the same shape and type, in 0..1."""
    images = shifting.images()
    try:
        with watched():
            shifted = shifting.create().apply(images, torch.Generator().manual_seed(0))
    except Exception as error:
        raise CheckFailed(f"apply() raises {told(error)}") from error
    require(shifted.shape == images.shape, f"{list(images.shape)} becomes {list(shifted.shape)}")
    require(shifted.dtype == images.dtype, f"{images.dtype} becomes {shifted.dtype}")
    inside = bool(((shifted >= 0) & (shifted <= 1)).all())
    require(inside, f"its values leave 0..1: {shifted.min().item():.3g} to {shifted.max().item():.3g}")


def changes_something(shifting: Shifting) -> None:
    """The images are not those that were given."""
    require(not torch.equal(shifting.shifted(), shifting.images()), "the images stay as they are")


def leaves_its_input(shifting: Shifting) -> None:
    """The images that were given are as they were."""
    shifting.shifted()
    images = shifting.images()
    with watched():
        shifting.create().apply(images, torch.Generator().manual_seed(0))
    require(torch.equal(images, shifting.images()), "it writes into the images that it is given")


def repeats_itself(shifting: Shifting) -> None:
    """The same generator gives the same images, and nothing is drawn elsewhere."""
    before = torch.get_rng_state()
    same = torch.equal(shifting.shifted(), shifting.shifted())
    unmoved = torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    require(same, "the same generator gives other images: draw from the generator that is given only")
    require(unmoved, "it draws from torch's global generator instead of the one that is given")


def touches_nothing_global(shifting: Shifting) -> None:
    """Nothing outside of the images changes."""
    shifting.shifted()  # what is imported for the first time is imported here
    with watched() as changes:
        shifting.create().apply(shifting.images(), torch.Generator().manual_seed(0))
    require(not changes, f"it changes {listed(changes)} for everybody in the process")


#: in the order in which they are told
CHECKS: dict[str, Callable[[Shifting], None]] = {
    "gives images": gives_images,
    "changes something": changes_something,
    "leaves its input": leaves_its_input,
    "repeats itself": repeats_itself,
    "touches nothing global": touches_nothing_global,
}
