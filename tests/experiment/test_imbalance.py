"""Classes of unequal sizes: weights, proportional draws, a choice of classes, and what the plan and runs say."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from mlflow import MlflowClient
from PIL import Image

import adaptkit
from adaptkit.settings.identity import training_settings
from adaptkit.training import loop

Cli = Callable[..., Any]
SIDE = 8


def noise(folder: Path, seed: int = 0, **classes: int) -> None:
    """Write pictures of pure noise: nothing distinguishes the classes."""
    draws = numpy.random.default_rng(seed)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draws.integers(0, 256, (SIDE, SIDE, 3)).astype(numpy.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture
def pictures(own_folder: Path) -> Path:
    noise(own_folder / "pics", many=60, few=15)
    return own_folder


def run(strategies: Any = "head", **more: Any) -> adaptkit.RunOutcome:
    choices = {"dataset": "none", "weights": "none", "target": "folder:pics", "image_size": SIDE, "epochs": 2}
    return adaptkit.run(strategies, **choices | {"track": False} | more)


def test_plan_and_warnings_of_noise(pictures: Path, cli: Cli, store: Path) -> None:
    arguments = ["run", "-s", "head", "--target", "folder:pics", "--weights", "none", "--image-size", str(SIDE)]
    result = cli(*arguments, "--epochs", "3", "--lr", "0.05", "--json")
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[1] == (
        "Classes  few 12 / 15, many 48 / 60 (images in a training / evaluated); always answering many is right for "
        "80.0 %"
    )
    outcome = json.loads(result.stdout)
    plan, (record,) = outcome["plan"], outcome["runs"]
    assert (plan["classes"], plan["training_counts"], plan["evaluation_counts"]) == (
        ["few", "many"],
        [12, 48],
        [15, 60],
    )
    assert (plan["constant_answer"], plan["constant_accuracy"]) == ("many", 0.8)
    assert record["warnings"] == [
        "never predicted: 'few' (15 evaluated images)",
        "training accuracy 80.0 %, not shown to be above the 80.0 % of always answering 'many'",
    ]
    assert [line for line in lines if "Warning" in line] == [
        f"[head seed=0] Warning: {warning}" for warning in record["warnings"]
    ]
    tags = MlflowClient().get_run(record["run_id"]).data.tags
    assert tags["adaptkit.warnings"].splitlines() == record["warnings"]


def test_few_evaluated_images_are_named(own_folder: Path) -> None:
    noise(own_folder / "pics", a=10, b=9, c=3)
    assert "evaluation: 'b' (9), 'c' (3): fewer than 10 images, so results for them are uncertain" in run().plan.notices


def test_weights_make_a_rare_class_count(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[torch.Tensor] = []
    weigh = loop.balanced_weights
    monkeypatch.setattr(loop, "balanced_weights", lambda labels: trained.append(labels) or weigh(labels))
    plain = run(folds=3, lr=0.05)
    assert trained == [] and any("never predicted: 'few'" in warning for warning in plain.runs[0].warnings)
    weighted = run(folds=3, lr=0.05, class_weights="balanced")
    assert [labels.bincount().tolist() for labels in trained[::2]] == [[10, 40]] * 3  # those of each fit
    assert not any("always answering" in warning for warning in weighted.runs[0].warnings)
    assert not any("never predicted: 'few'" in warning for warning in weighted.runs[0].warnings)
    assert plain.runs[0].epochs[0].loss != weighted.runs[0].epochs[0].loss


@pytest.mark.slow
def test_weights_and_classes_are_recorded_and_repeated(pictures: Path, store: Path, cli: Cli) -> None:
    noise(pictures / "more", 1, one=12, two=8, three=30)
    outcome = run(
        ["head", "full"],
        target="folder:more",
        classes=["two", "one"],
        class_weights="balanced",
        track=True,
        folds=2,
    )
    assert outcome.plan.classes == ("two", "one") and outcome.plan.pool_images == 20
    run_id = str(outcome.runs[0].run_id)
    recorded = MlflowClient().get_run(run_id).data.params
    assert (recorded["classes"], recorded["class_weights"]) == ("two,one", "balanced")
    (path,) = pictures.glob(f"mlruns/*/{run_id}/artifacts/config.yaml")
    assert yaml.safe_load(path.read_text())["classes"] == "two,one"
    with path.with_name("predictions.csv").open(encoding="utf-8", newline="") as stream:
        assert {row["truth"] for row in csv.DictReader(stream)} == {"one", "two"}
    assert adaptkit.reproduce(run_id).verdict == "identical"
    refit = adaptkit.refit(run_id)
    assert refit.images == 20
    model = adaptkit.load(str(refit.run_id))
    assert model.classes == ("two", "one")
    dry = cli("run", "--config", str(path), "--dry-run", "--json", "--no-track")
    assert json.loads(dry.stdout)["classes"] == ["two", "one"]


def test_command_line_and_python_agree(pictures: Path, cli: Cli) -> None:
    noise(pictures / "more", 1, **{"b, or not": 12, "c": 12, "a": 12})
    names = ["c", "b, or not"]
    result = cli(
        *("run", "-s", "head", "--target", "folder:more", "--weights", "none", "--image-size", str(SIDE)),
        *("--epochs", "2", "--folds", "2", "--classes", 'c,"b, or not"', "--class-weights", "balanced"),
        *("--no-track", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    ours = run(target="folder:more", folds=2, classes=names, class_weights="balanced")
    theirs = json.loads(result.stdout)
    assert theirs["plan"]["classes"] == list(ours.plan.classes) == names
    assert theirs["data_fingerprint"] == ours.data_fingerprint
    assert theirs["runs"][0]["epochs"][-1]["loss"] == ours.runs[0].epochs[-1].loss


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"classes": "many"}, "classes: name at least two classes, as in cat,dog"),
        ({"classes": "few,few"}, "classes: few appears twice"),
        ({"classes": 'few,"many'}, "classes: must be names of classes such as cat,dog (unexpected end of data)"),
        ({"classes": "few,mny"}, "classes: unknown class 'mny'; did you mean 'many'?"),
        ({"class_weights": "balance"}, "class_weights: must be none or balanced, not 'balance'"),
    ],
)
def test_wrong_values(pictures: Path, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(adaptkit.BadInput) as caught:
        run(**arguments)
    assert caught.value.problems == (problem,)


def test_proportional_draws(own_folder: Path) -> None:
    noise(own_folder / "pics", many=120, few=40)
    choices: dict[str, Any] = {"protocol": "draws", "shots": 10, "epochs": 1, "seeds": "0-1"}
    plain = run(settings={"split.pool": 80}, **choices)
    proportional = run(settings={"split.pool": 80, "split.sampling": "proportional"}, **choices)
    # The pool has room for four draws of 20 images: a quarter of each class.
    assert plain.plan.pool_images == proportional.plan.pool_images
    assert plain.plan.training_counts == (4, 10)
    assert proportional.plan.training_counts == (5, 15)
    assert plain.data_fingerprint != proportional.data_fingerprint
    assert proportional.comparison is not None and proportional.comparison.arms[0].seeds == (0, 1)


def test_runs_without_the_settings_are_those_with_their_defaults() -> None:
    old = {"epochs": "2", "lr": "0.005"}
    assert training_settings(old | {"class_weights": "none", "classes": "a,b"}) == training_settings(old)
    assert training_settings(old | {"class_weights": "balanced"}) != training_settings(old)


@pytest.mark.slow
def test_sweeps_and_tunings(pictures: Path, store: Path) -> None:
    choices: dict[str, Any] = {"dataset": "none", "weights": "none", "target": "folder:pics", "image_size": SIDE}
    swept = adaptkit.sweep(
        "head", grid={"class_weights": ["none", "balanced"]}, classes="many,few", epochs=1, folds=2, **choices
    )
    assert [trial.label for trial in swept.trials] == ["head class_weights=none", "head class_weights=balanced"]
    assert swept.failed == () and len(swept.comparisons) == 1
    tuned = adaptkit.tune(
        "head", trials=2, seeds=1, classes="many,few", class_weights="balanced", epochs=1, shots=5, **choices
    )
    run_id = str(tuned.runs[0].run_id)
    params = MlflowClient().get_run(run_id).data.params
    assert (params["classes"], params["class_weights"]) == ("many,few", "balanced")
