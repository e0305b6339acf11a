"""Divide an adapted model, whatever its architecture, into its frozen part and the part that training changes.

The model's forward pass is traced (torch.fx) into a graph of layers and operations. A value in it is frozen when
nothing that it is computed from is trained, drawn at random, or differs between training and evaluation. The trained
part reads the last frozen values, the cut: for `head` the input of the last layer, for LoRA the features that the
first adapted layer sees and what its frozen layer makes of them. A trial run on a few images then holds the division
against the whole model; a model that cannot be traced, or fails the trial, is not divided.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from adaptkit.training.digests import digest
from adaptkit.training.graphs import Tracer, forget_source, frozen_nodes, referent, run_graph
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trial import passes_trial


@dataclass(frozen=True)
class Division:
    """A model's graph and its cut: `trained` maps the cut values, in order, to logits.

    The layers in `trained` are the model's own, not copies. `row_bytes` is the size of the cut values of one image,
    `overwritten` are the values into which the operation that reads them writes.
    """

    model: nn.Module
    graph: fx.Graph
    cut: tuple[fx.Node, ...]
    overwritten: frozenset[fx.Node]
    row_bytes: int

    @property
    def images(self) -> fx.Node:
        """Return the node that stands for the model's input."""
        node: fx.Node = next(node for node in self.graph.nodes if node.op == "placeholder")
        return node

    @functools.cached_property
    def digests(self) -> dict[fx.Node, str]:
        """Return the sha256 of how each frozen value comes from the images: operations, settings and weights."""
        digests: dict[fx.Node, str] = {}
        for node in frozen_nodes(self.model, self.graph):
            digests[node] = digest(node, referent(self.model, node), digests)
        return digests

    @functools.cached_property
    def prefix(self) -> nn.Module:
        """Return the network from images to the tuple of the cut values."""
        return self.frozen([self.images], self.cut)

    @functools.cached_property
    def trained(self) -> nn.Module:
        """Return the network from the cut values to logits."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        return self._carve(self.cut, [output.args[0]], single=True)

    def frozen(self, starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> nn.Module:
        """Return the network from the values `starts` to the tuple of the values `ends`."""
        return self._carve(starts, ends, single=False)

    def is_overwritten(self, node: fx.Node) -> bool:
        """Tell whether an operation that reads this value writes into it."""
        return node in self.overwritten

    def holds(self) -> bool:
        """Tell whether the model is still as it was when it was divided, but for what is trained."""
        return not watched(self.model) and self._seen == self._condition()

    @functools.cached_property
    def _seen(self) -> list[Any]:
        return self._condition()

    def _condition(self) -> list[Any]:
        """Return which parameters are trained, and what the frozen values are made of with its version."""
        things = [referent(self.model, node) for node in _behind(self.cut, set())]
        layers = [thing for thing in things if isinstance(thing, nn.Module)]
        tensors = [thing for thing in things if isinstance(thing, Tensor)]
        tensors += [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]
        flags = [(id(parameter), parameter.requires_grad) for parameter in self.model.parameters()]
        return [*flags, *((id(tensor), tensor._version) for tensor in tensors)]

    def _carve(self, starts: Sequence[fx.Node], ends: Sequence[Any], *, single: bool) -> nn.Module:
        """Return a network of the model's own layers from some values of its graph to others."""
        needed = _behind(ends, set(starts))
        part = fx.Graph()
        copies = {node: part.placeholder(f"start_{place}") for place, node in enumerate(starts)}
        for node in starts:
            if node in self.overwritten:  # what is given is read again by others
                copies[node] = part.call_method("clone", (copies[node],))
        for node in self.graph.nodes:
            if node in needed and node not in copies:
                copies[node] = part.node_copy(node, lambda other: copies[other])
        results = fx.node.map_arg(tuple(ends), lambda node: copies[node])
        part.output(results[0] if single else results)
        network = fx.GraphModule(self.model, part)
        forget_source(network)
        return network


def divide(model: nn.Module, images: Tensor, compute: Callable[[], AbstractContextManager[None]]) -> Division | None:
    """Return the model's division, or None when it cannot be divided or nothing is won by it.

    `images` are five or more that the trial uses, on the model's device; `compute()` is the context in which models
    run. The model must be as it is trained: with its flags and its training modes set.
    """
    if all(parameter.requires_grad for parameter in model.parameters()) or watched(model):
        return None
    # Of unequal brightness: what an image of a batch takes from the others then shows.
    images = images * torch.linspace(1, 0.4, len(images), device=images.device).view(-1, 1, 1, 1)
    try:
        with warnings.catch_warnings(), RandomStream(0):
            warnings.simplefilter("ignore")
            division = _divided(model, images, compute)
            if division is None:
                return None

            def parts(twin: nn.Module) -> tuple[nn.Module, nn.Module]:
                tried = dataclasses.replace(division, model=twin)
                return tried.prefix, tried.trained

            passed = passes_trial(model, parts, images, compute) and division.holds()
        return division if passed else None
    except Exception:  # whatever tracing or a layer trips over: the model then runs whole
        return None


def watched(model: nn.Module) -> bool:
    """Tell whether somebody watches or changes what passes through a layer; that needs the whole model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(module, kind, None) for module in model.modules() for kind in kinds)
    return hooked or any(getattr(nn.modules.module, f"_global{kind}", None) for kind in kinds)


def _divided(model: nn.Module, images: Tensor, compute: Callable[[], AbstractContextManager[None]]) -> Division | None:
    """Return the division at the last frozen values that hold a row for each image; None if no layer with weights
    is in them, or a value is overwritten that others read too.
    """
    twin = copy.deepcopy(model)  # tracing runs the forward pass, which may change what it likes
    graph = Tracer().trace(twin)
    for name, thing in vars(twin).items():
        if name.startswith("_tensor_constant"):  # made by the forward pass
            setattr(model, name, thing)
    some = torch.arange(len(images) - 2, 0, -1, device=images.device)
    with compute():
        (values, overwritten), (fewer, _) = (run_graph(twin, graph, given.clone()) for given in (images, images[some]))
    if any(sum(_holds_tensors(values[user]) for user in node.users) > 1 for node in overwritten):
        return None
    frozen = frozen_nodes(twin, graph)
    live = {node for node in graph.nodes if node.op != "output" and node not in frozen}
    while True:
        cut = [node for node in frozen if node not in live and _is_read(node, live) and node.op != "get_attr"]
        odd = [node for node in cut if not _has_rows(values[node], fewer[node], some)]
        if not odd:
            break
        # A number, a shape, a mean of the batch: the trained part makes it anew, from what it is made of.
        live.update(odd)
    output = next(node for node in graph.nodes if node.op == "output")
    if cut != list(output.args) and not any(parameter.requires_grad for parameter in model.parameters()):
        return None  # the features of a model that is frozen as a whole are its logits
    layers = [referent(model, node) for node in _behind(cut, set()) if node.op == "call_module"]
    if not any(True for layer in layers for _ in layer.parameters()):
        return None
    row_bytes = sum(values[node].nbytes for node in cut) // len(images)
    return Division(model, graph, tuple(cut), overwritten, row_bytes)


def _is_read(node: fx.Node, live: set[fx.Node]) -> bool:
    return any(user in live or user.op == "output" for user in node.users)


def _has_rows(value: Any, fewer: Any, some: Tensor) -> bool:
    """Tell whether a value has a row for each image that does not depend on the other images."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(fewer) != len(some) or len(value) != len(some) + 2:
        return False
    tolerance = 1e-5 if value.dtype in (torch.float32, torch.float64) else 1e-2
    ours, theirs = value[some].double(), fewer.double()
    return bool((ours - theirs).abs().max() <= tolerance * ours.abs().max())


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensors, value)))


def _behind(ends: Iterable[Any], starts: set[fx.Node]) -> set[fx.Node]:
    """Return the nodes that `ends` are computed from, back to `starts`."""
    found: set[fx.Node] = set()
    waiting = [node for node in ends if isinstance(node, fx.Node)]
    while waiting:
        node = waiting.pop()
        if node not in found and node not in starts:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found
