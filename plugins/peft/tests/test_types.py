"""Run adaptkit's conformance checks on three PEFT types; with `-m slow`, on all types.

Three types are checked on every model of the kit, the others on its common ones. Variants are checked on the models
where they compute something else: `targets=all` on those with convolutions, other options on linear layers for vectors
and for tokens.
"""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from typing import Any

import pytest
from adaptkit.testing import Check, checks

from adaptkit_peft.strategies import strategy_classes

CLASSES = {cls.name: cls for cls in strategy_classes() if not hasattr(cls, "unavailable")}
FAST = ("peft-ia3", "peft-lora", "peft-vera")
#: options that change the initialisation or the computation of a type
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("peft-lora", {"use_dora": True}),
    ("peft-lora", {"use_rslora": True, "r": 4}),
    ("peft-lora", {"init_lora_weights": "gaussian"}),
    ("peft-lora", {"init_lora_weights": "olora", "r": 4}),
    ("peft-lora", {"init_lora_weights": "orthogonal", "r": 4}),
    ("peft-lora", {"init_lora_weights": "pissa", "r": 4}),
    ("peft-lora", {"bias": "all", "train_head": True}),
    ("peft-miss", {"init_weights": "bat", "r": 4}),
)


#: models with convolutions of every kind, and with linear layers for vectors and for tokens
WITH_CONVOLUTIONS, WITH_LINEAR_LAYERS = ("residual", "convolutions"), ("cnn", "transformer")


def cases() -> Iterator[Any]:
    for name, cls in CLASSES.items():
        marks = [] if name in FAST else [pytest.mark.slow]
        # The kit's odd models test plugins that read layers themselves; PEFT does that in the same way for all types.
        found = checks(cls) if name in FAST else on((*WITH_CONVOLUTIONS, *WITH_LINEAR_LAYERS), checks(cls))
        for check in found:
            yield pytest.param(check, id=f"{name}: {check}", marks=marks)
        if "square convolutions" in cls.entry.layers:
            for check in on(WITH_CONVOLUTIONS, checks(cls, {"targets": "all"})):
                yield pytest.param(check, id=f"{name} on all: {check}", marks=pytest.mark.slow)
    for name, options in VARIANTS:
        for check in on(WITH_LINEAR_LAYERS, checks(CLASSES[name], options)):
            yield pytest.param(check, id=f"{name} {options}: {check}", marks=pytest.mark.slow)


def on(models: tuple[str, ...], found: list[Check]) -> list[Check]:
    """Return the checks of options and those on these models."""
    return [check for check in found if check.subject in ("options", *models)]


@pytest.mark.parametrize("check", list(cases()))
def test_conformance(check: Check) -> None:
    check()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(CLASSES)]
)
def test_type_supports_a_model(name: str) -> None:
    """If a type rejected every model, all of its checks above would be skipped."""
    assert any(fits(check) for check in checks(CLASSES[name]) if check.name == "declares what it trains")


def fits(check: Check) -> bool:
    """Return whether a check passes instead of being skipped."""
    try:
        check()
    except unittest.SkipTest:
        return False
    return True
