"""Turn stored images into what a model sees: floats in 0..1, under shifts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptkit.contracts import Shift
from adaptkit.errors import BadInput
from adaptkit.seeds import derive_seed

CHUNK = 1024


def shifted_views(pixels: Tensor, shifts: Sequence[Shift], seed: int) -> Tensor:
    """Return uint8 images `[n, c, h, w]` as float32 in 0..1 with the shifts applied in order.

    What is drawn for an image depends on its position, on the shift's place in the order, and on the seed.
    """
    views = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    for start in range(0, len(pixels), CHUNK):
        images = pixels[start : start + CHUNK].to(torch.float32) / 255
        for place, shift in enumerate(shifts):
            # A generator for each: the amount of one shift then has no say in the draws of the next.
            generator = torch.Generator().manual_seed(derive_seed(seed, f"views/{place}/{start}"))
            before = images.shape
            images = shift.apply(images, generator)
            if images.shape != before:
                raise BadInput(f"shift {shift.name}: turned images {list(before)} into {list(images.shape)}")
        views[start : start + CHUNK] = images
    return views
