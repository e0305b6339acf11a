"""Convert stored images to the input of a model: floats in 0..1 with shifts applied."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptkit.contracts import Shift, StoredPixels
from adaptkit.data.pixels import as_floats, decoded
from adaptkit.errors import BadInput
from adaptkit.seeds import derive_seed

CHUNK = 1024
#: maximum bytes of views that are computed once; larger ones are computed batch by batch at each use
VIEW_BYTES = 128 << 20
CPU = torch.device("cpu")


@dataclass(frozen=True)
class LazyViews:
    """Views that are computed on access, float32 `[n, c, h, w]` on `device`, with the interface of a tensor.

    The random numbers for an image depend on its position, on the position of the shift, and on the seed.
    """

    #: occupied memory
    nbytes: ClassVar[int] = 0

    pixels: Tensor | StoredPixels
    shifts: tuple[Shift, ...]
    seed: int
    device: torch.device = CPU

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of all views together."""
        return tuple(self.pixels.shape)

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """Return the views at these positions."""
        indices = torch.arange(len(self))[chosen.cpu() if isinstance(chosen, Tensor) else chosen]
        return next(self.batches([indices]))

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all views in order, `size` at a time."""
        return self.batches(torch.arange(len(self)).split(size))

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the views of each part: `parts` are int64 indices on the CPU."""
        for part, images in zip(parts, self._images(parts), strict=True):
            views = as_floats(images.to(self.device, non_blocking=True))
            if self.shifts:
                shifted = [
                    _shifted(view[None], self.shifts, seed=self.seed, start=int(position))
                    for position, view in zip(part, views, strict=True)
                ]
                views = torch.cat(shifted)
            yield views

    def to(self, device: torch.device) -> LazyViews:
        """Return the views on this device."""
        return dataclasses.replace(self, device=device)

    def _images(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        if isinstance(self.pixels, Tensor):
            return (self.pixels.index_select(0, part) for part in parts)
        return decoded(self.pixels, parts, pinned=self.device.type == "cuda")


Views = Tensor | LazyViews


def views_of(pixels: Tensor | StoredPixels, shifts: Sequence[Shift], seed: int) -> Views:
    """Return images as views under shifts; small sets are computed now, large ones on access."""
    if math.prod(pixels.shape) * 4 > VIEW_BYTES:
        return LazyViews(pixels, tuple(shifts), seed)
    if not isinstance(pixels, Tensor):
        (pixels,) = decoded(pixels, [torch.arange(pixels.shape[0])])
    return shifted_views(pixels, shifts, seed)


def shifted_views(pixels: Tensor, shifts: Sequence[Shift], seed: int) -> Tensor:
    """Return images `[n, c, h, w]` as float32 in 0..1 with the shifts applied in order.

    The random numbers for an image depend on its position, on the position of the shift, and on the seed.
    """
    views = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    for start in range(0, len(pixels), CHUNK):
        images = as_floats(pixels[start : start + CHUNK])
        views[start : start + CHUNK] = _shifted(images, shifts, seed=seed, start=start)
    return views


def _shifted(images: Tensor, shifts: Sequence[Shift], *, seed: int, start: int) -> Tensor:
    """Apply the shifts to images; `start` is the position of the first image."""
    for place, shift in enumerate(shifts):
        # Use one generator for each shift, so that the amount of a shift does not change the next random numbers.
        generator = torch.Generator().manual_seed(derive_seed(seed, f"views/{place}/{start}"))
        before = images.shape
        images = shift.apply(images, generator)
        if images.shape != before:
            raise BadInput(
                f"shift {shift.name}: changed the shape of images from {list(before)} to {list(images.shape)}"
            )
    return images
