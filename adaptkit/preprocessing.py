"""Bring what a user has, files, pictures or tensors, to what a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from adaptkit.data.shifts import luminance
from adaptkit.errors import BadInput


@dataclass(frozen=True)
class Preprocessing:
    """Make float images `[n, channels, size, size]` in 0..1, as in training; models normalise them themselves."""

    channels: int
    size: int

    def __call__(self, things: Any) -> Tensor:
        """Return a path, a PIL image, a uint8 or float tensor, or a list of them, as one batch.

        Tensors are `[c, h, w]`, `[n, c, h, w]` or, if grey, `[h, w]`; floats are in 0..1. Raises BadInput.
        """
        items = list(things) if isinstance(things, list | tuple) else [things]
        if not items:
            raise BadInput("there is nothing to preprocess")
        return torch.cat([self._batch(item) for item in items])

    def _batch(self, thing: Any) -> Tensor:
        if not isinstance(thing, Tensor):
            if hasattr(thing, "__array_interface__") and not hasattr(thing, "convert"):  # NumPy's, not PIL's
                thing = torch.as_tensor(thing)
            else:
                from adaptkit.data.pictures import read_picture

                thing = read_picture(Path(thing) if isinstance(thing, str) else thing, self.size)
        images = thing[None, None] if thing.ndim == 2 else thing[None] if thing.ndim == 3 else thing
        if images.ndim != 4 or 0 in images.shape:
            raise BadInput(f"images are [c, h, w] or [n, c, h, w], not {list(thing.shape)}")
        if not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise BadInput(f"images are uint8, or floats in 0..1, not {str(images.dtype).removeprefix('torch.')}")
        if images.is_floating_point():
            low, high = float(images.min()), float(images.max())
            if not (low >= -1e-3 and high <= 1 + 1e-3):
                raise BadInput(f"images of floats are in 0..1, not {low:g} to {high:g}; uint8 images are in 0..255")
            return self._resized(self._in_channels(images.float()))
        # Rounded after each step, as images are when a data set is brought to another's channels and size.
        images = _rounded(self._in_channels(images))
        return _rounded(self._resized(images)).float() / 255

    def _in_channels(self, images: Tensor) -> Tensor:
        given = images.shape[1]
        if given == self.channels:
            return images
        if (given, self.channels) == (3, 1):
            return luminance(images.float())
        if given == 1:
            return images.repeat(1, self.channels, 1, 1)
        raise BadInput(f"images have {given} channels, and the model takes {self.channels}")

    def _resized(self, images: Tensor) -> Tensor:
        """Bring the shorter side to the model's size and cut the middle out of the longer one."""
        height, width = images.shape[-2:]
        short = min(height, width)
        if short != self.size:
            sides = [max(self.size, int(side * self.size / short)) for side in (height, width)]
            # Without antialiasing a shrunk image would be a sample of its pixels.
            images = interpolate(images.float(), size=sides, mode="bilinear", antialias=short > self.size)
        top, left = (round((side - self.size) / 2) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]


def _rounded(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)
