"""Proof: whether a wrapped layer says the same as the plain layer that it is merged into."""

from __future__ import annotations

import copy
from typing import Any

import torch
from adaptkit.training.seeding import RandomStream
from torch import Tensor, nn

#: outputs that differ in the order of sums only, as a share of the largest
TOLERANCE = 1e-4
#: two outputs are the same when they differ less
SAME = 1e-5


def fault(wrapped: nn.Module, merges: bool) -> str:
    """Return what is wrong with a wrapped linear or convolutional layer, or nothing: it is tried on a copy.

    What it trains is moved; that must change its output, and the merged layer must say what the wrapped one says.
    """
    layer: Any = copy.deepcopy(wrapped).eval()
    plain = layer.get_base_layer()
    if plain.weight.dtype not in (torch.float32, torch.float64) or not isinstance(plain, nn.Linear | nn.Conv2d):
        return ""
    with RandomStream(0), torch.no_grad():
        inputs = _inputs(plain)
        before = layer(inputs)
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
        after = layer(inputs)
        if not apart(before, after) > SAME:
            return "what it trains changes nothing"
        if merges:
            merged = merged_layer(layer)(inputs)
            if not apart(after, merged) <= TOLERANCE:
                return "merged, it says something else"
    return ""


def merged_layer(layer: Any) -> nn.Module:
    """Fold one of PEFT's layers into the layer that it wraps, and return that."""
    if hasattr(layer, "unload_and_optionally_merge_module"):
        plain: nn.Module = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    else:
        layer.merge(safe_merge=False)
        plain = layer.get_base_layer()
    return plain


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return how far two outputs are apart, as a share of the largest; not a number where one is not."""
    return float((ours - theirs).abs().max() / ours.abs().max()) if ours.shape == theirs.shape else float("inf")


def _inputs(layer: nn.Linear | nn.Conv2d) -> Tensor:
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (4, layer.in_features)
    else:
        reach = [step * (size - 1) + 5 for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        shape = (2, layer.in_channels, *reach)
    return torch.randn(shape, device=layer.weight.device, dtype=layer.weight.dtype)
