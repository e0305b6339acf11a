"""The kit's checks of metrics: the built-in ones pass, and each planted fault is found."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy
import pytest

from adaptkit.metrics.classification import Accuracy, adaptkit_metrics
from adaptkit.testing.kit import checks, try_all


@pytest.mark.slow
@pytest.mark.parametrize("cls", adaptkit_metrics(), ids=lambda cls: str(cls.name))
def test_built_in_metric(cls: type[Any]) -> None:
    verdicts = try_all(checks(cls))
    assert [str(verdict) for verdict in verdicts if verdict.word != "passed" and verdict.subject != "options"] == []


class Upside(Accuracy):
    higher_is_better: ClassVar[bool] = False


class Untitled(Accuracy):
    title: ClassVar[Any] = None


class FirstHalf(Accuracy):
    def score(self, probabilities: Any, truth: Any, **more: Any) -> float:
        return float((probabilities.argmax(1) == truth)[:20].mean())


class Unweighted(Accuracy):
    def score(self, probabilities: Any, truth: Any, **more: Any) -> float:
        return float((probabilities.argmax(1) == truth).mean())


class Clipping(Accuracy):
    def score(self, probabilities: Any, truth: Any, **more: Any) -> float:
        numpy.clip(probabilities, 0.1, 0.9, out=probabilities)
        return super().score(probabilities, truth, **more)


class Text(Accuracy):
    def score(self, probabilities: Any, truth: Any, **more: Any) -> Any:
        return "good"


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Upside, "prefers the truth"),
        (Untitled, "has a title, a unit and a direction"),
        (FirstHalf, "does not depend on the order"),
        (Unweighted, "weights count images"),
        (Clipping, "leaves its input as it is"),
        (Text, "gives a number"),
    ],
)
def test_planted_fault(cls: type[Any], name: str) -> None:
    failed = {verdict.check for verdict in try_all(checks(cls)) if verdict.word == "failed"}
    assert name in failed
