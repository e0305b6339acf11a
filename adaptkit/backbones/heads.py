"""Give any model a `head`: its last classifier layer, found anew at each look-up; or a fresh one for other classes."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from adaptkit.backbones.layers import replace_layer
from adaptkit.errors import BadInput


def find_head(model: nn.Module) -> nn.Module:
    """Return the last linear layer in definition order; a wrapper with a `base_layer` counts as one layer.

    Raises BadInput if the model has none.
    """
    found: nn.Module | None = None
    wrapped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(wrapped):
            continue
        if hasattr(module, "base_layer"):
            wrapped += (f"{name}." if name else "",)
            if isinstance(module.base_layer, nn.Linear):
                found = module
        elif isinstance(module, nn.Linear):
            found = module
    if found is None:
        raise BadInput(f"{type(model).__name__} has no linear layer to serve as head")
    return found


def replace_head(model: nn.Module, classes: int) -> nn.Linear:
    """Put a fresh linear layer for so many classes in the place of the last one, and return it.

    Raises BadInput if the model has none, or is itself that layer.
    """
    found = find_head(model)
    if found is model:
        raise BadInput(f"{type(model).__name__} is a head alone: a layer in a model can be replaced, not the model")
    old = getattr(found, "base_layer", found)
    assert isinstance(old, nn.Linear)
    device, dtype = old.weight.device, old.weight.dtype
    fresh = nn.Linear(old.in_features, classes, bias=old.bias is not None, device=device, dtype=dtype)
    replace_layer(model, found, fresh)
    return fresh


def with_head(model: nn.Module) -> nn.Module:
    """Return the model, which now answers `model.head`; its own `head`, if it has one, is left alone."""
    if not hasattr(model, "head"):
        model.__class__ = _headed(type(model))  # type: ignore[arg-type]  # classes are hashable
    return model


@functools.cache
def _headed(cls: type[nn.Module]) -> type[nn.Module]:
    # A subclass with a property, since a second reference to the layer would register it, and its keys, twice.
    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _rebuild, (cls,), self.__dict__

    members = {"head": property(find_head), "__reduce_ex__": reduce, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), members)


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    headed = _headed(cls)  # type: ignore[arg-type]
    return headed.__new__(headed)
