"""Divide any model into its stages: the blocks that its features pass through, in order, without the head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from adaptkit.backbones.layers import NORMS

#: A block that holds this share of all parameters besides the head's is not a stage but what the stages are in.
NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Stage:
    """A block or layer with the normalization layers after it: `parts` are their names and modules, in order."""

    parts: tuple[tuple[str, nn.Module], ...]

    @property
    def name(self) -> str:
        """Return the name of the block."""
        return self.parts[0][0]

    @property
    def last(self) -> nn.Module:
        """Return the module that gives the stage's output."""
        return self.parts[-1][1]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all parts."""
        return [parameter for _, part in self.parts for parameter in part.parameters()]


def find_stages(model: nn.Module) -> list[Stage]:
    """Return the stages of a model that has a `head`, in definition order.

    Containers are looked into; blocks with a forward pass of their own are taken as they are, unless the head or
    nearly all parameters are in them. Normalization layers belong to the stage before them (the first to the stage
    after). Layers without parameters, and parameters outside of the stages, such as a class token, belong to none.
    """
    stages: list[tuple[tuple[str, nn.Module], ...]] = []
    for part in _parts(model):
        if stages and (_only_norms(part[1]) or all(_only_norms(other) for _, other in stages[-1])):
            stages[-1] += (part,)
        else:
            stages.append((part,))
    return [Stage(parts) for parts in stages]


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    head = model.head
    assert isinstance(head, nn.Module)
    seen = {id(module) for module in head.modules()}
    body = _size(model) - _size(head)

    def visit(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen or not _size(module):
            return
        seen.add(id(module))
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        holds_all = _size(module) >= NEARLY_ALL * body and own < _size(module) / 2
        holds_head = any(inner is head for inner in module.modules())
        if module is model or _is_container(module) or holds_head or holds_all:
            for child, inner in module.named_children():
                yield from visit(f"{name}.{child}".lstrip("."), inner)
        else:
            yield name, module

    return visit("", model)


def _is_container(module: nn.Module) -> bool:
    # A list has no forward pass; that of a Sequential says nothing that its order does not say.
    return type(module).forward in (nn.Module.forward, nn.Sequential.forward)


def _only_norms(module: nn.Module) -> bool:
    holders = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return all(isinstance(part, NORMS) for part in holders)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
