"""Feed a whole model with images that are kept as bytes, in memory or stored, and become floats batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptkit.contracts import StoredPixels
from adaptkit.data.stored import decoded
from adaptkit.training.evaluation import Rows, whole
from adaptkit.training.passes import Test


@dataclass(frozen=True)
class ByteRows:
    """What a model is fed, as `Rows` are, from uint8 images: on the device, or stored and decoded ahead of need."""

    network: nn.Module
    pixels: Tensor | StoredPixels
    device: torch.device
    seconds: float = 0.0

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the float32 images in 0..1 of each part: `parts` are int64 indices on the CPU."""
        for batch in self._batches(parts):
            yield (batch.to(torch.float32).div_(255),)

    def _batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        if isinstance(self.pixels, Tensor):
            for part in parts:
                yield self.pixels.index_select(0, part.to(self.device))
        else:
            for batch in decoded(self.pixels, parts, pinned=self.device.type == "cuda"):
                yield batch.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class BytePasses:
    """Run the whole model over the same training images in every epoch: they need no memory as floats."""

    model: nn.Module
    pixels: Tensor | StoredPixels
    device: torch.device
    tests: Mapping[str, Test]
    frozen_prefix = "none"

    def training(self, epoch: int) -> ByteRows:
        """Return the training images."""
        return ByteRows(self.model, self.pixels, self.device)

    def testing(self, name: str) -> Rows:
        """Return a test set's images."""
        return whole(self.model, self.tests[name].images.value.tensor)


def on_device(pixels: Tensor | StoredPixels, device: torch.device) -> Tensor | StoredPixels:
    """Return pixels in memory on the device, and stored ones as they are."""
    return pixels.to(device) if isinstance(pixels, Tensor) else pixels
