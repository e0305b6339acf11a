"""Evaluate a model on fixed images."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptkit.data.views import LazyViews, Views

#: images a pass, and up to how many numbers in an image: on a CPU what fits its caches is fastest
CPU_BATCH, CPU_IMAGE = 128, 3 * 64 * 64
DEVICE_BATCH, DEVICE_IMAGE = 500, 3 * 224 * 224


@dataclass(frozen=True)
class Rows:
    """What a network is fed: tensors with a row for each image. `seconds` is what making them is charged at.

    When nothing is trained, `at_once` rows are fed at a time; by default as many as of images that are these rows.
    """

    network: Callable[..., Tensor]
    tensors: tuple[Views, ...]
    seconds: float = 0.0
    at_once: int | None = None

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the tensors of each part: `parts` are int64 indices on the CPU."""
        if isinstance(self.tensors[0], LazyViews):  # decoded ahead of need; images are alone
            yield from ((batch,) for batch in self.tensors[0].batches(parts))
            return
        for part in parts:
            indices = part.to(self.tensors[0].device)
            yield tuple(tensor[indices] for tensor in self.tensors)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context in which models compute: bfloat16 where it is asked for."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def deterministic() -> AbstractContextManager[None]:
    """Return the context in which cuDNN gives the same bits each time, in full precision."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Compute as models do when nothing is trained: in this precision, with the same bits each time."""
    with deterministic(), autocast(device, precision):
        yield


def pass_size(images: Views) -> int:
    """Return how many of these images go through a network at a time when nothing is trained: of large ones fewer."""
    rows, numbers = (CPU_BATCH, CPU_IMAGE) if images.device.type == "cpu" else (DEVICE_BATCH, DEVICE_IMAGE)
    return max(1, rows * numbers // max(numbers, math.prod(images.shape[1:])))


@torch.inference_mode()
def predict(rows: Rows, precision: str = "fp32") -> Tensor:
    """Return the network's float32 logits `[n, classes]`; the model must be in evaluation mode."""
    device = rows.tensors[0].device
    at_once = rows.at_once or pass_size(rows.tensors[0])
    parts = (tensor.split(at_once) for tensor in rows.tensors)
    with computing(device, precision):
        return torch.cat([rows.network(*part).float() for part in zip(*parts, strict=True)])


def whole(model: nn.Module, pixels: Views) -> Rows:
    """Return the whole model with images that it may write into."""
    return Rows(lambda images: model(images.clone()), (pixels,))


def predict_logits(model: nn.Module, pixels: Views, precision: str = "fp32") -> Tensor:
    """Return float32 logits `[n, classes]` for images `[n, c, h, w]` on the model's device."""
    model.eval()
    return predict(whole(model, pixels), precision)


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows whose largest logit is the label's."""
    return (logits.argmax(1) == labels).sum().item() / len(labels)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock read next tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def inference_ratio(model: nn.Module, base: nn.Module, images: Views, repeats: int = 9) -> float:
    """Return the model's time for a pass over the base's: medians of interleaved ones after a warm-up."""
    pixels = images[: pass_size(images)]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(repeats + 1):
        for is_base, timed in ((False, model), (True, base)):
            start = time.perf_counter()
            predict_logits(timed, pixels)
            synchronize(pixels.device)
            if turn > 0:
                seconds[is_base].append(time.perf_counter() - start)
    return statistics.median(seconds[False]) / statistics.median(seconds[True])
