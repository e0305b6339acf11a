"""The layers of LoRA, named as Hugging Face PEFT names them, so that files can travel."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """Add `alpha / rank * B A dropout(x)` to a linear layer: A `[rank, in]`, B `[out, rank]`.

    A is drawn as a linear layer's weight is, B is zero, so that the layer starts as its base (Hu et al., 2021, 4.1).
    """

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        like = {"device": base_layer.weight.device, "dtype": base_layer.weight.dtype}
        self.base_layer = base_layer
        self.lora_dropout = nn.Dropout(dropout) if dropout > 0 else None
        self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False, **like)
        self.scaling = alpha / rank
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output plus the scaled update: `[..., in]` to `[..., out]`."""
        unchanged: Tensor = self.base_layer(x)
        inner: Tensor = self.lora_A(x if self.lora_dropout is None else self.lora_dropout(x))
        # One product scales and adds the update; in place it would change features kept of the frozen layer.
        rows = unchanged.reshape(-1, self.base_layer.out_features)
        projected = inner.reshape(-1, self.lora_A.out_features)
        return torch.addmm(rows, projected, self.lora_B.weight.t(), alpha=self.scaling).view_as(unchanged)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain linear layer with the update folded in; the wrapped layer is left alone."""
        layer = copy.deepcopy(self.base_layer)
        layer.weight += self.scaling * (self.lora_B.weight @ self.lora_A.weight)
        return layer
