"""Use a model object as the backbone, as in `adaptkit.run(backbone=model)`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adaptkit.adapters.weights import fingerprint
from adaptkit.backbones.layers import find_heads, forget_usage
from adaptkit.backbones.structure import find_head, replace_head, with_head
from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl

#: number of digits of the sha256 that identifies the weights of a model
DIGITS = 12


def python_backbone(module: nn.Module) -> object:
    """Return a plugin with the backbone `python:CLASS`, which builds copies of this model.

    The model itself does not change. It receives float images in 0..1 without normalisation. Raises BadInput for a
    model without a linear layer, with lazy layers that are not initialised, or that cannot be copied.
    """
    title = type(module).__name__
    if not isinstance(module, nn.Module):
        raise BadInput(f"backbone: must be a name or a torch.nn.Module, not {title}")
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise BadInput(f"backbone python:{title}: {lazy[0]} is not initialised yet; call the model on an image first")
    model = _copied(module, title)
    try:
        find_head(model)
    except BadInput as error:
        raise BadInput(f"backbone python:{error}") from None

    class Python:
        """A model object from Python, which receives images in 0..1 without normalisation."""

        name: ClassVar[str] = "python"
        argument: ClassVar[str] = "CLASS"

        def __init__(self, model: str) -> None:
            if model != title:
                raise BadInput(f"backbone python:{model}: the model that was passed is python:{title}")

        def build(self, channels: int, size: int, classes: int) -> nn.Module:
            """Return a copy of the model, with a new head if its number of classes differs."""
            return _build(model, title, channels=channels, size=size, classes=classes)

        def described(self, channels: int, size: int) -> Mapping[str, str]:
            """Return the id of the model's weights."""
            return {"weights_id": identity()}

    @functools.cache
    def identity() -> str:
        tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        return fingerprint(tensors)[:DIGITS]

    return PythonModelPlugin(title, Python)


class PythonModelPlugin:
    """A plugin that provides one backbone class."""

    def __init__(self, title: str, offered: type) -> None:
        self.__name__ = f"the model {title}"
        self._offered = offered

    @hookimpl
    def adaptkit_backbones(self) -> list[type]:
        """Return the class."""
        return [self._offered]


def _build(model: nn.Module, title: str, *, channels: int, size: int, classes: int) -> nn.Module:
    model_copy = with_head(_copied(model, title), (channels, size))
    heads, replaced = find_heads(model_copy), ""
    if any(getattr(head, "base_layer", head).out_features != classes for head in heads):
        names = {id(layer): name for name, layer in model_copy.named_modules()}
        replaced = ", ".join(names[id(head)] for head in heads)
        for head in heads:
            replace_head(model_copy, head, classes)
        forget_usage(model_copy)
    was_training = [part.training for part in model_copy.modules()]
    images = torch.zeros(2, channels, size, size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = model_copy.eval()(images)
    except Exception as error:  # models raise many kinds of errors
        advice = "set another size of images with image_size"
        if replaced:
            advice += (
                f", or, if {replaced} is not its classifier, give the model an attribute `head` that is: {replaced} "
                f"was replaced by a layer for {classes} classes"
            )
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"backbone python:{title}: it does not work on images {list(images.shape[1:])} ({reason}); {advice}"
        ) from None
    for part, training in zip(model_copy.modules(), was_training, strict=True):
        part.training = training
    # Outputs that are not a tensor are refused in the preflight, as those of other backbones.
    if isinstance(logits, Tensor) and list(logits.shape) != [len(images), classes]:
        raise BadInput(
            f"backbone python:{title}: its output for {len(images)} images is {list(logits.shape)}, "
            f"not logits {[len(images), classes]}; its last linear layer must be its classifier"
        )
    return model_copy


def _copied(module: nn.Module, title: str) -> nn.Module:
    """Return a copy on the CPU without frozen parameters, because strategies decide which ones to train."""
    try:
        model_copy = copy.deepcopy(module).cpu()
        for parameter in model_copy.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"backbone python:{title}: it cannot be copied ({reason})") from None
    return model_copy
