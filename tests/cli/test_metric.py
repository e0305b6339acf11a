"""`--metric` and `adaptkit metrics`: the deciding metric, further ones, those of plugins, and useless models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from click.testing import Result
from mlflow import MlflowClient
from PIL import Image

Cli = Callable[..., Result]
PLUGIN = """
from adaptkit import hookimpl

class Cautious:
    \"\"\"Mean probability of the true class.\"\"\"
    name, title, unit, higher_is_better = "cautious", "mean probability", "points", True

    def score(self, probabilities, truth, *, weights=None, groups=None):
        return float(probabilities[range(len(truth)), truth].mean())

class Broken:
    \"\"\"Fails.\"\"\"
    name, title, unit, higher_is_better = "broken", "broken", "", True

    def score(self, probabilities, truth, *, weights=None, groups=None):
        raise ZeroDivisionError("by design")

@hookimpl
def adaptkit_metrics():
    return [Cautious, Broken]
"""


def noise(folder: Path, counts: dict[str, int]) -> None:
    """Write pictures of pure noise."""
    rng = numpy.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=numpy.uint8)).save(folder / name / f"{index}.png")


RUN = ("run", "-s", "head", "-s", "full", "--dataset", "none", "--weights", "none", "--target", "folder:noise")
SMALL = ("--image-size", "8", "--epochs", "1", "--folds", "3", "--json")


def test_list(cli: Cli) -> None:
    listed = json.loads(cli("metrics", "--json").stdout)
    assert [metric["name"] for metric in listed][:3] == ["accuracy", "auroc", "average_precision"]
    nll = next(metric for metric in listed if metric["name"] == "nll")
    assert (nll["unit"], nll["higher_is_better"], nll["title"]) == ("nats", False, "negative log-likelihood")


@pytest.mark.slow
def test_nothing_is_recommended_on_pure_noise(cli: Cli, own_folder: Path) -> None:
    noise(own_folder / "noise", {"common": 60, "rare": 15})
    result = cli(*RUN, *SMALL, "--metric", "accuracy")
    assert result.exit_code == 0, result.stderr
    (comparison,) = json.loads(result.stdout)["comparison"]["comparisons"]
    assert comparison["constant"] == {"score": 0.8, "answer": "common", "metric": "final/shifted_accuracy"}
    assert (comparison["best"], comparison["choice"]) == (None, None)
    assert comparison["sentences"][0] == (
        "No strategy is shown to be better than always answering 'common' (target accuracy 80.0 %): none can be "
        "recommended."
    )
    table = cli("compare", "--no-track").stdout
    assert ["constant", "80.0"] in [line.split() for line in table.splitlines()]


@pytest.mark.slow
def test_unequal_classes_are_compared_by_balanced_accuracy(cli: Cli, own_folder: Path) -> None:
    noise(own_folder / "noise", {"common": 40, "rare": 10})
    result = cli(*RUN, *SMALL)
    assert "balanced_accuracy decides, because the largest class has 40 evaluated images and the smallest 10" in (
        result.stdout + result.stderr
    )
    found = json.loads(result.stdout)["comparison"]
    assert found["metric"] == "final/shifted_balanced_accuracy"
    assert set(found["arms"][0]["others"]) == {"final/shifted_accuracy"}
    assert found["comparisons"][0]["constant"]["score"] == 0.5
    # A later comparison uses the metrics of the runs.
    assert json.loads(cli("compare", "--no-track", "--json").stdout)["metric"] == found["metric"]


@pytest.mark.slow
def test_metrics_of_a_plugin(cli: Cli, own_folder: Path) -> None:
    noise(own_folder / "noise", {"one": 12, "other": 12})
    Path("own.py").write_text(PLUGIN)
    result = cli(*RUN, *SMALL, "--metric", "cautious,nll", "--plugin", "own.py")
    assert result.exit_code == 0, result.stderr
    assert "ZeroDivisionError: by design" in result.stderr
    found = json.loads(result.stdout)["comparison"]
    assert found["metric"] == "final/shifted_cautious"
    (pair,) = found["pairs"]
    assert pair["p"] is not None and pair["low"] < pair["difference"] < pair["high"]
    run = MlflowClient().get_run(found["arms"][0]["runs"][0]["run_id"])
    metrics = run.data.metrics
    assert metrics["final/shifted_cautious"] == pytest.approx(found["arms"][0]["mean"])
    assert "final/shifted_broken" not in metrics
    for name in ("nll", "brier", "auroc", "ece", "kappa", "worst_class_recall", "balanced_accuracy"):
        assert f"final/shifted_{name}" in metrics
    assert run.data.params["metric"] == "cautious,nll"
    # Without its plugin, the recorded scores have no verdict.
    unloaded = cli("compare", "--metric", "cautious", "--no-track")
    assert unloaded.exit_code == 0 and "adaptkit cannot compute this metric from the predictions" in unloaded.stdout


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("balanced_acuracy", "did you mean 'balanced_accuracy'?"),
        ("zzz", "unknown metric 'zzz'"),
    ],
)
def test_unknown_metric(cli: Cli, name: str, line: str) -> None:
    result = cli("run", "-s", "head", "--metric", name)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert line in result.stderr
