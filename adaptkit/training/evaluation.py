"""Evaluate a model on fixed images."""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

BATCH = 500


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context in which models compute: bfloat16 where it is asked for."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def deterministic() -> AbstractContextManager[None]:
    """Return the context in which cuDNN gives the same bits each time, in full precision."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@torch.inference_mode()
def predict_logits(model: nn.Module, pixels: Tensor, precision: str = "fp32") -> Tensor:
    """Return float32 logits `[n, classes]` for images `[n, c, h, w]` on the model's device."""
    model.eval()
    with deterministic(), autocast(pixels.device, precision):
        return torch.cat([model(batch).float() for batch in pixels.split(BATCH)])


def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor, precision: str = "fp32") -> float:
    """Return the fraction of images that the model labels rightly."""
    return share_right(predict_logits(model, pixels, precision), labels)


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows whose largest logit is the label's."""
    return (logits.argmax(1) == labels).sum().item() / len(labels)


def inference_ratio(model: nn.Module, base: nn.Module, pixels: Tensor, repeats: int = 9) -> float:
    """Return the model's time for these images over the base's: medians of interleaved passes after a warm-up."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(repeats + 1):
        for is_base, timed in ((False, model), (True, base)):
            start = time.perf_counter()
            predict_logits(timed, pixels)
            if pixels.is_cuda:
                torch.cuda.synchronize()
            if turn > 0:
                seconds[is_base].append(time.perf_counter() - start)
    return statistics.median(seconds[False]) / statistics.median(seconds[True])
