"""How Hugging Face PEFT's LoRA computes a layer, where that differs from ours, and how one becomes the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Update:
    """LoRA's update of one layer: A `[rank, in, ...]`, B `[out, rank, ...]`, and DoRA's lengths of each output."""

    down: Tensor
    up: Tensor
    scaling: float
    magnitude: Tensor | None = None

    @property
    def groups(self) -> int:
        """Return the number of groups of the layer."""
        return self.down.shape[0] // self.up.shape[1]

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight of the layer with the update folded in."""
        rank = self.up.shape[1]
        up = self.up.reshape(self.groups, -1, rank)
        down = self.down.reshape(self.groups, rank, -1)
        result: Tensor = weight + self.scaling * (up @ down).reshape(weight.shape)
        if self.magnitude is None:
            return result
        lengths = torch.linalg.vector_norm(result.flatten(1), dim=1).clamp_min(1e-30)
        gain: Tensor = self.magnitude.flatten() / lengths
        return result * gain.reshape(-1, *[1] * (weight.ndim - 1))


def widened(down: Tensor, groups: int) -> Tensor:
    """Return the A of a grouped convolution as PEFT has it, over all channels; those of other groups count nothing.

    `[rank, in / groups, h, w]` becomes `[rank, in, h, w]`.
    """
    rank, width = down.shape[0] // groups, down.shape[1]
    wide = down.new_zeros(down.shape[0], width * groups, *down.shape[2:])
    for group in range(groups):
        rows = slice(group * rank, (group + 1) * rank)
        wide[rows, group * width : (group + 1) * width] = down[rows]
    return wide


def narrowed(wide: Tensor, groups: int) -> Tensor | None:
    """Return what `widened` was given, or None where channels of other groups count: that cannot be merged."""
    rank, width = wide.shape[0] // groups, wide.shape[1] // groups
    parts = [
        wide[group * rank : (group + 1) * rank, group * width : (group + 1) * width].clone() for group in range(groups)
    ]
    down = torch.cat(parts)
    return down if torch.equal(widened(down, groups), wide) else None


def misread(base: nn.Module, dora: bool) -> Mapping[str, str]:
    """Return the names of a model's layers whose update PEFT (0.21) would compute otherwise than ours, with why.

    PEFT's A has the layer's kernel, stride and padding, but neither its dilation nor its padding mode
    (huggingface/peft#3697).
    """
    read_directly = {
        id(layer)
        for encoder in base.modules()
        if isinstance(encoder, nn.TransformerEncoderLayer)
        for layer in (encoder.linear1, encoder.linear2)
    }
    reasons = {
        name: "torch reads its weight past PEFT's layer" if id(layer) in read_directly else _reason(layer, dora)
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(layer: nn.Linear | nn.Conv2d, dora: bool) -> str:
    if isinstance(layer, nn.Linear):
        return ""
    if type(layer) is not nn.Conv2d:
        return f"a {type(layer).__name__}"
    if any(step > 1 and size > 1 for step, size in zip(layer.dilation, layer.kernel_size, strict=True)):
        return "dilated"
    if layer.padding_mode != "zeros" and any(layer._reversed_padding_repeated_twice):
        return f"padding mode {layer.padding_mode}"
    return "grouped, with DoRA" if dora and layer.groups > 1 else ""
