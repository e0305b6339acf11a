"""Wrapping: let PEFT put its layers into a model in place, and fold them into the model again."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from adaptkit.backbones.layers import replace_layer
from adaptkit.errors import BadInput
from torch import nn

from adaptkit_peft.proof import merged_layer


def wrap(model: nn.Module, peft_type: str, names: Iterable[str], settings: Mapping[str, Any], strategy: str) -> None:
    """Put PEFT's layers around the layers of these names, and leave only what PEFT trains with a gradient.

    Raises BadInput for settings that PEFT refuses or would not follow, and if a layer gets nothing to train.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    names = list(names)
    environment = dict(os.environ)
    # A list would also fit longer names with the same end: the pattern fits these names and no other.
    pattern = "|".join(re.escape(name) for name in names)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            config = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type](target_modules=pattern, **settings)
            # Not `inject_adapter_in_model`: it refuses types whose layers have something in common.
            PEFT_TYPE_TO_TUNER_MAPPING[peft_type](model, config, adapter_name="default")
    except Exception as error:
        raise BadInput(f"{strategy}: {_named(_line(error), settings)}") from error
    finally:
        if hasattr(model, "peft_config"):
            del model.peft_config  # PEFT's own note; the model stays what it was
        if dict(os.environ) != environment:  # BOFT chooses compilers for whatever else runs in this process
            os.environ.clear()
            os.environ.update(environment)
    for warning in heard:
        line = _line(warning.message)
        if any(re.search(rf"\b{re.escape(name)}\b", line) for name in settings):
            raise BadInput(f"{strategy}: {line}")
    idle = [name for name in names if not any(part.requires_grad for part in model.get_submodule(name).parameters())]
    wrapped = set(wrapped_names(model))
    idle += [name for name in names if name not in wrapped and name not in idle]
    if idle:
        raise BadInput(f"{strategy}: PEFT adds nothing that is trained to {', '.join(idle[:3])}")
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # Its fast path reads the weights of its layers instead of calling them; this turns it off.
            module.activation_relu_or_gelu = 0
    # What layers have in common may be made on the CPU.
    model.to(next(model.parameters()).device)


def unwrap(model: nn.Module) -> None:
    """Fold each of PEFT's layers into the layer that it wraps, and put that back."""
    for name in wrapped_names(model):
        wrapped = model.get_submodule(name)
        replace_layer(model, wrapped, merged_layer(wrapped))


def wrapped_names(model: nn.Module) -> list[str]:
    """Return the names of PEFT's layers, those inside of others left out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not name.startswith(tuple(f"{outer}." for outer in found)):
            found.append(name)
    return found


def _line(error: Any) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _named(line: str, settings: Mapping[str, Any]) -> str:
    """Return what PEFT says, with the options that were given where it names none of them."""
    if any(re.search(rf"\b{re.escape(name)}\b", line) for name in settings):
        return line
    given = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"{line} ({given})" if given else line
