"""Which layers LoRA adapts, chosen by its option `targets`, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from adaptkit.backbones.layers import called_layers
from adaptkit.errors import BadInput, suggestion

#: what each word stands for; `auto` is `linear` for a model with linear layers besides its head, else `all`
WORDS: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv": (nn.Conv2d,),
    "all": (nn.Linear, nn.Conv2d),
}
AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """The layers to adapt by their names, in the model's order, and the names of those that were left out."""

    layers: Mapping[str, nn.Linear | nn.Conv2d]
    depthwise: tuple[str, ...]


def choose(model: nn.Module, targets: str, train_head: bool) -> Choice:
    """Return the layers that `targets` chooses; the head is none of them when it is trained itself.

    Depth-wise convolutions are left out. Raises BadInput for a part of `targets` that chooses no layer.
    """
    fit = called_layers(model, WORDS["all"])
    modules = {name: module for name, module in model.named_modules() if name}
    head = _head_parts(model)
    if train_head:
        fit = {name: layer for name, layer in fit.items() if id(layer) not in head}
    beyond = any(isinstance(layer, nn.Linear) and id(layer) not in head for layer in fit.values())
    words = WORDS | {AUTO: WORDS["linear" if beyond else "all"]}
    chosen: set[str] = set()
    for pattern in (part.strip() for part in targets.split(",")):
        if pattern in words:
            hits = [name for name, layer in fit.items() if isinstance(layer, words[pattern])]
        else:
            hits = [
                name
                for name, module in modules.items()
                if type(module).__name__ == pattern or fnmatchcase(name, pattern)
            ]
        layers = [name for name in hits if name in fit]
        if all(is_depthwise(fit[name]) for name in layers):
            told = [f"{name} is {_kind(modules[name], head if train_head else set())}" for name in hits[:3]]
            known = {"Linear", *words, *fit} - {pattern}
            raise BadInput(f"lora.targets: {_misfit(pattern, told, known, train_head)}")
        chosen.update(layers)
    named = {name: fit[name] for name in modules if name in chosen}
    return Choice(
        {name: layer for name, layer in named.items() if not is_depthwise(layer)},  # type: ignore[misc]
        tuple(name for name, layer in named.items() if is_depthwise(layer)),
    )


def is_depthwise(layer: nn.Module) -> bool:
    """Tell whether a layer is a convolution that filters each channel alone: an update of it is larger than it is."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels


def remarks(choice: Choice, rank: int, dora: bool) -> list[str]:
    """Return lines to tell: which layers are left out, and whose update is out of proportion."""
    told = []
    if choice.depthwise:
        told.append(f"lora: depth-wise convolutions are not adapted: {', '.join(choice.depthwise)}")
    large = []
    for name, layer in choice.layers.items():
        own, added, most = _sizes(layer, rank, dora)
        facts = [f"{added:,} parameters for {own:,}"] if added >= own else []
        facts += [f"rank {rank} of at most {most}"] if rank > most else []
        if facts:
            large.append(f"{name} ({', '.join(facts)})")
    if large:
        told.append(
            "lora: updates as large as their layer or of a higher rank than it can have, kept as asked: "
            + ", ".join(large)
        )
    return told


def _sizes(layer: nn.Linear | nn.Conv2d, rank: int, dora: bool) -> tuple[int, int, int]:
    """Return how many parameters a layer has and how many its update, and the largest rank of an update."""
    out, width = layer.weight.shape[0], layer.weight[0].numel()
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    inner = -(-rank // groups)
    added = inner * groups * width + out * inner + (out if dora else 0)
    return sum(part.numel() for part in layer.parameters()), added, groups * min(width, out // groups)


def _head_parts(model: nn.Module) -> set[int]:
    try:
        head = getattr(model, "head", None)
    except BadInput:  # a model without linear layers has no head
        head = None
    return {id(module) for module in head.modules()} if isinstance(head, nn.Module) else set()


def _kind(module: nn.Module, head: set[int]) -> str:
    if id(module) in head:
        return "the head, trained as it is"
    return f"a {'depth-wise ' if is_depthwise(module) else ''}{type(module).__name__}"


def _misfit(pattern: str, told: list[str], known: set[str], train_head: bool) -> str:
    """Say why a pattern fits no layer: what it hits instead, or what it may have meant."""
    if told:
        return f"{pattern!r} fits no Linear or Conv2d layer that LoRA can adapt ({', '.join(told)})"
    if pattern == AUTO:
        return f"the model has no Linear or Conv2d layer to adapt{' beside its head' if train_head else ''}"
    return f"no layer fits {pattern!r}{suggestion(pattern, known)}"
