"""Heads that a strategy fits to the features of the frozen base, without gradient descent."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.backbones.layers import find_heads
from adaptkit.backbones.structure import replace_layer
from adaptkit.errors import BadInput
from adaptkit.training.evaluation import computing
from adaptkit.training.objective import balanced_weights
from adaptkit.training.passes import TrainingData

#: images of a forward pass that computes features
AT_ONCE = 128
#: optional argument of `fit`: a weight for each image
WEIGHTS = "weights"


@dataclass(frozen=True)
class Examples:
    """Features of the training images, float32 `[n, d]`, their labels, int64 `[n]`, and weights `[n]`, if any.

    They are on the CPU.
    """

    features: Tensor
    labels: Tensor
    weights: Tensor | None = None


def fitted_head(model: nn.Module) -> str:
    """Return the name of the layer that a fitted head replaces; raise BadInput if there is not exactly one."""
    heads = find_heads(model)
    if len(heads) != 1:
        what = f"combines {len(heads)} classifier layers" if heads else "has no linear layer to serve as head"
        raise BadInput(f"{type(model).__name__} {what}, so no fitted head can replace it")
    return next(str(name) for name, module in model.named_modules() if module is heads[0])


def stand_in(model: nn.Module, images: int | None = None) -> Examples:
    """Return random features with labels of all classes, for a head whose fitted values are loaded later.

    By default there are as few as most methods accept: one image more than classes.
    """
    head: Any = model.get_submodule(fitted_head(model))
    labels = torch.arange(images or head.out_features + 1) % head.out_features
    features = torch.randn(len(labels), head.in_features, generator=torch.Generator().manual_seed(0))
    return Examples(features.abs(), labels)


def fit_head(model: nn.Module, strategy: Any, examples: Examples, *, title: str) -> nn.Module:
    """Let a strategy fit a head, put it in place, and return it. Messages of BadInput begin with `title`."""
    name = fitted_head(model)
    before = model.get_submodule(name)
    extra = {WEIGHTS: examples.weights} if takes_weights(strategy) else {}
    returned = strategy.fit(model, examples.features.clone(), examples.labels.clone(), **extra)
    if isinstance(returned, nn.Module) and all(module is not returned for module in model.modules()):
        replace_layer(model, before, returned)
    elif returned is not None and not isinstance(returned, nn.Module):
        raise BadInput(f"{title}: fit() returned a {type(returned).__name__}; return the new head, or None")
    return model.get_submodule(name)


def takes_weights(strategy: Any) -> bool:
    """Return whether the `fit` of a strategy has an argument for the weights of the images."""
    return WEIGHTS in inspect.signature(strategy.fit).parameters


def head_examples(model: nn.Module, data: TrainingData, labels: Tensor, *, precision: str, balanced: bool) -> Examples:
    """Return what the head of a model in evaluation mode receives for its training data.

    Raises BadInput if that is not one row of numbers for each image.
    """
    received: list[Tensor] = []
    name = fitted_head(model)

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        received.append(inputs[0].detach().float().cpu())

    handle = model.get_submodule(name).register_forward_pre_hook(note)
    try:
        outputs(data, labels, precision)
    finally:
        handle.remove()
    features = torch.cat(received)
    if features.shape[:-1] != (len(labels),):
        raise BadInput(
            f"{type(model).__name__}: its head receives {list(received[0].shape)}, not one row of features for each "
            "image"
        )
    return Examples(features, labels.cpu(), balanced_weights(labels).cpu() if balanced else None)


@torch.no_grad()
def outputs(data: TrainingData, labels: Tensor, precision: str) -> Tensor:
    """Return the float32 outputs of a network for all of its training data, in the order of the labels."""
    parts = torch.arange(len(labels)).split(AT_ONCE)
    with computing(labels.device, precision):
        return torch.cat([data.network(*inputs).float() for inputs in data.batches(parts)])


def fitted_bytes(model: nn.Module, examples: Examples) -> int:
    """Return the memory of a fit in bytes: the model, the features, and the labels."""
    held = (*model.parameters(), *model.buffers(), examples.features, examples.labels)
    return sum(tensor.nbytes for tensor in held)
