"""Evaluate a model on fixed images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: images a pass: on a CPU what fits its caches is fastest
CPU_BATCH = 128
DEVICE_BATCH = 500


@dataclass(frozen=True)
class Rows:
    """What a network is fed: tensors with a row for each image. `seconds` is what making them is charged at."""

    network: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    seconds: float = 0.0

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the tensors of each part: `parts` are int64 indices on the CPU."""
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


def pass_size(device: torch.device) -> int:
    """Return how many images go through a network at a time when nothing is trained."""
    return CPU_BATCH if device.type == "cpu" else DEVICE_BATCH


@torch.inference_mode()
def predict(rows: Rows, precision: str = "fp32") -> Tensor:
    """Return the network's float32 logits `[n, classes]`; the model must be in evaluation mode."""
    device = rows.tensors[0].device
    parts = (tensor.split(pass_size(device)) for tensor in rows.tensors)
    with computing(device, precision):
        return torch.cat([rows.network(*part).float() for part in zip(*parts, strict=True)])


def whole(model: nn.Module, pixels: Tensor) -> Rows:
    """Return the whole model with images that it may write into."""
    return Rows(lambda images: model(images.clone()), (pixels,))


def predict_logits(model: nn.Module, pixels: Tensor, precision: str = "fp32") -> Tensor:
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


def inference_ratio(model: nn.Module, base: nn.Module, pixels: Tensor, repeats: int = 9) -> float:
    """Return the model's time for a pass over the base's: medians of interleaved ones after a warm-up."""
    pixels = pixels[: pass_size(pixels.device)]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(repeats + 1):
        for is_base, timed in ((False, model), (True, base)):
            start = time.perf_counter()
            predict_logits(timed, pixels)
            synchronize(pixels.device)
            if turn > 0:
                seconds[is_base].append(time.perf_counter() - start)
    return statistics.median(seconds[False]) / statistics.median(seconds[True])
