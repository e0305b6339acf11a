"""The structure of models: head, stages and layers. The `head` of a model is its last classifier layer."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.errors import BadInput
from adaptkit.plugins.components import BATCH_NORM, PLAIN, TRANSFORMER

#: attribute of a model: the number of channels and the size in pixels of its images
INPUT = "_adaptkit_input"
NORMS: tuple[type[nn.Module], ...] = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)


def replace_layer(model: nn.Module, layer: nn.Module, other: nn.Module) -> None:
    """Replace a layer everywhere in the model; a shared layer stays shared."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is layer:
                setattr(parent, name, other)
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # Disable the fast path, which reads the weights of layers instead of calling them.
                    parent.activation_relu_or_gelu = 0


def find_head(model: nn.Module) -> nn.Module:
    """Return the last linear layer in definition order; a wrapper with a `base_layer` counts as one layer.

    Raises BadInput if the model has none.
    """
    last: nn.Module | None = None
    wrapped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(wrapped):
            continue
        if hasattr(module, "base_layer"):
            wrapped += (f"{name}." if name else "",)
            if isinstance(module.base_layer, nn.Linear):
                last = module
        elif isinstance(module, nn.Linear):
            last = module
    if last is None:
        raise BadInput(f"{type(model).__name__} has no linear layer to serve as head")
    return last


def replace_head(model: nn.Module, head: nn.Module, classes: int) -> nn.Linear:
    """Replace a linear layer of the model by a new one for `classes` classes, and return it.

    Raises BadInput if the model is itself this layer.
    """
    if head is model:
        raise BadInput(f"{type(model).__name__} consists of its head only; put it into a torch.nn.Sequential")
    old = getattr(head, "base_layer", head)
    assert isinstance(old, nn.Linear)
    device, dtype = old.weight.device, old.weight.dtype
    fresh = nn.Linear(old.in_features, classes, bias=old.bias is not None, device=device, dtype=dtype)
    replace_layer(model, head, start_near_zero(fresh))
    return fresh


def find_kind(model: nn.Module) -> str:
    """Return the kind of a model, on which default learning rates depend."""
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    if not norms:
        return PLAIN
    return BATCH_NORM if any(isinstance(norm, nn.modules.batchnorm._BatchNorm) for norm in norms) else TRANSFORMER


def start_near_zero(head: nn.Linear) -> nn.Linear:
    """Divide the random weights of a new head by 100, so that the first loss is that of equal probabilities.

    The features of a pretrained network can be large, and with them the logits of a head with usual weights.
    """
    with torch.no_grad():
        head.weight.mul_(0.01)
        if head.bias is not None:
            head.bias.zero_()
    return head


#: names of the buffers with the mean and standard deviation of each channel, which a model subtracts and divides by
MEAN, STD = "source_mean", "source_std"
#: smallest standard deviation, so that images of one colour do not divide by 0
LEAST_STD = 1e-3
#: by what a model standardizes its images: by the statistics of the source, or each image by its own
BY_SOURCE, BY_IMAGE = "source", "image"


def with_head(model: nn.Module, input: tuple[int, int] | None = None, *, standardize: str | None = None) -> nn.Module:
    """Return the model with a property `head`; an existing attribute `head` is left unchanged.

    `input` are the channels and the size in pixels of its images; they are kept with the model for checks on a few
    random images. With `standardize` BY_SOURCE, the model has buffers for the statistics of the source, which change
    nothing at first; with BY_IMAGE, it standardizes each image by the mean and standard deviation of its pixels.
    """
    if input is not None:
        setattr(model, INPUT, input)
    if standardize == BY_SOURCE:
        assert input is not None
        for name, value in ((MEAN, 0.0), (STD, 1.0)):
            model.register_buffer(name, torch.full((input[0], 1, 1), value))
    is_headed = not hasattr(model, "head")
    if is_headed or standardize:
        model.__class__ = _extended(type(model), is_headed, standardize)  # type: ignore[arg-type]  # classes are hashable
    return model


@functools.cache
def _extended(cls: type[nn.Module], is_headed: bool, standardize: str | None) -> type[nn.Module]:
    # Use a property of a subclass, because a second reference would register the layer and its keys twice.
    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _rebuild, (cls, is_headed, standardize), self.__dict__

    def by_source(self: Any, images: Tensor) -> Any:
        return cls.forward(self, (images - self.source_mean) / self.source_std)

    def by_image(self: nn.Module, images: Tensor) -> Any:
        mean = images.mean((1, 2, 3), keepdim=True)
        std = images.std((1, 2, 3), correction=0, keepdim=True)
        return cls.forward(self, (images - mean) / (std + LEAST_STD))

    members: dict[str, Any] = {"__reduce_ex__": reduce, "__module__": cls.__module__}
    if is_headed:
        members["head"] = property(find_head)
    if standardize is not None:
        members["forward"] = by_source if standardize == BY_SOURCE else by_image
    return type(cls.__name__, (cls,), members)


def _rebuild(cls: type[nn.Module], is_headed: bool, standardize: str | None) -> nn.Module:
    extended = _extended(cls, is_headed, standardize)  # type: ignore[arg-type]
    return extended.__new__(extended)


#: a block with this fraction of all parameters outside the head contains the stages and is not a stage itself
NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Stage:
    """A block or layer, and the normalization layers after it; `parts` are their names and modules, in order."""

    parts: tuple[tuple[str, nn.Module], ...]

    @property
    def name(self) -> str:
        """Return the name of the block."""
        return self.parts[0][0]

    @property
    def last(self) -> nn.Module:
        """Return the module that computes the stage's output."""
        return self.parts[-1][1]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all parts."""
        return [parameter for _, part in self.parts for parameter in part.parameters()]


def find_stages(model: nn.Module) -> list[Stage]:
    """Return the stages of a model that has a `head`, in definition order.

    A stage is a block with a custom forward pass, or a layer in a container. Blocks that contain the head or nearly all
    parameters are divided further. Normalization layers belong to the stage before them, or to the first stage. Layers
    without parameters, and parameters outside all blocks, such as a class token, belong to no stage.
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
        direct = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        holds_all = _size(module) >= NEARLY_ALL * body and direct < _size(module) / 2
        holds_head = any(inner is head for inner in module.modules())
        if module is model or _is_container(module) or holds_head or holds_all:
            for child, inner in module.named_children():
                yield from visit(f"{name}.{child}".lstrip("."), inner)
        else:
            yield name, module

    return visit("", model)


def _is_container(module: nn.Module) -> bool:
    # A ModuleList has no forward pass, and a Sequential only calls its layers in order.
    return type(module).forward in (nn.Module.forward, nn.Sequential.forward)


def _only_norms(module: nn.Module) -> bool:
    holders = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return all(isinstance(part, NORMS) for part in holders)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
