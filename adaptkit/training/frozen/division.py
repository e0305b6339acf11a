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
import hashlib
import linecache
import pickle
import types
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from adaptkit.adapters.weights import fingerprint
from adaptkit.training.frozen.trial import held, passes_trial
from adaptkit.training.seeding import RandomStream


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


#: Layers without parameters that do the same in training as in evaluation, and draw nothing.
STEADY = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softmax, nn.LogSoftmax),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.ReflectionPad2d),
)


class Tracer(fx.Tracer):
    """Look into containers, layers that are trained in part, and those that only arrange others without parameters."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Sequential):
            return False
        trained = [parameter.requires_grad for parameter in m.parameters()]
        mixed = any(trained) and not all(trained)
        arranging = not trained and any(True for _ in m.children())
        whole = not (mixed or arranging) or parametrize.is_parametrized(m)
        return whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        last = next(iter(reversed(self.graph.nodes)))
        stack = self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # its forward cannot be traced: it depends on values or types
            for node in list(reversed(self.graph.nodes)):
                if node is last:
                    break
                self.graph.erase_node(node)
            self.module_stack = stack  # an exception leaves the modules in it that it came through
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def forget_source(network: fx.GraphModule) -> None:
    """Take a traced model's source out of where torch keeps it for tracebacks, of every model, for ever."""
    name = type(network).forward.__code__.co_filename
    linecache.cache.pop(name, None)
    kept = getattr(getattr(fx.graph_module, "_loader", None), "eval_cache", None)
    if isinstance(kept, dict):
        kept.pop(name, None)


@torch.no_grad()
def run_graph(model: nn.Module, graph: fx.Graph, images: Tensor) -> tuple[dict[fx.Node, Any], frozenset[fx.Node]]:
    """Return the value of every node for these images, and the nodes whose values are overwritten."""
    values: dict[fx.Node, Any] = {}
    versions: dict[fx.Node, int] = {}
    for node in graph.nodes:
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda other: values[other])
        thing = referent(model, node)
        if node.op == "placeholder":
            values[node] = arguments[0] if arguments else images  # a further argument of forward has its default
        elif node.op == "get_attr":
            values[node] = thing
        elif node.op == "call_method":
            values[node] = getattr(arguments[0], thing)(*arguments[1:], **keywords)
        elif node.op != "output":
            values[node] = thing(*arguments, **keywords)
        if isinstance(values.get(node), Tensor):
            versions[node] = values[node]._version
    return values, frozenset(node for node, version in versions.items() if values[node]._version != version)


def frozen_nodes(model: nn.Module, graph: fx.Graph) -> dict[fx.Node, None]:
    """Return, in order, the nodes that are computed from nothing that is trained or differs in training."""
    frozen: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if all(other in frozen for other in node.all_input_nodes) and _is_frozen(model, node):
            frozen[node] = None
    return frozen


def _is_frozen(model: nn.Module, node: fx.Node) -> bool:
    """Tell whether a node, whose inputs are frozen, is frozen too."""
    thing = referent(model, node)
    if node.op == "output":
        return False
    if not isinstance(thing, nn.Module):
        return not getattr(thing, "requires_grad", False)
    trained = any(parameter.requires_grad for parameter in thing.parameters())
    return not trained and all(not part.training or _is_steady(part) for part in thing.modules())


def _is_steady(layer: nn.Module) -> bool:
    """Tell whether a layer without parameters of its own does the same in training; a dropout of nothing does."""
    return type(layer) in (*STEADY, nn.Sequential) or (isinstance(layer, nn.Dropout) and layer.p == 0)


def referent(model: nn.Module, node: fx.Node) -> Any:
    """Return the layer, attribute, function or name of a method that a node stands for."""
    if node.op in ("call_module", "get_attr"):
        return functools.reduce(getattr, str(node.target).split("."), model)
    return node.target


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
