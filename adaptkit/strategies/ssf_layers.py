"""The layers of the strategy `ssf`.

A layer without bias has no shift, so that merging adds no parameter. The normalization layer after it has a shift.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptkit.backbones.layers import OWN_FORWARD, find_heads, probe, reasons_against, same
from adaptkit.backbones.structure import NORMS


class SSFLayer(nn.Module):
    """Scale and shift each output channel of a linear or convolution layer: `y * scale + shift`."""

    def __init__(self, base_layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.base_layer = base_layer
        weight, bias = base_layer.weight, base_layer.bias
        self.scale = nn.Parameter(torch.ones_like(weight.detach().flatten(1)[:, 0]))
        self.shift = nn.Parameter(torch.zeros_like(bias)) if bias is not None else None
        # Channels are the first dimension of a feature map, the last of a vector.
        self.spread = (-1, 1, 1) if isinstance(base_layer, nn.Conv2d) else (-1,)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output, scaled and shifted."""
        y: Tensor = self.base_layer(x) * self.scale.view(self.spread)
        return y if self.shift is None else y + self.shift.view(self.spread)

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """Return a plain layer with the same output; the wrapped layer does not change."""
        layer = copy.deepcopy(self.base_layer)
        layer.weight *= self.scale.view(-1, *[1] * (layer.weight.ndim - 1))
        if self.shift is not None and layer.bias is not None:
            layer.bias.mul_(self.scale).add_(self.shift)
        return layer


class SSFNorm(nn.Module):
    """Scale and shift the output of a normalization layer through its weight and bias.

    This is also correct for layers that permute dimensions or apply an activation after normalizing.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        weight, bias = base_layer.weight, getattr(base_layer, "bias", None)
        assert isinstance(weight, Tensor)
        self.scale = nn.Parameter(torch.ones_like(weight))
        self.shift = nn.Parameter(torch.zeros_like(bias)) if isinstance(bias, Tensor) else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output with the scaled weight and the scaled and shifted bias."""
        y: Tensor = torch.func.functional_call(self.base_layer, self._affine(), (x,))
        return y

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return a plain layer with the same output; the wrapped layer does not change."""
        layer = copy.deepcopy(self.base_layer)
        for name, value in self._affine().items():
            layer.get_parameter(name).copy_(value)
        return layer

    def _affine(self) -> dict[str, Tensor]:
        affine = {"weight": self.base_layer.get_parameter("weight") * self.scale}
        if self.shift is not None:
            affine["bias"] = self.base_layer.get_parameter("bias") * self.scale + self.shift
        return affine


@dataclass(frozen=True)
class Choice:
    """The layers to scale and shift by name, in the order of the model, and those that are left out, with reasons."""

    layers: Mapping[str, nn.Module]
    left_out: Mapping[str, str]


def choose(model: nn.Module, *, train_head: bool) -> Choice:
    """Return the linear, convolution and normalization layers with a weight, without the head if it is trained itself.

    A layer with a forward pass of its own is left out unless scaling its output is the same as scaling its weight.
    """
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, *NORMS)
    head = {id(layer) for layer in find_heads(model)} if train_head else set()
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if name and isinstance(layer, kinds) and id(layer) not in head and layer.weight is not None
    }
    left_out = {
        name: reason
        for name, reason in reasons_against(model, kinds).items()
        if name in layers and not (reason == OWN_FORWARD and _scales(layers[name]))  # type: ignore[arg-type]
    }
    return Choice({name: layer for name, layer in layers.items() if name not in left_out}, left_out)


@torch.no_grad()
def _scales(layer: nn.Linear | nn.Conv2d) -> bool:
    """Check whether a layer that is wrapped, scaled and merged computes what the wrapped layer does."""
    wrapped = SSFLayer(layer)
    generator = torch.Generator().manual_seed(0)
    for parameter in wrapped.parameters(recurse=False):
        parameter.add_(0.5 * torch.rand(parameter.shape, generator=generator).to(parameter))
    x = probe(layer)
    return same(wrapped.merged().eval()(x), copy.deepcopy(wrapped).eval()(x))
