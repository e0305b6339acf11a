"""Tell by a sha256 how a frozen value comes from the images."""

from __future__ import annotations

import hashlib
import pickle
import types
import uuid
from typing import Any

from torch import Tensor, fx, nn

from adaptkit.adapters.weights import fingerprint
from adaptkit.training.trial import held


def digest(node: fx.Node, thing: Any, inputs: dict[fx.Node, str]) -> str:
    """Return the sha256 of a value: its operation, its settings and weights, and the digests of its inputs.

    `thing` is the layer, attribute or function behind the node. What cannot be told apart for sure from others is
    told apart from all others.
    """
    told = [node.op]
    if isinstance(thing, Tensor):
        told.append(fingerprint({"": thing}))
    elif isinstance(thing, nn.Module):
        told += _layer(thing)
    elif node.op != "placeholder":
        told.append(thing if isinstance(thing, str) else f"{thing.__module__}.{thing.__qualname__}")
    told.append(repr(fx.node.map_arg((node.args, node.kwargs), lambda other: inputs[other])))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _layer(layer: nn.Module) -> list[str]:
    """Return what makes a layer what it is: its classes, weights, buffers and all that it keeps.

    Its mode is left out: a layer whose value is frozen does the same in training as in evaluation.
    """
    # A function put into a layer goes by its name when it is pickled; another of this name may be in another.
    if any(isinstance(value, types.MethodType) for part in layer.modules() for value in vars(part).values()):
        return [uuid.uuid4().hex]
    try:
        classes = pickle.dumps([type(part) for part in layer.modules()])
        buffers = held(layer)
        kept = repr([classes, {name: value for name, value in buffers.items() if not isinstance(value, Tensor)}])
    except Exception:  # closures, local classes, open files: there are no two the same
        return [uuid.uuid4().hex]
    tensors = {name: value for name, value in buffers.items() if isinstance(value, Tensor)}
    return [kept, fingerprint(tensors | {name: value.detach() for name, value in layer.named_parameters()})]
