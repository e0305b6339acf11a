"""Divide an adapted model of any architecture into a frozen part and a trained part.

The model's forward pass is traced (torch.fx) into a graph of layers and operations. A value is frozen if it depends on
nothing that is trained, random, or different in training and evaluation. The trained part reads the last frozen values,
called the cut: for `head` the input of the last layer, for LoRA the input and the frozen output of the first adapted
layer. A trial on a few images then compares the divided model with the whole one. A model that cannot be traced, or
fails the trial, is not divided.
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


def digest(node: fx.Node, target: Any, inputs: dict[fx.Node, str]) -> str:
    """Return the sha256 of a value: of its operation with settings and weights, and of the digests of its inputs.

    `target` is the layer, attribute or function behind the node. A layer that cannot be compared reliably gets a random
    digest, so that it never equals another one.
    """
    parts = [node.op]
    if isinstance(target, Tensor):
        parts.append(fingerprint({"": target}))
    elif isinstance(target, nn.Module):
        parts += _layer_identity(target)
    elif node.op != "placeholder":
        parts.append(target if isinstance(target, str) else f"{target.__module__}.{target.__qualname__}")
    parts.append(repr(fx.node.map_arg((node.args, node.kwargs), lambda other: inputs[other])))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _layer_identity(layer: nn.Module) -> list[str]:
    """Return texts that identify a layer: its classes, weights, buffers and other state.

    Its mode is left out, because a frozen layer computes the same in training and in evaluation.
    """
    # Pickle stores a function by its name only, and another layer may hold a different function of this name.
    if any(isinstance(value, types.MethodType) for part in layer.modules() for value in vars(part).values()):
        return [uuid.uuid4().hex]
    try:
        classes = pickle.dumps([type(part) for part in layer.modules()])
        buffers = held(layer)
        kept = repr([classes, {name: value for name, value in buffers.items() if not isinstance(value, Tensor)}])
    except Exception:  # closures, local classes and open files cannot be compared
        return [uuid.uuid4().hex]
    tensors = {name: value for name, value in buffers.items() if isinstance(value, Tensor)}
    return [kept, fingerprint(tensors | {name: value.detach() for name, value in layer.named_parameters()})]


#: layers without parameters that are deterministic and compute the same in training and in evaluation
STEADY = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softmax, nn.LogSoftmax),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.ReflectionPad2d),
)


class Tracer(fx.Tracer):
    """Trace into containers, partly trained layers, and modules that only combine layers without parameters."""

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
        except Exception:  # its forward pass depends on values or types and cannot be traced
            for node in list(reversed(self.graph.nodes)):
                if node is last:
                    break
                self.graph.erase_node(node)
            self.module_stack = stack  # an exception leaves modules on the stack
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def forget_source(network: fx.GraphModule) -> None:
    """Remove the source of a traced model from caches of torch that are never emptied otherwise."""
    name = type(network).forward.__code__.co_filename
    linecache.cache.pop(name, None)
    kept = getattr(getattr(fx.graph_module, "_loader", None), "eval_cache", None)
    if isinstance(kept, dict):
        kept.pop(name, None)


@torch.no_grad()
def run_graph(model: nn.Module, graph: fx.Graph, images: Tensor) -> tuple[dict[fx.Node, Any], frozenset[fx.Node]]:
    """Return the value of every node for these images, and the nodes whose values later operations overwrite."""
    values: dict[fx.Node, Any] = {}
    versions: dict[fx.Node, int] = {}
    for node in graph.nodes:
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda other: values[other])
        target = referent(model, node)
        if node.op == "placeholder":
            values[node] = arguments[0] if arguments else images  # a further argument of forward has its default
        elif node.op == "get_attr":
            values[node] = target
        elif node.op == "call_method":
            values[node] = getattr(arguments[0], target)(*arguments[1:], **keywords)
        elif node.op != "output":
            values[node] = target(*arguments, **keywords)
        if isinstance(values.get(node), Tensor):
            versions[node] = values[node]._version
    return values, frozenset(node for node, version in versions.items() if values[node]._version != version)


def frozen_nodes(model: nn.Module, graph: fx.Graph) -> dict[fx.Node, None]:
    """Return, in order, the nodes that depend on nothing that is trained or differs in training."""
    frozen: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if all(other in frozen for other in node.all_input_nodes) and _is_frozen(model, node):
            frozen[node] = None
    return frozen


def _is_frozen(model: nn.Module, node: fx.Node) -> bool:
    """Check whether a node with frozen inputs is frozen too."""
    target = referent(model, node)
    if node.op == "output":
        return False
    if not isinstance(target, nn.Module):
        return not getattr(target, "requires_grad", False)
    trained = any(parameter.requires_grad for parameter in target.parameters())
    return not trained and all(not part.training or _is_steady(part) for part in target.modules())


def _is_steady(layer: nn.Module) -> bool:
    """Check whether a layer computes the same in training and in evaluation, such as dropout with p=0."""
    return type(layer) in (*STEADY, nn.Sequential) or (isinstance(layer, nn.Dropout) and layer.p == 0)


def referent(model: nn.Module, node: fx.Node) -> Any:
    """Return the layer, attribute or function of a node, or the name of its method."""
    if node.op in ("call_module", "get_attr"):
        return functools.reduce(getattr, str(node.target).split("."), model)
    return node.target


@dataclass(frozen=True)
class Division:
    """A model's graph and its cut: `prefix` maps images to the values at the cut, `trained` maps these to logits.

    Both networks share the model's layers. `row_bytes` is the size of the values at the cut for one image.
    `overwritten` are values into which the operation that reads them writes.
    """

    model: nn.Module
    graph: fx.Graph
    cut: tuple[fx.Node, ...]
    overwritten: frozenset[fx.Node]
    row_bytes: int

    @property
    def images(self) -> fx.Node:
        """Return the node of the model's input."""
        node: fx.Node = next(node for node in self.graph.nodes if node.op == "placeholder")
        return node

    @functools.cached_property
    def digests(self) -> dict[fx.Node, str]:
        """Return a sha256 of how each frozen value is computed from the images: operations, settings and weights."""
        digests: dict[fx.Node, str] = {}
        for node in frozen_nodes(self.model, self.graph):
            digests[node] = digest(node, referent(self.model, node), digests)
        return digests

    @functools.cached_property
    def prefix(self) -> nn.Module:
        """Return the network from images to the tuple of values at the cut."""
        return self.frozen([self.images], self.cut)

    @functools.cached_property
    def trained(self) -> nn.Module:
        """Return the network from the values at the cut to logits."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        return self._carve(self.cut, [output.args[0]], single=True)

    def frozen(self, starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> nn.Module:
        """Return the network from the values `starts` to the tuple of the values `ends`."""
        return self._carve(starts, ends, single=False)

    def is_overwritten(self, node: fx.Node) -> bool:
        """Check whether an operation that reads this value writes into it."""
        return node in self.overwritten

    def of(self, model: nn.Module) -> Division:
        """Return the division of another model, which has the same frozen part."""
        division = dataclasses.replace(self, model=model)
        vars(division)["digests"] = self.digests
        division.holds()  # from now on
        return division

    def holds(self) -> bool:
        """Check whether nothing but trained weights has changed in the model since it was divided."""
        return not watched(self.model) and self._seen == self._condition()

    @functools.cached_property
    def _seen(self) -> list[Any]:
        return self._condition()

    def _condition(self) -> list[Any]:
        """Return which parameters are trained, and the version of every tensor that frozen values depend on."""
        targets = [referent(self.model, node) for node in _behind(self.cut, set())]
        layers = [target for target in targets if isinstance(target, nn.Module)]
        tensors = [target for target in targets if isinstance(target, Tensor)]
        tensors += [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]
        flags = [(id(parameter), parameter.requires_grad) for parameter in self.model.parameters()]
        return [*flags, *((id(tensor), tensor._version) for tensor in tensors)]

    def _carve(self, starts: Sequence[fx.Node], ends: Sequence[Any], *, single: bool) -> nn.Module:
        """Return a network of the model's layers from the values `starts` of its graph to the values `ends`."""
        needed = _behind(ends, set(starts))
        part = fx.Graph()
        copies = {node: part.placeholder(f"start_{place}") for place, node in enumerate(starts)}
        for node in starts:
            if node in self.overwritten:  # the caller's tensor must not change
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
    """Return the model's division, or None if it cannot be divided or if that would save nothing.

    `images` are five or more images for the trial, on the model's device. `compute()` returns the context in which
    models run. The model must be ready to be trained, with `requires_grad` and training modes set.
    """
    if all(parameter.requires_grad for parameter in model.parameters()) or watched(model):
        return None
    # With unequal brightness, so that the trial shows if an image's result depends on other images of the batch.
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

            passed = passes_trial(model, parts, images=images, compute=compute) and division.holds()
        return division if passed else None
    except Exception:  # tracing and layers raise many kinds of errors; the model then runs whole
        return None


def watched(model: nn.Module) -> bool:
    """Check whether hooks watch or change values in the model; they need the whole model to run."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(module, kind, None) for module in model.modules() for kind in kinds)
    return hooked or any(getattr(nn.modules.module, f"_global{kind}", None) for kind in kinds)


def _divided(model: nn.Module, images: Tensor, compute: Callable[[], AbstractContextManager[None]]) -> Division | None:
    """Return the division at the last frozen values that have a row for each image.

    Returns None if the frozen part has no layer with weights, or if a value is overwritten that other operations read.
    """
    twin = copy.deepcopy(model)  # tracing runs the forward pass, which may change the model
    graph = Tracer().trace(twin)
    for name, value in vars(twin).items():
        if name.startswith("_tensor_constant"):  # made by the forward pass
            setattr(model, name, value)
    # A subset in another order shows which values depend on other images of the batch.
    subset = torch.arange(len(images) - 2, 0, -1, device=images.device)
    with compute():
        values, overwritten = run_graph(twin, graph, images.clone())
        fewer, _ = run_graph(twin, graph, images[subset].clone())
    if any(sum(_holds_tensors(values[user]) for user in node.users) > 1 for node in overwritten):
        return None
    frozen = frozen_nodes(twin, graph)
    live = {node for node in graph.nodes if node.op != "output" and node not in frozen}
    while True:
        cut = [node for node in frozen if node not in live and _is_read(node, live) and node.op != "get_attr"]
        without_rows = [node for node in cut if not _has_rows(values[node], fewer[node], subset)]
        if not without_rows:
            break
        # A number, a shape or a mean over the batch: the trained part computes it again from its inputs.
        live.update(without_rows)
    output = next(node for node in graph.nodes if node.op == "output")
    if cut != list(output.args) and not any(parameter.requires_grad for parameter in model.parameters()):
        return None  # the features of a model that is frozen as a whole are its logits
    layers = [referent(model, node) for node in _behind(cut, set()) if node.op == "call_module"]
    if not any(True for layer in layers for _ in layer.parameters()):
        return None
    row_bytes = sum(values[node].nbytes for node in cut) // len(images)
    return Division(model=model, graph=graph, cut=tuple(cut), overwritten=overwritten, row_bytes=row_bytes)


def _is_read(node: fx.Node, live: set[fx.Node]) -> bool:
    return any(user in live or user.op == "output" for user in node.users)


def _has_rows(value: Any, fewer: Any, subset: Tensor) -> bool:
    """Check whether a value has one row per image that does not depend on other images."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(fewer) != len(subset) or len(value) != len(subset) + 2:
        return False
    tolerance = 1e-5 if value.dtype in (torch.float32, torch.float64) else 1e-2
    ours, theirs = value[subset].double(), fewer.double()
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
