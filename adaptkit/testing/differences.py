"""Tell how models and what they say differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return how far logits are apart, as a share of the largest where that is above 1."""
    if ours.shape != theirs.shape or not bool(torch.isfinite(theirs).all()):
        return float("inf")
    return ((ours - theirs).abs().max() / max(1.0, float(ours.abs().max()))).item()


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def listed(names: list[str]) -> str:
    """Return names in a row, the first few of many."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
