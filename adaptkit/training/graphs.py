"""Trace a model's forward pass into a graph, run it, and tell which of its values are frozen."""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

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
