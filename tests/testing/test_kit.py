"""The conformance kit: built-in components pass, and each faulty strategy fails exactly one check."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support.experiments import BITFIT
from torch import Tensor, nn

from adaptkit.errors import BadInput
from adaptkit.plugins.loading import load_plugins
from adaptkit.strategies.lora import LoRA
from adaptkit.testing import Check, checks, try_all

COMPONENTS = load_plugins([BITFIT]).components


@pytest.mark.slow  # LoRA is checked below, with a fault
@pytest.mark.parametrize(
    "check", [check for offer in COMPONENTS["strategy"].values() for check in checks(offer.cls)], ids=str
)
def test_built_in_strategies(check: Check) -> None:
    check()


@pytest.mark.parametrize(
    "check",
    [
        check
        for kind in ("backbone", "shift")
        for component in COMPONENTS[kind].values()
        if not component.argument  # torchvision:NAME has tests of its own
        for check in checks(component.cls)
    ],
    ids=str,
)
def test_built_in_backbones_and_shifts(check: Check) -> None:
    check()


@pytest.mark.parametrize(
    "check", [check for name in ("mnist5k", "digits") for check in checks(COMPONENTS["dataset"][name].cls)], ids=str
)
def test_built_in_data_sets(check: Check) -> None:
    check()


# Strategies with one fault each; their base class trains the head and passes all checks.


class Sound:
    """Train the head: a correct strategy."""

    name = "sound"
    lr = 1e-2

    def adapt(self, model: Any) -> list[nn.Parameter]:
        return list(model.head.parameters())


class Twice(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        return [*model.head.parameters(), model.head.bias]


class Raising(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        raise ZeroDivisionError("one by zero")


class Alias(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        model.again = nn.Parameter(model.head.weight.data, requires_grad=False)
        return [model.head.bias]


class Moved(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        with torch.no_grad():
            model.head.bias += 0.1
        return list(model.head.parameters())


class Diverging(Sound):
    lr = 3e38


class Idle(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        model.unused = nn.Parameter(torch.zeros(3))
        return [*model.head.parameters(), model.unused]


class Secret(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        model.note = nn.Parameter(torch.zeros(1))
        return list(model.head.parameters())

    def step_ended(self, model: Any, step: int) -> None:
        model.note.data += 1


class Restless(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            assert self.running_mean is not None
            self.running_mean += 0.01
        return super().forward(x)


class MovingStatistics(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = Restless
        return list(model.head.parameters())


class Scaled(nn.Module):
    """A layer whose scale is not a buffer."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.scale = base_layer, 1.0

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.base_layer(x) * self.scale
        return scaled


def replace_head(model: Any, wrap: Callable[[nn.Linear], nn.Module]) -> list[nn.Parameter]:
    head = model.head
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is head:
                setattr(parent, name, wrap(head))
                return list(head.parameters())
    raise AssertionError("no head")


class Forgetful(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        return replace_head(model, Scaled)

    def step_ended(self, model: Any, step: int) -> None:
        for module in model.modules():
            if isinstance(module, Scaled):
                module.scale *= 1.1


@dataclass
class Inexact(LoRA):
    name: ClassVar[str] = "inexact"

    def merge(self, model: nn.Module) -> None:
        super().merge(model)
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)


@dataclass
class Leftover(LoRA):
    name: ClassVar[str] = "leftover"

    def merge(self, model: nn.Module) -> None:
        super().merge(model)
        model.leftover = nn.Parameter(torch.zeros(1))


class Chance(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        model.chance = nn.Parameter(torch.full((1,), random.SystemRandom().random()), requires_grad=False)
        return list(model.head.parameters())


@dataclass
class Silent(Sound):
    rank: int = 4


@dataclass
class Anything(Sound):
    rank: Any = field(default=4, metadata={"help": "rank"})


@dataclass
class BadDefault(Sound):
    rank: int = field(default="many", metadata={"help": "rank"})  # type: ignore[assignment]


class Unpicklable(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        model.note = lambda: None
        return list(model.head.parameters())


class Dropping(nn.Module):
    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.base_layer(nn.functional.dropout(x, 0.5, training=True))
        return dropped


class AlwaysDropping(Sound):
    starts_at_base = False

    def adapt(self, model: Any) -> list[nn.Parameter]:
        return replace_head(model, Dropping)


class BatchDependent(Sound):
    starts_at_base = False

    def adapt(self, model: Any) -> list[nn.Parameter]:
        return replace_head(model, Centred)


class Centred(Dropping):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base_layer(x)
        return logits - logits.mean(0)


SHARED = nn.Parameter(torch.ones(2), requires_grad=False)


class Sharing(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        model.projection = SHARED
        return list(model.head.parameters())


class Environment(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        os.environ["PLANTED"] = "1"
        return list(model.head.parameters())


class Patching(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        nn.Linear.extra_repr = lambda self: "patched"  # type: ignore[method-assign]
        return list(model.head.parameters())


class Flagging(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        torch.backends.cudnn.benchmark = True
        return list(model.head.parameters())


FAULTS = {
    Twice: ("declares what it trains", "strategy sound: adapt() returned a parameter twice"),
    Raising: ("declares what it trains", "adapt() raises ZeroDivisionError: one by zero"),
    Alias: ("counts each parameter once", "and would be counted twice"),
    Moved: (
        "starts at the base",
        "if intended, declare starts_at_base = False",
    ),
    Diverging: ("trains", "training fails: the "),
    Idle: ("trains all that it declares", "unused is declared, but training does not change it"),
    Secret: ("changes only what it declares", "note changes in training, but is not declared"),
    MovingStatistics: ("leaves frozen buffers", "norm.running_mean, "),
    Forgetful: ("saves and loads", "is there state outside of parameters and buffers?"),
    Inexact: ("merges exactly", "after merge(), logits differ by "),
    Leftover: ("merges exactly", "the merged model does not have the parameters of the base: leftover"),
    Chance: ("repeats itself", "the same seeds give different values of chance; use torch's global generator"),
    Silent: ("validates its options", "no help for rank"),
    Anything: ("validates its options", "option rank accepts any value; annotate it with its type"),
    Unpicklable: ("pickles and copies", "the adapted model cannot be pickled: "),
    AlwaysDropping: ("works in training and evaluation", "in evaluation mode it gives different logits each time"),
    BatchDependent: ("works in training and evaluation", "the logits of an image depend on the other images"),
    Sharing: ("shares nothing between models", "two adapted models share projection"),
    Environment: ("changes no global state", "it changes environment variables for the whole process"),
    Patching: ("changes no global state", "it changes the class torch.nn.Linear for the whole process"),
    Flagging: ("changes no global state", "it changes torch.backends.cudnn.benchmark for the whole process"),
}


@pytest.mark.slow
def test_correct_strategy_passes() -> None:
    assert [verdict for verdict in try_all(checks(Sound)) if verdict.word == "failed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_fails_one_check(fault: type) -> None:
    check, reason = FAULTS[fault]
    failed = [verdict for verdict in try_all(checks(fault)) if verdict.word == "failed"]
    assert {verdict.check for verdict in failed} == {check}
    assert reason in failed[0].reason
    assert "PLANTED" not in os.environ and nn.Linear.extra_repr(nn.Linear(1, 1)) != "patched"


@pytest.mark.slow
def test_invalid_default() -> None:
    with pytest.raises(BadInput, match=r"sound\.rank: must be a whole number, not 'many'"):
        checks(BadDefault, {"rank": "many"})
    failed = [verdict for verdict in try_all(checks(BadDefault)) if verdict.word == "failed"]
    assert {verdict.check for verdict in failed} == {"validates its options"}


class Refusing(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        if not any(isinstance(module, nn.LayerNorm) for module in model.modules()):
            raise BadInput("there is no LayerNorm")
        return list(model.head.parameters())


class RefusingAll(Sound):
    def adapt(self, model: Any) -> list[nn.Parameter]:
        raise BadInput("never")


@pytest.mark.slow
def test_strategy_must_support_one_model() -> None:
    words = {(verdict.subject, verdict.word) for verdict in try_all(checks(Refusing)) if verdict.subject != "options"}
    assert {word for subject, word in words if subject == "cnn"} == {"not tried"}
    assert "passed" in {word for subject, word in words if subject == "transformer"}
    failed = [verdict for verdict in try_all(checks(RefusingAll)) if verdict.word == "failed"]
    assert [(verdict.check, verdict.reason) for verdict in failed] == [
        ("fits something", "no check could run: it does not fit this model: never")
    ]


def test_class_of_unknown_kind() -> None:
    with pytest.raises(
        BadInput,
        match=r"is not a class with one of the methods adapt\(\), fit\(\), phases\(\), build\(\), load\(\), read",
    ):
        checks(Path)
