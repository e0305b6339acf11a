"""Which layers of a model a strategy can adapt; determined by what the layers do on a few images, not by their type."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from adaptkit.backbones.structure import INPUT, find_head
from adaptkit.errors import BadInput, listed

#: attribute of a model: how it uses its layers
USAGE = "_adaptkit_usage"

OWN_FORWARD = "its forward pass is not that of its type"
COMPUTED = "its weight is computed from other tensors"
NOT_CALLED = "the model uses its weight without calling it"
UNUSED = "the logits do not depend on it"

#: tolerance for outputs that differ only in the order of sums, relative to the largest output
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Usage:
    """How a model uses its layers and parameters, by name.

    `called` are the modules that the forward pass calls, and `read` those whose weights it also uses in another way.
    `unused` are the parameters on which the logits do not depend. `heads` are the classifier layers: the last linear
    layer, and others of its shape next to it if the logits are computed from several. `heads_decide` is true if the
    logits of all images are equal when the weights of these layers are zero.
    """

    called: frozenset[str]
    read: frozenset[str]
    unused: frozenset[str]
    heads: tuple[str, ...]
    heads_decide: bool


def find_usage(model: nn.Module) -> Usage | None:
    """Run a model that is not adapted yet forward and backward on two random images, and return how it uses its parts.

    Returns None if the size of its images is not known, or if the model fails. The result is kept with the model, and
    with copies of it, until `forget_usage` is called.
    """
    if not hasattr(model, INPUT):
        return None
    if USAGE not in vars(model):
        channels, size = getattr(model, INPUT)
        try:
            # On a copy, since a forward pass may leave tensors or other state in the model.
            vars(model)[USAGE] = _usage(copy.deepcopy(model).eval(), channels=channels, size=size)
        except Exception:  # models raise many kinds of errors; the preflight reports them
            vars(model)[USAGE] = None
    usage: Usage | None = vars(model)[USAGE]
    return usage


def share_usage(model: nn.Module, other: nn.Module) -> None:
    """Use the result of `find_usage` for another model with the same layers."""
    vars(other)[USAGE] = find_usage(model)


def forget_usage(model: nn.Module) -> None:
    """Forget the result of `find_usage`, because the model has changed."""
    vars(model).pop(USAGE, None)


def _usage(model: nn.Module, *, channels: int, size: int) -> Usage:
    with torch.random.fork_rng(devices=[]):  # layers that draw random numbers do not change later draws
        torch.manual_seed(0)
        like = next(model.parameters())
        for parameter in model.parameters():
            if not bool(parameter.any()):  # zeros would hide what depends on them
                parameter.data.normal_(std=0.1)
        return _observed(model, torch.rand(2, channels, size, size).to(like.device, like.dtype))


def _observed(model: nn.Module, images: Tensor) -> Usage:
    outputs: dict[nn.Module, list[Any]] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        kept = outputs.setdefault(module, [])
        if _weight(module) is not None:
            kept.append(output)

    parameters = dict(model.named_parameters())
    floating = {name: parameter for name, parameter in parameters.items() if parameter.is_floating_point()}
    for parameter in floating.values():
        parameter.requires_grad_(True)
    # With gradients, since torch's transformer layers read weights instead of calling layers without them.
    with torch.enable_grad(), _hooks(list(model.modules()), note):
        logits = model(images.clone())
    gradients = torch.autograd.grad(logits.sum(), list(floating.values()), allow_unused=True)
    unused = frozenset(name for name, grad in zip(floating, gradients, strict=True) if grad is None)
    names = {module: name for name, module in model.named_modules()}
    weighted = [module for module, kept in outputs.items() if kept]
    read = {names[module] for module in _read(model, images, weighted, outputs)}
    heads, heads_decide = _heads(model, images)
    return Usage(
        called=frozenset(names[module] for module in outputs),
        read=frozenset(read),
        unused=unused,
        heads=tuple(names[head] for head in heads),
        heads_decide=heads_decide,
    )


@contextmanager
def _hooks(modules: list[nn.Module], hook: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _read(
    model: nn.Module, images: Tensor, layers: list[nn.Module], outputs: Mapping[nn.Module, list[Any]]
) -> list[nn.Module]:
    """Return the layers whose weights have an effect besides the outputs of the layers.

    The outputs are replaced by those recorded before, and the weights by NaN: the inputs of these layers and the logits
    must stay finite.
    """
    calls: dict[nn.Module, int] = {}
    inputs_seen: list[Tensor] = []

    def replay(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        inputs_seen.extend(value for value in inputs if isinstance(value, Tensor) and value.is_floating_point())
        calls[module] = calls.get(module, 0) + 1
        return outputs[module][calls[module] - 1]

    def has_effect(chosen: list[nn.Module]) -> bool:
        weights = [weight for module in chosen for weight in [_weight(module)] if weight is not None]
        values = [weight.detach().clone() for weight in weights]
        calls.clear()
        inputs_seen.clear()
        try:
            for weight in weights:
                weight.fill_(float("nan"))
            with _hooks(chosen, replay):
                logits = model(images.clone())
            return not all(bool(torch.isfinite(value).all()) for value in (*inputs_seen, logits))
        except Exception:  # code that rejects NaN has read the weight
            return True
        finally:
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)

    with torch.no_grad():
        if not has_effect(layers):
            return []
        return [layer for layer in layers if has_effect([layer])]


@torch.no_grad()
def _heads(model: nn.Module, images: Tensor) -> tuple[list[nn.Module], bool]:
    """Return the classifier layers of a model, and whether they alone decide the logits."""
    try:
        head = find_head(model.head)  # type: ignore[arg-type]
    except BadInput:  # there is no linear layer
        return [], True
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    twins = list(itertools.takewhile(lambda layer: _shape(layer) == _shape(linear[-1]), reversed(linear)))
    candidates: tuple[list[nn.Module], ...] = ([head], [*reversed(twins)])
    for heads in candidates:
        if head in heads and _decide(model, heads, images):
            return heads, True
    return [head], False


def _shape(layer: nn.Linear) -> tuple[int, int]:
    return layer.in_features, layer.out_features


def _decide(model: nn.Module, heads: Sequence[nn.Module], images: Tensor) -> bool:
    """Check whether the logits of all images are equal when the parameters of these layers are zero."""
    parameters = [parameter for head in heads for parameter in head.parameters()]
    values = [parameter.clone() for parameter in parameters]
    spread = (model(images.clone()).diff(dim=0)).abs().max()
    try:
        for parameter in parameters:
            parameter.zero_()
        rest = (model(images.clone()).diff(dim=0)).abs().max()
    finally:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    return not bool(rest > TOLERANCE * spread)  # NaN, for example of a normalized zero, means no other source


def _weight(layer: nn.Module) -> nn.Parameter | None:
    """Return the weight of a layer if it is a parameter of the layer itself."""
    weight = layer._parameters.get("weight")
    return weight if isinstance(weight, nn.Parameter) and weight.is_floating_point() else None


def is_called(model: nn.Module, module: nn.Module) -> bool:
    """Check whether the forward pass of a model that is not adapted yet calls a module; true if that is not known."""
    usage = find_usage(model)
    return usage is None or next(name for name, part in model.named_modules() if part is module) in usage.called


def find_heads(model: nn.Module) -> list[nn.Module]:
    """Return the classifier layers of a model that is not adapted yet: one, or several whose logits are combined.

    A model without linear layers has none.
    """
    usage = find_usage(model)
    if usage is not None:
        return [model.get_submodule(name) for name in usage.heads]
    try:
        head = getattr(model, "head", None)
        return [find_head(head)] if isinstance(head, nn.Module) else []
    except BadInput:
        return []


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the classifier layers of a model that is not adapted yet."""
    return [parameter for head in find_heads(model) for parameter in head.parameters()]


def reasons_against(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, str]:
    """Return, by name, the layers of these types that a strategy cannot simply wrap, each with the reason."""
    usage = find_usage(model)
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    in_attention = {id(layer) for attention in attentions for layer in attention.modules()}
    sharers = _sharers(model)
    reasons = {}
    for name, layer in model.named_modules():
        if not name or not isinstance(layer, kinds):
            continue
        weight = f"{name}.weight"
        called = id(layer) not in in_attention if usage is None else name in usage.called and name not in usage.read
        if name in sharers:
            reasons[name] = f"it shares its weight with {sharers[name]}"
        elif parametrize.is_parametrized(layer) or (_weight(layer) is None and layer.weight is not None):
            reasons[name] = COMPUTED
        elif usage is not None and weight in usage.unused:
            reasons[name] = UNUSED
        elif not called:
            reasons[name] = NOT_CALLED
        elif isinstance(layer, nn.Linear | nn.Conv2d) and not _is_plain(layer):
            reasons[name] = OWN_FORWARD
    return reasons


def called_layers(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Return, by name, the layers of these types that a strategy can wrap."""
    reasons = reasons_against(model, kinds)
    return {
        name: layer
        for name, layer in model.named_modules()
        if name and isinstance(layer, kinds) and name not in reasons
    }


def _sharers(model: nn.Module) -> dict[str, str]:
    """Return the names of layers that share a parameter with another layer, and the name of that layer."""
    owners: dict[int, dict[int, str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), {})[id(module)] = name
    groups = [list(names.values()) for names in owners.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in groups for name in names}


@torch.no_grad()
def _is_plain(layer: nn.Linear | nn.Conv2d) -> bool:
    """Check whether a layer computes what its type does with its weight and bias, hooks included."""
    x, training = probe(layer), layer.training
    try:
        layer.eval()
        if isinstance(layer, nn.Linear):
            expected = functional.linear(x, layer.weight, layer.bias)
        else:
            expected = nn.Conv2d._conv_forward(layer, x, layer.weight, layer.bias)
        return same(layer(x), expected)
    except Exception:  # a forward pass of another kind
        return False
    finally:
        layer.train(training)


def probe(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Return a random input for a layer: always the same, and larger than its kernel and padding."""
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (2, layer.in_features)
    else:
        paddings = (0, 0) if isinstance(layer.padding, str) else layer.padding
        sides = [
            max(step * (size - 1) + 1, padding + 1) + 2
            for size, step, padding in zip(layer.kernel_size, layer.dilation, paddings, strict=True)
        ]
        shape = (2, layer.in_channels, *sides)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(layer.weight.device, layer.weight.dtype)


def same(ours: Any, theirs: Tensor) -> bool:
    """Check whether two outputs are equal up to rounding."""
    if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= TOLERANCE * max(1.0, float(theirs.abs().max())))


def coverage(title: str, adapted: int, left_out: Mapping[str, str], what: str = "layers") -> list[str]:
    """Return the notice about layers that a strategy does not adapt, with their number and the reasons, if any.

    Examples
    --------
    >>> coverage("lora", 49, {"conv_stem": "depth-wise convolution"})
    ['lora: adapts 49 of 50 layers; not: conv_stem (depth-wise convolution)']
    """
    if not left_out:
        return []
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    parts = [f"{listed(names)} ({reason})" for reason, names in by_reason.items()]
    total = adapted + len(left_out)
    few = "only " if adapted < total / 2 else ""
    return [f"{title}: adapts {few}{adapted} of {total} {what}; not: {'; '.join(parts)}"]
