"""Run models without training them: logits, batch sizes, precision and inference time."""

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

#: number of images in a forward pass, for images up to this size: on a CPU, passes that fit into its caches are fast
CPU_BATCH, CPU_IMAGE = 128, 3 * 64 * 64
DEVICE_BATCH, DEVICE_IMAGE = 500, 3 * 224 * 224


@dataclass(frozen=True)
class Rows:
    """A network and its arguments: tensors with a row for each image. `seconds` is the time to make them.

    In evaluation, the network processes `at_once` rows at a time; the default is `pass_size`.
    """

    network: Callable[..., Tensor]
    tensors: tuple[Views, ...]
    seconds: float = 0.0
    at_once: int | None = None

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the tensors of each part: `parts` are int64 indices on the CPU."""
        if isinstance(self.tensors[0], LazyViews):  # decoded in advance; images are then the only tensor
            yield from ((batch,) for batch in self.tensors[0].batches(parts))
            return
        for part in parts:
            indices = part.to(self.tensors[0].device)
            yield tuple(tensor[indices] for tensor in self.tensors)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context in which models compute in the given precision, fp32 or bf16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def deterministic() -> AbstractContextManager[None]:
    """Return the context in which cuDNN is deterministic and computes in full precision."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Compute deterministically and in this precision, as in evaluation."""
    with deterministic(), autocast(device, precision):
        yield


def pass_size(images: Views) -> int:
    """Return the number of images in a forward pass of evaluation; it is smaller for large images."""
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
    """Return the whole model with images as its input; the model may change its input in place."""
    return Rows(lambda images: model(images.clone()), (pixels,))


def predict_logits(model: nn.Module, pixels: Views, precision: str = "fp32") -> Tensor:
    """Return float32 logits `[n, classes]` for images `[n, c, h, w]` on the model's device."""
    model.eval()
    return predict(whole(model, pixels), precision)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work, so that a time measured next is correct."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def inference_ratio(model: nn.Module, base: nn.Module, images: Views) -> float:
    """Return the time of a forward pass of the model divided by that of the base."""
    ours, theirs = forward_seconds([model, base], images[: pass_size(images)])
    return ours / theirs


def forward_seconds(models: Sequence[nn.Module], pixels: Views, repeats: int = 9) -> list[float]:
    """Return the seconds of a forward pass of each model: medians over interleaved passes after a warm-up."""
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + 1):
        for model, measured in zip(models, seconds, strict=True):
            start = time.perf_counter()
            predict_logits(model, pixels)
            synchronize(pixels.device)
            if turn > 0:
                measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in seconds]
