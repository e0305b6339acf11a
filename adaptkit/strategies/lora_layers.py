"""The layers of LoRA, named as Hugging Face PEFT names them, so that files can travel."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


class LoRALayer(nn.Module):
    """A frozen layer with a low-rank update `scaling * B A` of its weight beside it.

    A is drawn as a layer's weight is, B is zero, so that the layer starts as its base (Hu et al., 2021, 4.1).
    """

    def __init__(
        self, base_layer: nn.Linear | nn.Conv2d, down: nn.Module, up: nn.Module, scaling: float, dropout: float
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_dropout = nn.Dropout(dropout) if dropout > 0 else None
        self.lora_A = down
        self.lora_B = up
        self.scaling = scaling
        nn.init.kaiming_uniform_(down.get_parameter("weight"), a=math.sqrt(5))
        nn.init.zeros_(up.get_parameter("weight"))

    def delta(self) -> Tensor:
        """Return the update of the weight, in its shape."""
        raise NotImplementedError

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """Return a plain layer with the update folded in; the wrapped layer is left alone."""
        layer = copy.deepcopy(self.base_layer)
        layer.weight += self.delta()
        return layer


class LoRALinear(LoRALayer):
    """Add `alpha / rank * B A dropout(x)` to a linear layer: A `[rank, in]`, B `[out, rank]`."""

    base_layer: nn.Linear
    lora_A: nn.Linear
    lora_B: nn.Linear

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float, dropout: float, rslora: bool = False) -> None:
        like = {"device": base_layer.weight.device, "dtype": base_layer.weight.dtype}
        down = nn.Linear(base_layer.in_features, rank, bias=False, **like)
        up = nn.Linear(rank, base_layer.out_features, bias=False, **like)
        super().__init__(base_layer, down, up, scaling(alpha, rank, rslora), dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output plus the scaled update: `[..., in]` to `[..., out]`."""
        unchanged: Tensor = self.base_layer(x)
        inner: Tensor = self.lora_A(x if self.lora_dropout is None else self.lora_dropout(x))
        # One product scales and adds the update; in place it would change features kept of the frozen layer.
        rows = unchanged.reshape(-1, self.base_layer.out_features)
        projected = inner.reshape(-1, self.lora_A.out_features)
        return torch.addmm(rows, projected, self.lora_B.weight.t(), alpha=self.scaling).view_as(unchanged)

    def delta(self) -> Tensor:
        """Return the update of the weight, `[out, in]`."""
        return self.scaling * (self.lora_B.weight @ self.lora_A.weight)


def scaling(alpha: float, rank: int, rslora: bool) -> float:
    """Return the factor of the update; rank-stabilised, it does not fade as the rank grows (arXiv:2312.03732)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


class Magnitude(nn.Module):
    """DoRA's magnitudes: how long each output's weights are, in the shape of what the layer gives."""

    def __init__(self, lengths: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(lengths)


class Decomposed(LoRALayer):
    """DoRA (Liu et al., 2024, arXiv:2402.09353): a weight of trained length, its direction moved by LoRA's update.

    The weight is `magnitude * (W + scaling B A) / |W + scaling B A|`, with one length for each output. The length in
    the denominator passes no gradient, as in the paper's section 4.3.
    """

    #: the shape in which one number for each output multiplies what the layer gives
    spread: tuple[int, ...] = (-1,)

    def decompose(self) -> None:
        """Take the magnitudes from the frozen weight; to be called once, when the layer is made."""
        self.lora_magnitude_vector = Magnitude(lengths(self.base_layer.weight.detach()).view(self.spread))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives with the decomposed weight; dropout acts on all but the frozen layer's part."""
        unchanged: Tensor = self.base_layer(x)
        linear = unchanged
        if self.lora_dropout is not None:
            x = self.lora_dropout(x)
            linear = self.base_layer(x)
        if self.base_layer.bias is not None:
            linear = linear - self.base_layer.bias.view(self.spread)
        gain = self._gain()
        # Written as a difference to the frozen layer: it starts as its base bit for bit. The order is PEFT's.
        result: Tensor = unchanged + ((gain - 1) * linear + gain * self.lora_B(self.lora_A(x)) * self.scaling)
        return result

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """Return a plain layer with the decomposed weight; the wrapped layer is left alone."""
        layer = copy.deepcopy(self.base_layer)
        layer.weight += self.delta()
        layer.weight *= self._gain().reshape(-1, *[1] * (layer.weight.ndim - 1))
        return layer

    def _gain(self) -> Tensor:
        weight = self.base_layer.weight.detach() + self.delta().detach()
        gain: Tensor = self.lora_magnitude_vector.weight / lengths(weight).view(self.spread)
        return gain


def lengths(weight: Tensor) -> Tensor:
    """Return the length of each output's weights, above zero so that it can be divided by."""
    found: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return found.clamp_min(1e-30)


class DoRALinear(Decomposed, LoRALinear):
    """A linear layer with a decomposed weight; its magnitudes are `[out]`."""

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float, dropout: float, rslora: bool = False) -> None:
        LoRALinear.__init__(self, base_layer, rank, alpha, dropout, rslora)
        self.decompose()
