"""Insert PEFT's layers into a model in place, and fold them into the model again."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from adaptkit.backbones.structure import replace_layer
from adaptkit.errors import BadInput
from torch import Tensor, nn

from adaptkit_peft.proof import merged_layer


def wrap(model: nn.Module, peft_type: str, names: Iterable[str], settings: Mapping[str, Any], strategy: str) -> None:
    """Wrap the named layers with PEFT's layers. Afterwards, only the parameters that PEFT trains require a gradient.

    Raises BadInput if PEFT rejects or ignores a setting, or if a layer has no trained parameters.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    names = list(names)
    environment = dict(os.environ)
    # Use a pattern, because a list would also match longer names with the same ending.
    pattern = "|".join(re.escape(name) for name in names)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type](target_modules=pattern, **settings)
            # `inject_adapter_in_model` would reject types whose layers share parameters.
            PEFT_TYPE_TO_TUNER_MAPPING[peft_type](model, config, adapter_name="default")
    except Exception as error:
        raise BadInput(f"{strategy}: {_named(_line(error), settings)}") from error
    finally:
        if hasattr(model, "peft_config"):
            del model.peft_config  # PEFT adds this attribute; the class of the model does not change
        if dict(os.environ) != environment:  # BOFT sets compilers in the environment of this process
            os.environ.clear()
            os.environ.update(environment)
    for warning in caught:
        line = _line(warning.message)
        if any(re.search(rf"\b{re.escape(name)}\b", line) for name in settings):
            raise BadInput(f"{strategy}: {line}")
    idle = [name for name in names if not any(part.requires_grad for part in model.get_submodule(name).parameters())]
    wrapped = set(wrapped_names(model))
    idle += [name for name in names if name not in wrapped and name not in idle]
    if idle:
        raise BadInput(f"{strategy}: PEFT adds no trained parameters to {', '.join(idle[:3])}")
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # Disable the fast path, which reads the weights of layers instead of calling the layers.
            module.activation_relu_or_gelu = 0
    # PEFT may create shared parameters on the CPU.
    model.to(next(model.parameters()).device)


def accept_images(model: nn.Module, names: Iterable[str]) -> None:
    """Let PEFT's layers of these names accept channel-last images `[n, h, w, channels]`.

    Some models, such as ConvNeXt and Swin, give such inputs to linear layers, and a few types accept only 2-d and 3-d
    inputs.
    """
    for name in names:
        layer = model.get_submodule(name)
        layer.__class__ = _accepting_images(type(layer))  # type: ignore[arg-type]  # classes are hashable


@functools.cache
def _accepting_images(cls: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.ndim <= 3:
            return cls.forward(self, x, *args, **kwargs)
        return cls.forward(self, x.flatten(1, -2), *args, **kwargs).unflatten(1, x.shape[1:-1])

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _rebuild, (cls,), self.__dict__

    members = {"forward": forward, "__reduce_ex__": reduce, "__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), members)


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    accepting = _accepting_images(cls)  # type: ignore[arg-type]
    return accepting.__new__(accepting)


def unwrap(model: nn.Module) -> None:
    """Replace each PEFT layer by the layer that it wraps, with the adapter folded in."""
    for name in wrapped_names(model):
        wrapped = model.get_submodule(name)
        replace_layer(model, wrapped, merged_layer(wrapped))


def wrapped_names(model: nn.Module) -> list[str]:
    """Return the names of PEFT's layers, except layers inside other PEFT layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    names: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not name.startswith(tuple(f"{outer}." for outer in names)):
            names.append(name)
    return names


def _line(error: Any) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _named(line: str, settings: Mapping[str, Any]) -> str:
    """Return PEFT's message, followed by the settings if the message names none of them."""
    if any(re.search(rf"\b{re.escape(name)}\b", line) for name in settings):
        return line
    listed = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"{line} ({listed})" if listed else line
