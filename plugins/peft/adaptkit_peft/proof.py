"""Check that a wrapped layer and its merged layer give the same outputs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from adaptkit.training.seeding import RandomStream
from torch import Tensor, nn

#: tolerance for outputs that differ only in the order of sums, relative to the largest output
TOLERANCE = 1e-4
#: relative difference below which two outputs are considered equal
SAME = 1e-5


def fault(wrapped: nn.Module, merges: bool) -> str:
    """Describe the fault of a wrapped linear or convolutional layer, or return an empty string.

    The check changes the trained parameters of a copy. This must change the output, and the merged layer must give the
    same outputs as the wrapped layer.
    """
    layer: Any = copy.deepcopy(wrapped).eval()
    plain = layer.get_base_layer()
    if plain.weight.dtype not in (torch.float32, torch.float64) or not isinstance(plain, nn.Linear | nn.Conv2d):
        return ""
    with RandomStream(0), torch.no_grad():
        inputs = _inputs(plain)
        before = layer(inputs)
        _perturb(layer)
        after = layer(inputs)
        if not apart(before, after) > SAME:
            return "its trained parameters do not affect the output"
        if merges:
            merged = merged_layer(layer)(inputs)
            if not apart(after, merged) <= TOLERANCE:
                return "the merged layer gives different outputs"
    return ""


def needs_sequences(wrapped: nn.Module) -> bool:
    """Return whether a wrapped linear layer fails for 4-d inputs, or gives other outputs than for the same rows."""
    layer: Any = copy.deepcopy(wrapped).eval()
    plain = layer.get_base_layer()
    if not isinstance(plain, nn.Linear):
        return False
    with RandomStream(0), torch.no_grad():
        _perturb(layer)
        images = torch.randn(2, 3, 2, plain.in_features, device=plain.weight.device, dtype=plain.weight.dtype)
        expected = layer(images.flatten(1, 2)).unflatten(1, (3, 2))
        try:
            return not apart(expected, layer(images)) <= TOLERANCE
        except Exception:  # PEFT's layers raise many types
            return True


def _perturb(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn_like(parameter)


def merged_layer(layer: Any) -> nn.Module:
    """Fold a PEFT layer into the layer that it wraps, and return the result."""
    if hasattr(layer, "unload_and_optionally_merge_module"):
        plain: nn.Module = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    else:
        layer.merge(safe_merge=False)
        plain = layer.get_base_layer()
    return plain


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of two outputs, relative to the largest output; NaN if one contains NaN."""
    return float((ours - theirs).abs().max() / ours.abs().max()) if ours.shape == theirs.shape else float("inf")


def _inputs(layer: nn.Linear | nn.Conv2d) -> Tensor:
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (4, layer.in_features)
    else:
        reach = [step * (size - 1) + 5 for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        shape = (2, layer.in_channels, *reach)
    return torch.randn(shape, device=layer.weight.device, dtype=layer.weight.dtype)
