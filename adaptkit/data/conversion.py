"""Bring images to other channels and another size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from adaptkit.contracts import Corpus, Images, StoredPixels
from adaptkit.data.shifts import luminance
from adaptkit.data.stored import HELD_BYTES, chunks, names_of
from adaptkit.errors import BadInput


@dataclass(frozen=True)
class ConvertedPixels:
    """Images of another number of channels or another size than they are kept in, converted one at a time."""

    original: Tensor | StoredPixels
    channels: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the converted images."""
        return int(self.original.shape[0]), self.channels, self.size, self.size

    def __getitem__(self, index: int) -> Tensor:
        """Convert one image."""
        return converted(self.original[index][None], self.channels, self.size)[0]

    @property
    def names(self) -> Sequence[str] | None:
        """Return what the images are called, if they have names."""
        return names_of(self.original)


def alike(images: Images, channels: int, size: int, name: str) -> Images:
    """Return the images of `name` in these channels and this size; raise BadInput where nothing leads there."""
    given, side = images.pixels.shape[1:3]
    if given != channels and (given, channels) not in ((1, 3), (3, 1)):
        raise BadInput(f"{name}: its images have {given} channels, the source's {channels}")
    if (given, side) == (channels, size):
        return images
    lazy = ConvertedPixels(images.pixels, channels, size)
    if not isinstance(images.pixels, Tensor) or math.prod(lazy.shape) > HELD_BYTES:
        return Images(lazy, images.labels, images.classes)
    pixels = torch.cat([converted(chunk, channels, size) for chunk in chunks(images.pixels)])
    return Images(pixels, images.labels, images.classes)


def resized(corpus: Corpus, size: int) -> Corpus:
    """Return the corpus with its images in this size, a side in pixels."""

    def resize(images: Images) -> Images:
        return alike(images, images.pixels.shape[1], size, "")

    return Corpus(resize(corpus.train), None if corpus.test is None else resize(corpus.test), corpus.notices)


def converted(pixels: Tensor, channels: int, size: int) -> Tensor:
    """Return uint8 images `[n, c, h, w]` in these channels and this size.

    Grey images are repeated for each channel, colours become their luminance, sizes are changed bilinearly.
    """
    given, side = pixels.shape[1:3]
    if given != channels:
        pixels = luminance(pixels.float()).round().to(torch.uint8) if channels == 1 else pixels.repeat(1, 3, 1, 1)
    if side != size:
        # Without antialiasing a shrunk image would be a sample of its pixels.
        large = interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=side > size)
        pixels = large.round().clamp(0, 255).to(torch.uint8)
    return pixels
