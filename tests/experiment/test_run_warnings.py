"""Warnings about runs that have not learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import TINY

from adaptkit.events import Epoch, Predictions
from adaptkit.experiment.run_warnings import run_warnings

CLASSES = ("a", "b", "c")


def epochs(losses: list[float], accuracy: float = 0.95) -> list[Epoch]:
    return [
        Epoch(
            number=number,
            loss=loss,
            train_accuracy=accuracy,
            test_accuracy=None,
            shifted_accuracy=None,
            seconds=1.0,
            evaluation_seconds=0.0,
            cumulative_seconds=float(number),
        )
        for number, loss in enumerate(losses, start=1)
    ]


def predicted(truth: list[int], answers: list[int]) -> Predictions:
    return Predictions(
        image=numpy.arange(len(truth)), truth=numpy.array(truth), predicted=numpy.array(answers), confidence=None
    )


GOOD = predicted([0, 0, 1, 2], [2, 1, 0, 0])


@pytest.mark.parametrize(
    ("losses", "predictions", "accuracy", "balanced", "expected"),
    [
        ([1.0, 0.9], GOOD, 0.95, False, []),
        ([1.0], GOOD, 0.95, False, []),
        ([1.0, 0.9], None, 0.95, False, []),
        ([1.0, 0.9], predicted([0, 0, 2, 2], [0, 0, 2, 0]), 0.95, False, []),  # no evaluated image of b
        (
            [1.0, 0.9],
            predicted([0, 1, 1, 2], [0, 0, 0, 0]),
            0.95,
            False,
            ["never predicted: 'b', 'c' (3 evaluated images)"],
        ),
        ([1.0, 1.2], GOOD, 0.95, False, ["the loss did not fall: 1 in the first epoch, 1.2 in the last"]),
        ([0.01, 0.05], GOOD, 0.95, False, []),  # nothing is left to learn
        (
            [1.7, 0.9],
            GOOD,
            0.95,
            False,
            [
                "the loss of the first epoch is 1.7, far above the 1.1 of a guess, as it is if "
                "the base does not fit these images or the learning rate is too high"
            ],
        ),
        ([1.6, 0.9], GOOD, 0.95, False, []),
        (
            [1.0, 0.9],
            GOOD,
            0.65,
            False,
            ["training accuracy 65.0 %, not shown to be above the 60.0 % of always answering 'a'"],
        ),
        ([1.0, 0.9], GOOD, 0.70, False, []),
        ([1.0, 0.9], GOOD, 0.45, True, []),
        (
            [1.0, 0.9],
            GOOD,
            0.36,
            True,
            ["training accuracy 36.0 %, not shown to be above the 33.3 % of a random answer"],
        ),
    ],
)
def test_signs(losses: list[float], predictions: Any, accuracy: float, balanced: bool, expected: list[str]) -> None:
    found = run_warnings(
        epochs(losses, accuracy), predictions, classes=CLASSES, trained=(60, 30, 10), balanced=balanced
    )
    assert list(found) == expected


def test_untrained_run() -> None:
    assert run_warnings([], None, classes=CLASSES, trained=(1, 1, 1)) == ()


@pytest.mark.slow
def test_warnings_of_a_base(cli: Callable[..., Result], store: Path) -> None:
    run = ("run", "-s", "head", *TINY, "--set", "base.lr=1e-9", "--json")
    first = cli(*run)
    base = json.loads(first.stdout)["base"]
    (warning,) = [line for line in base["warnings"] if line.startswith("training accuracy")]
    assert "not shown to be above the" in warning
    assert any(
        line.endswith(f"] Warning: {warning}") and line.startswith("[base ") for line in first.stderr.splitlines()
    )
    assert warning in MlflowClient().get_run(base["run_id"]).data.tags["adaptkit.warnings"]
    second = cli(*run)
    assert f"Warning: the base in the cache: {warning}" in second.stderr.splitlines()
    assert json.loads(second.stdout)["base"]["warnings"] == base["warnings"]
    swept = cli("sweep", *run[1:], "--grid", "lr=0.01", "--refresh-base")
    assert f"Warning: the base: {warning}" in swept.stderr.splitlines()


@pytest.mark.slow
def test_warnings_of_a_refit(cli: Callable[..., Result], store: Path) -> None:
    (run,) = json.loads(cli("run", "-s", "head", *TINY, "--lr", "30", "--json").stdout)["runs"]
    result = cli("refit", run["run_id"], "--json")
    summary = json.loads(result.stdout)
    (warning,) = [line for line in summary["warnings"] if line.startswith("the loss of the first epoch is")]
    assert f"[head refit] Warning: {warning}" in result.stderr.splitlines()
