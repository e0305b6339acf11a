"""The layers of LoRA, and the choice of layers; tensor names are those of Hugging Face PEFT."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.backbones.layers import OWN_FORWARD, coverage, find_heads, reasons_against
from adaptkit.errors import BadInput, listed, suggestion


class LoRALayer(nn.Module):
    """A frozen layer with a low-rank update `scaling * B A` of its weight.

    A is initialised at random and B with zeros, so that the update starts at zero (Hu et al., 2021, section 4.1).
    """

    def __init__(
        self, base_layer: nn.Linear | nn.Conv2d, down: nn.Module, up: nn.Module, *, scaling: float, dropout: float
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
        """Return a plain layer with the update added to its weight; the wrapped layer does not change."""
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
        super().__init__(base_layer, down, up, scaling=scaling(alpha, rank, rslora), dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output plus the scaled update: `[..., in]` to `[..., out]`."""
        unchanged: Tensor = self.base_layer(x)
        inner: Tensor = self.lora_A(x if self.lora_dropout is None else self.lora_dropout(x))
        # One product scales and adds the update; not in place, since the frozen layer's output may be a cached feature.
        rows = unchanged.reshape(-1, self.base_layer.out_features)
        projected = inner.reshape(-1, self.lora_A.out_features)
        return torch.addmm(rows, projected, self.lora_B.weight.t(), alpha=self.scaling).view_as(unchanged)

    def delta(self) -> Tensor:
        """Return the update of the weight, `[out, in]`."""
        return self.scaling * (self.lora_B.weight @ self.lora_A.weight)


def scaling(alpha: float, rank: int, rslora: bool) -> float:
    """Return the factor of the update. With rsLoRA, it decreases more slowly with the rank (arXiv:2312.03732)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


class Magnitude(nn.Module):
    """DoRA's magnitudes: the norm of each output's weights, in a shape that multiplies the layer's output."""

    def __init__(self, lengths: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(lengths)


class Decomposed(LoRALayer):
    """DoRA (Liu et al., 2024, arXiv:2402.09353): train norm and direction of the weight separately.

    The weight is `magnitude * (W + scaling B A) / |W + scaling B A|`, with one norm for each output. The norm in the
    denominator is a constant for gradients, as in section 4.3 of the paper.
    """

    #: shape of one number for each output, for multiplication with the output of the layer
    spread: tuple[int, ...] = (-1,)

    def decompose(self) -> None:
        """Initialise the magnitudes from the frozen weight; called once, when the layer is created."""
        self.lora_magnitude_vector = Magnitude(lengths(self.base_layer.weight.detach()).view(self.spread))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output with the decomposed weight; dropout does not apply to the output of the frozen layer."""
        unchanged: Tensor = self.base_layer(x)
        linear = unchanged
        if self.lora_dropout is not None:
            x = self.lora_dropout(x)
            linear = self.base_layer(x)
        if self.base_layer.bias is not None:
            linear = linear - self.base_layer.bias.view(self.spread)
        gain = self._gain()
        # Add a difference to the frozen layer, so that the initial output equals that of the base bit for bit. PEFT
        # uses the same order of operations.
        result: Tensor = unchanged + ((gain - 1) * linear + gain * self.lora_B(self.lora_A(x)) * self.scaling)
        return result

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """Return a plain layer with the decomposed weight; the wrapped layer does not change."""
        layer = copy.deepcopy(self.base_layer)
        layer.weight += self.delta()
        layer.weight *= self._gain().reshape(-1, *[1] * (layer.weight.ndim - 1))
        return layer

    def _gain(self) -> Tensor:
        weight = self.base_layer.weight.detach() + self.delta().detach()
        gain: Tensor = self.lora_magnitude_vector.weight / lengths(weight).view(self.spread)
        return gain


def lengths(weight: Tensor) -> Tensor:
    """Return the norm of the weights of each output. It is never zero, so that it can be a divisor."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms.clamp_min(1e-30)


class DoRALinear(Decomposed, LoRALinear):
    """A linear layer with a decomposed weight; its magnitudes are `[out]`."""

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float, dropout: float, rslora: bool = False) -> None:
        LoRALinear.__init__(self, base_layer, rank, alpha, dropout=dropout, rslora=rslora)
        self.decompose()


class LoRAConv2d(LoRALayer):
    """Add a low-rank update to a convolution: A has its kernel, stride, padding and dilation, B is 1x1.

    A is `[rank, in, h, w]`, B `[out, rank, 1, 1]`. A grouped convolution has a separate update in each group, of rank
    `rank / groups` rounded up. Thus it can be merged, unlike PEFT's update of such layers.
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
        super().__init__(base_layer, down, up, scaling=scaling(alpha, rank, rslora), dropout=dropout)

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
        LoRAConv2d.__init__(self, base_layer, rank, alpha, dropout=dropout, rslora=rslora)
        self.decompose()


class LoRAWeight(LoRALayer):
    """Add the update to the weight itself, for a layer with a forward pass of its own: A `[rank, in]`, B `[out, rank]`.

    The layer computes its output from the sum, as it does after merging. `in` is the size of one output's weights.
    """

    lora_A: nn.Linear
    lora_B: nn.Linear

    def __init__(self, base_layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rslora: bool = False) -> None:
        weight = base_layer.weight
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        down = nn.Linear(weight[0].numel(), rank, bias=False, **like)
        up = nn.Linear(rank, weight.shape[0], bias=False, **like)
        super().__init__(base_layer, down, up, scaling=scaling(alpha, rank, rslora), dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the layer with the updated weight."""
        y: Tensor = torch.func.functional_call(self.base_layer, {"weight": self.updated()}, (x,))
        return y

    def updated(self) -> Tensor:
        """Return the weight with the update."""
        return self.base_layer.weight + self.delta()

    def delta(self) -> Tensor:
        """Return the update of the weight, in its shape."""
        return self.scaling * (self.lora_B.weight @ self.lora_A.weight).view_as(self.base_layer.weight)


class DoRAWeight(Decomposed, LoRAWeight):
    """A layer with a forward pass of its own and a decomposed weight; its magnitudes are `[out]`."""

    def __init__(self, base_layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rslora: bool = False) -> None:
        LoRAWeight.__init__(self, base_layer, rank, alpha, rslora=rslora)
        self.decompose()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the layer with the decomposed weight."""
        return LoRAWeight.forward(self, x)

    def updated(self) -> Tensor:
        """Return the decomposed weight."""
        weight = self.base_layer.weight
        gain = self._gain().reshape(-1, *[1] * (weight.ndim - 1))
        # A difference is added, so that the initial weight is that of the base bit for bit.
        return weight + ((gain - 1) * weight + gain * self.delta())


#: types of the layers that LoRA can adapt
ADAPTED: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
#: word in `targets` -> types of layers; `auto` is `linear` if the model has linear layers except its head, else `all`
WORDS: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv": (nn.modules.conv._ConvNd,),
    "all": (nn.Linear, nn.modules.conv._ConvNd),
}
AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """The layers to adapt by name, in the order of the model, and the matching layers that are left out, with reasons.

    `own_forward` are the names of layers to adapt whose forward pass is not that of their type.
    """

    layers: Mapping[str, nn.Linear | nn.Conv2d]
    own_forward: frozenset[str]
    left_out: Mapping[str, str]


def choose(model: nn.Module, targets: str, *, train_head: bool, dropout: float = 0.0) -> Choice:
    """Return the layers that `targets` matches, without the head if the head itself is trained.

    With dropout, layers with a forward pass of their own are left out, since their update has no input of its own.
    Raises BadInput for a part of `targets` that matches no layer that can be adapted.
    """
    head = {id(layer) for layer in find_heads(model)}
    trained = head if train_head else set()
    modules = {name: module for name, module in model.named_modules() if name}
    candidates = {name: m for name, m in modules.items() if isinstance(m, WORDS["all"]) and id(m) not in trained}
    reasons = reasons_against(model, ADAPTED)
    own_forward = frozenset(name for name, reason in reasons.items() if reason == OWN_FORWARD and not dropout)
    left_out = {name: reasons[name] for name in candidates if name in reasons and name not in own_forward}
    for name, layer in candidates.items():
        if not isinstance(layer, ADAPTED):
            left_out[name] = f"a {type(layer).__name__}"
        elif is_depthwise(layer):
            left_out.setdefault(name, "a depth-wise convolution")
    fit = {name: layer for name, layer in candidates.items() if name not in left_out}
    has_linear = any(isinstance(layer, nn.Linear) and id(layer) not in head for layer in fit.values())
    words = WORDS | {AUTO: WORDS["linear" if has_linear else "all"]}
    chosen: set[str] = set()
    for pattern in (part.strip() for part in targets.split(",")):
        if pattern in words:
            hits = [name for name, layer in candidates.items() if isinstance(layer, words[pattern])]
        else:
            hits = [
                name
                for name, module in modules.items()
                if type(module).__name__ == pattern or fnmatchcase(name, pattern)
            ]
        if not fit.keys() & set(hits):
            others = [f"{name} is {_kind(modules[name], trained)}" for name in hits[:3] if name not in left_out]
            others += [f"{name}: {left_out[name]}" for name in hits[:3] if name in left_out]
            names = {"Linear", *words, *fit} - {pattern}
            raise BadInput(f"lora.targets: {_misfit(pattern, others, names, train_head=train_head)}")
        chosen.update(hits)
    return Choice(
        {name: layer for name, layer in fit.items() if name in chosen},  # type: ignore[misc]
        own_forward=own_forward,
        left_out={name: left_out[name] for name in candidates if name in chosen and name in left_out},
    )


def is_depthwise(layer: nn.Module) -> bool:
    """Check whether a layer is a depth-wise convolution, whose update would be larger than the layer itself."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels


def remarks(choice: Choice, rank: int, dora: bool) -> list[str]:
    """Return notices about layers that are left out, and about updates that are too large for their layer."""
    notices = coverage("lora", len(choice.layers), choice.left_out)
    large = []
    for name, layer in choice.layers.items():
        size, added, max_rank = _sizes(layer, rank, dora)
        reasons = [f"{added:,} parameters for {size:,}"] if added >= size else []
        reasons += [f"rank {rank} of at most {max_rank}"] if rank > max_rank else []
        if reasons:
            large.append(f"{name} ({', '.join(reasons)})")
    if large:
        notices.append(
            "lora: these updates are as large as their layer, or of a higher rank than the layer can have: "
            + listed(large)
        )
    return notices


def _sizes(layer: nn.Linear | nn.Conv2d, rank: int, dora: bool) -> tuple[int, int, int]:
    """Return the numbers of parameters of a layer and of its update, and the largest useful rank of an update."""
    out, width = layer.weight.shape[0], layer.weight[0].numel()
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    inner = -(-rank // groups)
    added = inner * groups * width + out * inner + (out if dora else 0)
    return sum(part.numel() for part in layer.parameters()), added, groups * min(width, out // groups)


def _kind(module: nn.Module, head: set[int]) -> str:
    return "the head, which is trained itself" if id(module) in head else f"a {type(module).__name__}"


def _misfit(pattern: str, others: list[str], names: set[str], *, train_head: bool) -> str:
    """Explain why a pattern matches no layer, with the other modules that it matches or the nearest valid name."""
    if others:
        return f"{pattern!r} matches no Linear or Conv2d layer that LoRA can adapt ({'; '.join(others)})"
    if kinds := {AUTO: "Linear or Conv2d", "linear": "Linear", "conv": "Conv2d", "all": "Linear or Conv2d"}.get(
        pattern
    ):
        return f"the model has no {kinds} layer to adapt{' except its head' if train_head else ''}"
    return f"no layer matches {pattern!r}{suggestion(pattern, names)}"
