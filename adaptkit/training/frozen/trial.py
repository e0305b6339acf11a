"""Check on a few images that a divided model trains and predicts like the whole one."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from adaptkit.adapters.weights import fingerprint
from adaptkit.training.objective import loss_of
from adaptkit.training.seeding import RandomStream

#: passes in training and in evaluation; the second pass shows what the first has changed
STEPS = 2
#: attributes of every layer, which belong to torch
OWN = frozenset(vars(nn.Module()))


def passes_trial(
    model: nn.Module,
    parts: Callable[[nn.Module], tuple[nn.Module, nn.Module]],
    *,
    images: Tensor,
    compute: Callable[[], AbstractContextManager[None]],
) -> bool:
    """Train two copies of a model on the images, one whole and one divided, and compare their behaviour.

    Logits, gradients, buffers, other state of the layers and random draws must be the same up to rounding.
    `parts(model)` returns a model's frozen and trained part. The model itself is not changed.
    """
    whole, divided = copy.deepcopy(model), copy.deepcopy(model)
    frozen, trained = parts(divided)
    inputs = images.clone()
    with RandomStream(0), compute(), torch.no_grad():
        features = [torch.cat(value.split(2)) for value in frozen(inputs)]  # as the store keeps them
    before = [value.clone() for value in features]
    rows = torch.arange(len(images), device=images.device)
    expected = _history(whole, lambda: whole(images[rows]), compute=compute)
    actual = _history(divided, lambda: trained(*(value[rows] for value in features)), compute=compute)
    unchanged = torch.equal(inputs, images) and all(map(torch.equal, features, before))
    return unchanged and _same(expected, actual) and _same(held(whole), held(divided))


def held(layer: nn.Module) -> dict[str, Any]:
    """Return the buffers of a layer and its sublayers, and their other state, pickled.

    Raises an exception if the state cannot be pickled.
    """
    return {**dict(layer.named_buffers()), **kept_outside(layer)}


def kept_outside(layer: nn.Module) -> dict[str, Any]:
    """Return the types of a layer and its sublayers, and their state outside parameters and buffers, pickled.

    Raises an exception if the state cannot be pickled.
    """
    kept: dict[str, Any] = {}
    for name, part in layer.named_modules():
        kept[f"{name} is"] = type(part)
        content = io.BytesIO()
        _Pickler(content).dump({key: value for key, value in vars(part).items() if key not in OWN})
        kept[f"{name} keeps"] = content.getvalue()
    return kept


class _Pickler(pickle.Pickler):
    """Pickle tensors by their content; their default pickle contains an address."""

    def reducer_override(self, obj: Any) -> Any:
        return (str, (fingerprint({"": obj}),)) if isinstance(obj, Tensor) else NotImplemented


def _history(
    model: nn.Module,
    run: Callable[[], Tensor],
    *,
    compute: Callable[[], AbstractContextManager[None]],
) -> list[Any]:
    """Train and evaluate; return each step's logits and gradients, and the next numbers of all generators."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    seen: list[Any] = []
    with RandomStream(0):
        for _ in range(STEPS if parameters else 0):
            with compute():
                logits = run()
            seen.append(logits.detach())
            loss = loss_of(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))
            # Raises an exception if a parameter has no gradient: it is then unknown how the model uses it.
            seen += torch.autograd.grad(loss, parameters)
            for parameter in parameters:  # parameters that start at zero have no effect before they change
                parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
        model.eval()
        for _ in range(STEPS):
            with compute(), torch.inference_mode():
                seen.append(run().clone())
        seen += [random.random(), numpy.random.random(), torch.rand(1), torch.rand(1, device=seen[-1].device)]
    return seen


def _same(ours: Any, theirs: Any) -> bool:
    """Check whether two lists or dictionaries of tensors and other values are the same."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and _same(list(ours.values()), list(theirs.values()))
    pairs = list(zip(ours, theirs, strict=True))
    return all(_close(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if torch.equal(ours, theirs):
        return True
    if ours.shape != theirs.shape or not ours.is_floating_point():
        return False
    tolerance = 1e-5 if ours.dtype in (torch.float32, torch.float64) else 2e-2
    return bool((ours - theirs).abs().max() <= tolerance * ours.abs().max())
