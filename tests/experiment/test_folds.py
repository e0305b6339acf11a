"""Runs with folds: out-of-fold predictions of all labels, costs of one model, resuming, and later commands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

import adaptkit
from adaptkit.experiment.adaptation import AdaptationRun
from adaptkit.experiment.inputs import ModelInputs
from adaptkit.experiment.prepare import prepare
from adaptkit.experiment.recovery import RunRecovery
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.system.signals import Interrupted

Cli = Callable[..., Any]
CLASSES, EACH, SIDE = ("a", "b", "c"), 6, 12


def pictures(folder: Path, each: int = EACH, start: int = 0) -> None:
    """Write noisy pictures of one colour for each class; every two have the same patient and one of two sites."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(start, start + each):
            noise = numpy.random.default_rng(100 * number + index).normal(0, 40, (SIDE, SIDE, 3))
            noise[..., number] += 150
            path = folder / name / f"patient{name}{index // 2}-{'north' if index % 2 else 'south'}-{index}.png"
            Image.fromarray(noise.clip(0, 255).astype(numpy.uint8)).save(path)


@pytest.fixture
def work(own_folder: Path) -> Path:
    pictures(own_folder / "pics")
    return own_folder


def run(strategies: Any = "full", **more: Any) -> adaptkit.RunOutcome:
    choices = {"dataset": "none", "weights": "none", "target": "folder:pics", "image_size": SIDE, "epochs": 2}
    return adaptkit.run(strategies, **choices | more)


def rows(work: Path, run_id: str | None) -> list[dict[str, str]]:
    (path,) = work.glob(f"mlruns/*/{run_id}/artifacts/predictions.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_every_label_is_predicted_once_and_costs_are_those_of_one_model(work: Path) -> None:
    outcome = run(["head", "full"], folds=3)
    plan = outcome.plan
    assert (plan.protocol, plan.folds, plan.pool_images, plan.drawn_images) == ("folds", 3, 18, 12)
    assert outcome.failed == ()
    head, full = outcome.runs
    predicted = rows(work, full.run_id)
    assert sorted(row["path"] for row in predicted) == sorted(
        path.relative_to(work / "pics").as_posix() for path in (work / "pics").rglob("*.png")
    )
    assert all(row["truth"] == row["path"][0] for row in predicted)
    assert sorted({row["fold"] for row in predicted}) == ["0", "1", "2"]
    by_path = {row["path"]: row["fold"] for row in rows(work, head.run_id)}
    assert by_path == {row["path"]: row["fold"] for row in predicted}  # strategies of one seed are paired
    right = sum(row["truth"] == row["prediction"] for row in predicted) / 18
    assert full.metrics["final/shifted_accuracy"] == pytest.approx(right)
    assert full.metrics["params/trainable"] == plan.arms[1].trainable
    epochs = sum(epoch.seconds for epoch in full.epochs)
    assert full.metrics["time/all_folds_seconds"] == pytest.approx(3 * epochs)
    assert full.metrics["time/train_seconds"] + full.metrics["time/evaluation_seconds"] == pytest.approx(epochs)
    (folder,) = work.glob(f"mlruns/*/{full.run_id}/artifacts/adapter")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")) == [
        f"fold-{number}/adapter.safetensors" for number in range(3)
    ]
    (split,) = work.glob(f"mlruns/*/{full.run_id}/artifacts/split.json")
    content = json.loads(split.read_text())
    folds = dict(zip(content["parts"]["pool"]["images"], map(str, content["folds"]), strict=True))
    assert folds == by_path
    run_record = MlflowClient("sqlite:///mlflow.db").get_run(str(full.run_id))
    assert {"protocol": "folds", "folds": "3", "shots": "none"}.items() <= run_record.data.params.items()
    assert run_record.data.tags["adaptkit.protocol"] == "folds"
    history = MlflowClient("sqlite:///mlflow.db").get_metric_history(str(full.run_id), "train/loss")
    assert [point.step for point in history] == [1, 2]


def test_frozen_features_of_all_images_are_computed_once(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.training.frozen.features import FeatureStore

    monkeypatch.delenv("ADAPTKIT_NO_FEATURE_CACHE", raising=False)
    names = set()
    original = FeatureStore.features

    def watched(self: Any, division: Any, images: Any) -> Any:
        names.add(images.name)
        return original(self, division, images)

    monkeypatch.setattr(FeatureStore, "features", watched)
    run("head", folds=3, seeds="0-1", track=False)
    assert len(names) == 1 and names.pop().startswith("shifted/")


@pytest.mark.slow
def test_groups_and_domains(work: Path) -> None:
    groups = {"folder.group": "patient[abc][0-9]"}
    run_id = run(folds=3, settings=groups).runs[0].run_id
    folds: dict[str, set[str]] = {}
    for row in rows(work, run_id):
        folds.setdefault(row["group"], set()).add(row["fold"])
    assert len(folds) == 9 and all(len(numbers) == 1 for numbers in folds.values())
    sites = {"folder.group": "north|south"}
    outcome = run(folds="by:group", settings=sites)
    assert (outcome.plan.folds, outcome.plan.held_out) == (2, "group")
    assert {(row["fold"], row["group"]) for row in rows(work, outcome.runs[0].run_id)} == {
        ("0", "north"),
        ("1", "south"),
    }


def test_groups_with_several_values_of_the_held_out_column(cli: Cli, work: Path) -> None:
    """Each patient has pictures of both sites, so that no image is left to train on."""
    names = sorted(path.relative_to(work).as_posix() for path in (work / "pics").rglob("*.png"))
    lines = [f"{name},{name[5]},{name[:17]},{'n' if 'north' in name else 's'}" for name in names]
    (work / "t.csv").write_text("\n".join(["path,label,patient,site", *lines]))
    result = cli(
        "run", "-s", "head", "--weights", "none", "--target", "table:t.csv", "--image-size", "12", "--folds", "by:site"
    )
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("Error: folds: without fold 1, only one class is left to train on")


def test_images_that_never_train_do_not_shift_the_others(work: Path) -> None:
    """The first patient of each class has pictures of both sites, so that no fit trains on them."""
    names = sorted(path.relative_to(work).as_posix() for path in (work / "pics").rglob("*.png"))
    sites = ["ns"[number % 2] if "0-" in name[:18] else "ns"[number % 4 // 2] for number, name in enumerate(names)]
    lines = [f"{name},{name[5]},{name[:17]},{site}" for name, site in zip(names, sites, strict=True)]
    (work / "t.csv").write_text("\n".join(["path,label,patient,site", *lines]))
    layer = Layer({"strategy": "scratch", "target": "table:t.csv", "image_size": SIDE, "folds": "by:site"})
    experiment = prepare(resolve([layer], load_plugins()))
    inputs = ModelInputs.of(experiment, reuse=False)
    pool, images = experiment.domains.pool, inputs.views(0, 1).value.tensor
    assert len(images) == len(inputs.labels(0)) < len(pool)
    for fit in inputs.fits(0):
        expected = torch.stack([torch.as_tensor(pool.pixels[int(index)]) for index in fit.train]) / 255
        assert torch.equal(images[inputs.rows(0, fit.train)], expected)


@pytest.mark.slow
def test_given_test_part(work: Path) -> None:
    (work / "parts").mkdir()
    pictures(work / "parts" / "train")
    pictures(work / "parts" / "test", each=2, start=50)
    outcome = run(target="folder:parts")
    assert (outcome.plan.protocol, outcome.plan.drawn_images, outcome.plan.shifted_test_images) == ("given", 18, 6)
    assert [record.seed for record in outcome.runs] == [0, 1, 2]
    assert {row["path"].partition("/")[0] for row in rows(work, outcome.runs[0].run_id)} == {"test"}
    assert run(target="folder:parts", seeds=4, shots=2, track=False).plan.drawn_images == 6
    assert run(target="folder:parts", folds=2, track=False).plan.pool_images == 24  # the test part included


@pytest.mark.slow
@pytest.mark.parametrize("moment", [pytest.param("between folds", marks=pytest.mark.slow), "in a fold"])
def test_resume_in_the_fold_where_it_stopped(work: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    whole = run(folds=3, experiment="undisturbed").runs[0]
    calls: list[int] = []
    name = "keep_fold" if moment == "between folds" else "_keep"
    original = getattr(RunRecovery, name)

    def stopping(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        calls.append(1)
        if len(calls) == (2 if moment == "between folds" else 3):
            raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecovery, name, stopping)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(folds=3)
    trained: list[Any] = []
    train = AdaptationRun._train

    def noted(self: Any, fits: Any, number: int, arm: Any) -> Any:
        trained.append(number)
        return train(self, fits, number, arm)

    monkeypatch.setattr(AdaptationRun, "_train", noted)
    (note,) = caught.value.__notes__
    resumed = adaptkit.resume(note.rpartition(" ")[2]).runs[0]
    assert trained == ([2] if moment == "between folds" else [1, 2])
    assert (resumed.status, resumed.error) == ("finished", None)
    same = [key for key in whole.metrics if not key.startswith(("time/", "memory/"))]
    different = [key for key in same if whole.metrics[key] != resumed.metrics[key]]
    assert different == []
    assert rows(work, resumed.run_id) == rows(work, whole.run_id)


def test_progress_of_folds(cli: Cli, work: Path) -> None:
    """A line for each fold and one for their means: the log of a long comparison stays short."""
    arguments = ("--target", "folder:pics", "--weights", "none", "--image-size", str(SIDE), "--epochs", "2")
    result = cli("run", "-s", "head", *arguments, "--folds", "3", "--no-track")
    shown = [
        line.partition("] ")[2].partition("  loss ")[0]
        for line in result.stderr.splitlines()
        if "[head" in line and "  loss " in line
    ]
    assert shown == ["fold 1/3", "fold 2/3", "fold 3/3", "mean of 3 folds"]


@pytest.mark.slow
def test_watchers_receive_the_epochs_of_each_fold_and_then_the_means(work: Path) -> None:
    received: list[tuple[int, int | None, int]] = []

    class Watcher:
        @adaptkit.hookimpl
        def adaptkit_epoch_ended(self, run: Any, epoch: Any) -> None:
            received.append((run.folds, epoch.fold, epoch.number))

    outcome = run(folds=2, plugins=[Watcher()])
    assert received == [(2, fold, number) for fold in (0, 1, None) for number in (1, 2)]
    client = MlflowClient()
    logged = client.get_metric_history(str(outcome.runs[0].run_id), "shifted/accuracy")
    assert [(point.step, point.value) for point in logged] == [
        (epoch.number, epoch.shifted_accuracy) for epoch in outcome.runs[0].epochs
    ]


@pytest.mark.slow
def test_later_commands(cli: Cli, work: Path) -> None:
    run_id = str(run(["head", "full"], folds=3).runs[1].run_id)
    assert adaptkit.reproduce(run_id).verdict == "identical"
    assert "new labelled and new test images" in cli("compare").stdout
    refused = cli("predict", run_id, "pics/a")
    assert refused.exit_code == 2 and f"train one on all labels with `adaptkit refit {run_id}`" in refused.stderr
    refit = adaptkit.refit(run_id)
    predicted = adaptkit.predict(str(refit.run_id), "pics")
    assert len(predicted) == 18


@pytest.mark.slow
def test_number_of_labels(work: Path) -> None:
    outcomes = [run(folds=3, shots=shots, track=False) for shots in (1, 3)]
    assert [outcome.plan.drawn_images for outcome in outcomes] == [3, 9]
    assert outcomes[0].data_fingerprint == outcomes[1].data_fingerprint


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--folds", "1"), "folds: must be at least 2, not 1"),
        (("--folds", "many"), "folds: must be a number of folds such as 5, or by:COLUMN, not 'many'"),
        (("--folds", "19"), "folds: 19 folds of 18 images; set at most --folds 18"),
        (("--folds", "by:site"), "folds: there is no column 'site'"),
        (("--protocol", "given"), "protocol given: folder:pics has no test part of its own; use folds or draws"),
        (("--protocol", "fold"), "protocol: must be "),
        (("--set", "shots=7"), "shots: 7 images of each class, but a fit has at most "),
        (("--protocol", "draws", "--set", "shots=4"), "shots: 4 images of each class are more than half of the pool"),
        (("--set", "folder.group=patient[ab]"), "folder"),
    ],
)
def test_bad_input(cli: Cli, work: Path, arguments: tuple[str, ...], line: str) -> None:
    start = ("run", "-s", "head", "--dataset", "none", "--weights", "none", "--target", "folder:pics")
    result = cli(*start, "--image-size", str(SIDE), *arguments, "--dry-run")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {line}") and len(result.stderr.splitlines()) == 1
