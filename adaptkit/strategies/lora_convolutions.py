"""LoRA's layers for convolutions, factorised and named as Hugging Face PEFT does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.strategies.lora_layers import Decomposed, LoRALayer, scaling


class LoRAConv2d(LoRALayer):
    """Add a low-rank update to a convolution: A has its kernel, stride, padding and dilation, B is 1x1.

    A is `[rank, in, h, w]`, B `[out, rank, 1, 1]`. A grouped convolution has an update of equal rank in each group,
    `rank / groups` rounded up, and in nothing between the groups, so that it can be merged; PEFT's cannot.
    """

    base_layer: nn.Conv2d
    lora_A: nn.Conv2d
    lora_B: nn.Conv2d

    def __init__(self, base_layer: nn.Conv2d, rank: int, alpha: float, dropout: float, rslora: bool = False) -> None:
        groups = base_layer.groups
        inner = -(-rank // groups) * groups
        like: dict[str, Any] = {"device": base_layer.weight.device, "dtype": base_layer.weight.dtype}
        down = nn.Conv2d(
            base_layer.in_channels,
            inner,
            base_layer.kernel_size,  # type: ignore[arg-type]
            base_layer.stride,  # type: ignore[arg-type]
            base_layer.padding,  # type: ignore[arg-type]
            base_layer.dilation,  # type: ignore[arg-type]
            groups,
            bias=False,
            padding_mode=base_layer.padding_mode,
            **like,
        )
        up = nn.Conv2d(inner, base_layer.out_channels, 1, groups=groups, bias=False, **like)
        super().__init__(base_layer, down, up, scaling(alpha, rank, rslora), dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's feature maps plus the scaled update."""
        unchanged: Tensor = self.base_layer(x)
        inner: Tensor = self.lora_A(x if self.lora_dropout is None else self.lora_dropout(x))
        return torch.add(unchanged, self.lora_B(inner), alpha=self.scaling)

    def delta(self) -> Tensor:
        """Return the update of the weight, `[out, in / groups, h, w]`."""
        groups = self.base_layer.groups
        rank = self.lora_A.out_channels // groups
        up = self.lora_B.weight.reshape(groups, -1, rank)
        down = self.lora_A.weight.reshape(groups, rank, -1)
        return self.scaling * (up @ down).reshape(self.base_layer.weight.shape)


class DoRAConv2d(Decomposed, LoRAConv2d):
    """A convolution with a decomposed weight; its magnitudes are `[1, out, 1, 1]`."""

    spread = (1, -1, 1, 1)

    def __init__(self, base_layer: nn.Conv2d, rank: int, alpha: float, dropout: float, rslora: bool = False) -> None:
        LoRAConv2d.__init__(self, base_layer, rank, alpha, dropout, rslora)
        self.decompose()
