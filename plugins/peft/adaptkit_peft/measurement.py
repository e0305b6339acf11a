"""Measure which layers each type of the installed PEFT can adapt: try it on single layers."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from adaptkit.errors import AdaptkitError, BadInput
from adaptkit.training.seeding import RandomStream
from torch import nn

from adaptkit_peft.catalogue import Entry
from adaptkit_peft.layers import sorts
from adaptkit_peft.methods import PROMPT, UNSUITABLE
from adaptkit_peft.options import options_of
from adaptkit_peft.proof import apart
from adaptkit_peft.strategies import strategy_class

#: maximum relative difference between the initial output of a layer and the output of its base, to count as equal
START = 1e-5

#: Functions that create a layer, each with the shape of an input. A result for a layer applies to all of its kinds.
PROBES: tuple[tuple[Callable[[], nn.Module], tuple[int, ...]], ...] = (
    (lambda: nn.Linear(32, 24), (5, 32)),
    (lambda: nn.Linear(32, 24, bias=False), (5, 32)),
    (lambda: nn.Conv2d(16, 24, 1), (3, 16, 6, 6)),
    (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (3, 16, 7, 7)),
    (lambda: nn.Conv2d(16, 24, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 16, 7, 8)),
    (lambda: nn.Conv2d(16, 24, 1, bias=False), (3, 16, 6, 6)),
    (lambda: nn.Conv2d(16, 24, 3, padding=2, dilation=2), (3, 16, 8, 8)),
    (lambda: nn.Conv2d(16, 24, 3, padding=1, groups=4), (3, 16, 7, 7)),
    (lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16), (3, 16, 7, 7)),
    (lambda: nn.Conv2d(16, 24, 3, padding="same"), (3, 16, 7, 7)),
    (lambda: nn.Conv2d(16, 24, 3, padding=1, padding_mode="reflect"), (3, 16, 7, 7)),
)
NORMS: tuple[tuple[Callable[[], nn.Module], tuple[int, ...]], ...] = (
    (lambda: nn.LayerNorm(16), (5, 16)),
    (lambda: nn.BatchNorm2d(16), (3, 16, 6, 6)),
    (lambda: nn.GroupNorm(4, 16), (3, 16, 6, 6)),
)
#: the PEFT type that adapts norm layers
ON_NORMS = "LN_TUNING"


def measured() -> tuple[Entry, ...]:
    """Return the catalogue entries for the installed PEFT, sorted by name. Raises BadInput if it cannot be imported."""
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise BadInput(f"PEFT cannot be imported ({error}); run: pip install --upgrade peft") from error
    types = sorted((str(peft_type.value), config) for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(_entry(peft_type, config) for peft_type, config in types)


def _entry(peft_type: str, config: type[Any]) -> Entry:
    reason = UNSUITABLE.get(peft_type, "")
    if _is_prompt(config):
        reason = reason or PROMPT
    if reason:
        return Entry(type=peft_type, unavailable=reason, layers=(), starts_at_base=True, merges=False, options=())
    (first, shape), *others = NORMS if peft_type == ON_NORMS else PROBES
    # In the trials, allow every kind of layer.
    everything = tuple(
        sorted({sort for make, _ in (NORMS if peft_type == ON_NORMS else PROBES) for sort in sorts(make())})
    )
    trial = Entry(
        type=peft_type,
        unavailable="",
        layers=everything,
        starts_at_base=True,
        merges=True,
        options=options_of(peft_type, config),
    )
    try:
        gap = _try(trial, first(), shape)
    except Exception as error:
        trial = dataclasses.replace(trial, merges=False)
        try:
            gap = _try(trial, first(), shape)
        except Exception:
            return Entry(
                type=peft_type,
                unavailable=f"it fails on {sorts(first())[0]}: {_message(error)}",
                layers=(),
                starts_at_base=True,
                merges=False,
                options=(),
            )
    adapted, failed = set(sorts(first())), set[str]()
    for make, shape in others:
        layer = make()
        if failed.intersection(sorts(layer)):
            continue  # the cause of the failure is known
        try:
            if _try(trial, layer, shape) > START >= gap:
                raise ValueError("it does not start at its base")
            adapted.update(sorts(layer))
        except Exception:
            failed.add(sorts(layer)[-1])
    return dataclasses.replace(trial, layers=tuple(sorted(adapted - failed)), starts_at_base=gap <= START)


def _is_prompt(config: type[Any]) -> bool:
    """Return whether a configuration belongs to a method that trains tokens."""
    from peft import PromptLearningConfig

    return issubclass(config, PromptLearningConfig)


def _try(entry: Entry, layer: nn.Module, shape: tuple[int, ...]) -> float:
    """Adapt and train a layer, and return the difference between its initial output and the output of its base.

    `adapt` checks the layer. Raises an exception if a step fails.
    """
    with RandomStream(0):
        images = torch.randn(shape)
        model = nn.Sequential(OrderedDict(layer=layer)).eval()
        with torch.no_grad():
            base = model(images)
        strategy = strategy_class(entry)()
        if hasattr(strategy, "targets"):
            strategy.targets = "all"
        trained = strategy.adapt(model)
        with torch.no_grad():
            gap = apart(base, model.eval()(images))
        model.train()(images).square().mean().backward()
        if any(parameter.grad is None for parameter in trained):
            raise ValueError("a parameter has no gradient")
        try:
            pickle.dumps(model)
        except Exception as error:
            raise ValueError("the adapted model cannot be pickled") from error
    return gap


def _message(error: BaseException) -> str:
    text = "; ".join(error.problems) if isinstance(error, AdaptkitError) else str(error)
    return " ".join(text.split()) or type(error).__name__
