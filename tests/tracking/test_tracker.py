"""Params, metrics, tags and artifacts of runs in MLflow."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from support.experiments import TINY, TINY_SETTINGS, Tracked
from support.mlflow_records import ARTIFACTS, EPOCH_METRICS, Raising, artifact, client, listed, runs

import adaptkit
from adaptkit.events import Epoch, RunStart
from adaptkit.tracking.address import CHARTS

Cli = Callable[..., Result]


def test_runs_of_experiment(tracked: Tracked) -> None:
    found = runs(tracked.uri)
    assert sorted(found) == [
        "base small_cnn mnist5k", "head seed=0", "lora rank=4 seed=0", "lora rank=4, head seed=0",
    ]  # fmt: skip
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    by_label = {run["label"]: run["run_id"] for run in tracked.outcome["runs"]}
    assert by_label == {
        "lora rank=4": found["lora rank=4 seed=0"].info.run_id,
        "head": found["head seed=0"].info.run_id,
    }
    assert tracked.outcome["base"]["run_id"] == found["base small_cnn mnist5k"].info.run_id


def test_params(tracked: Tracked) -> None:
    assert runs(tracked.uri)["lora rank=4 seed=0"].data.params == {
        "preset": "default",
        "strategy": "lora",
        "strategy.rank": "4",
        "strategy.alpha": "16.0",
        "strategy.dropout": "0.0",
        "strategy.targets": "auto",
        "strategy.rslora": "False",
        "strategy.dora": "False",
        "strategy.plus": "1.0",
        "strategy.train_head": "False",
        "strategy.bias": "none",
        "dataset": "mnist5k",
        "target": "none",
        "shift": "rotate=45,noise=0.3",
        "shift.rotate": "45.0",
        "shift.noise": "0.3",
        "backbone": "small_cnn",
        "image_size": "28",
        "skip_bad_images": "False",
        "augment": "none",
        "bn": "freeze",
        "seed": "0",
        "protocol": "draws",
        "folds": "none",
        "keep_folds": "False",
        "shots": "5",
        "epochs": "2",
        "lr": "0.005",
        "batch_size": "32",
        "optimizer": "adam",
        "weight_decay": "0.0",
        "schedule": "cosine",
        "clip": "1.0",
        "min_steps": "100",
        "class_weights": "none",
        "metric": "accuracy",
        "evaluate_shifted": "epoch",
        "device": "cpu",
        "precision": "fp32",
        "checkpointing": "False",
        "data_dir": "data",
        "base.epochs": "2",
        "base.lr": "0.001",
        "base.batch_size": "64",
        "base.mode": "train",
        "base.min_steps": "200",
        "base.augment": "none",
        "base.schedule": "cosine",
        "base.clip": "1.0",
        "base.standardize": "True",
        "base.seed": "0",
        "split.seed": "0",
        "split.source": "200",
        "split.pool": "100",
        "split.test": "100",
        "split.sampling": "stratified",
        "split.file": "none",
        "tuning.trials": "0",
    }
    assert "shift" not in runs(tracked.uri)["base small_cnn mnist5k"].data.params


def test_epoch_metrics(tracked: Tracked) -> None:
    run = runs(tracked.uri)["lora rank=4 seed=0"]
    (record,) = (run for run in tracked.outcome["runs"] if run["strategy"] == "lora")
    fields = {
        "train/loss": "loss",
        "train/accuracy": "train_accuracy",
        "test/accuracy": "test_accuracy",
        "shifted/accuracy": "shifted_accuracy",
        "time/epoch_seconds": "seconds",
        "time/cumulative_seconds": "cumulative_seconds",
    }
    assert set(fields) == EPOCH_METRICS | {"shifted/accuracy"}
    for key, field in fields.items():
        history = client(tracked.uri).get_metric_history(run.info.run_id, key)
        assert [(point.step, point.value) for point in history] == [
            (epoch["number"], epoch[field]) for epoch in record["epochs"]
        ]


def test_final_metrics(tracked: Tracked) -> None:
    run = runs(tracked.uri)["lora rank=4 seed=0"]
    (record,) = (run for run in tracked.outcome["runs"] if run["strategy"] == "lora")
    assert set(run.data.metrics) == EPOCH_METRICS | {"shifted/accuracy"} | set(record["metrics"])
    for key, value in record["metrics"].items():
        history = client(tracked.uri).get_metric_history(run.info.run_id, key)
        assert [(point.step, point.value) for point in history] == [(0, value)]
    metrics = record["metrics"]
    assert metrics["final/gain"] == metrics["final/shifted_accuracy"] - metrics["final/zero_shot_accuracy"]
    assert metrics["final/retention"] == metrics["final/test_accuracy"] - metrics["final/base_test_accuracy"]


def test_base_run(tracked: Tracked) -> None:
    base = runs(tracked.uri)["base small_cnn mnist5k"]
    assert set(base.data.metrics) == EPOCH_METRICS
    own = [name for name in ARTIFACTS if "shifted" not in name and not name.startswith(("adapter/", "split"))]
    assert listed(tracked.uri, base) == ["base/base.json", "base/base.safetensors", *own]


def test_tags(tracked: Tracked) -> None:
    found = runs(tracked.uri)
    base, run = found["base small_cnn mnist5k"], found["lora rank=4 seed=0"]
    tags = run.data.tags
    assert tags["adaptkit.version"] == adaptkit.__version__
    assert (base.data.tags["adaptkit.kind"], tags["adaptkit.kind"]) == ("base", "adaptation")
    assert tags["adaptkit.base_run_id"] == base.info.run_id
    assert tags["adaptkit.base_fingerprint"] == base.data.tags["adaptkit.base_fingerprint"]
    assert tags["adaptkit.data_fingerprint"] == tracked.outcome["data_fingerprint"]
    assert re.fullmatch(tracked.outcome["data_fingerprint"][:12] + "-[0-9a-f]{12}", tags["adaptkit.pair_id"])
    assert tags["adaptkit.protocol"] == "draws"
    assert found["head seed=0"].data.tags["adaptkit.pair_id"] == tags["adaptkit.pair_id"]
    assert tags["adaptkit.timing"] == "alone"
    assert {"adaptkit.host", "adaptkit.pid", "adaptkit.process_seen", "mlflow.user"} <= set(tags)
    assert len({tags[f"adaptkit.{purpose}_seed"] for purpose in ("draw", "init", "order")}) == 3
    assert tags["mlflow.note.content"] == (
        "Strategy **lora rank=4** adapts a `small_cnn` base, trained on 200 images of `mnist5k`, "
        "to `mnist5k` under `rotate=45,noise=0.3` with 50 labelled images (seed 0)."
    )


def test_inputs(tracked: Tracked) -> None:
    found = runs(tracked.uri)
    inputs = {
        given.tags[0].value: (given.dataset.name, len(given.dataset.digest))
        for given in found["head seed=0"].inputs.dataset_inputs
    }
    assert inputs == {"source": ("mnist5k", 36), "target": ("mnist5k", 36)}
    assert [given.tags[0].value for given in found["base small_cnn mnist5k"].inputs.dataset_inputs] == ["source"]


def test_artifacts(tracked: Tracked, tmp_path: Path) -> None:
    run = runs(tracked.uri)["lora rank=4 seed=0"]
    assert listed(tracked.uri, run) == ARTIFACTS
    report = json.loads(artifact(tracked.uri, run, "classification_report_shifted.json", tmp_path).read_text())
    assert report["accuracy"] == run.data.metrics["final/shifted_accuracy"]
    assert report["macro avg"]["f1-score"] == run.data.metrics["final/shifted_macro_f1"]
    assert sorted(report) == sorted([*"0123456789", "accuracy", "macro avg", "weighted avg", "classes"])
    assert report["classes"] == {name: report[name] for name in "0123456789"}
    rows = list(csv.DictReader(artifact(tracked.uri, run, "predictions.csv", tmp_path).read_text().splitlines()))
    assert list(rows[0]) == [
        *("image", "test_set", "group", "fold", "truth", "prediction"),
        *(f"p_{number}" for number in range(10)),
        "base_prediction",
    ]
    assert all(max(range(10), key=lambda number: row[f"p_{number}"]) == int(row["prediction"]) for row in rows)
    for name, metric, base in (
        ("clean", "final/test_accuracy", "final/base_test_accuracy"),
        ("shifted", "final/shifted_accuracy", "final/zero_shot_accuracy"),
    ):
        mine = [row for row in rows if row["test_set"] == name]
        assert len(mine) == 100 and len({row["image"] for row in mine}) == 100
        assert sum(row["truth"] == row["prediction"] for row in mine) / 100 == run.data.metrics[metric]
        assert sum(row["truth"] == row["base_prediction"] for row in mine) / 100 == run.data.metrics[base]
    for name in (name for name in ARTIFACTS if name.endswith(".png")):
        assert artifact(tracked.uri, run, name, tmp_path).read_bytes().startswith(b"\x89PNG")
    environment = artifact(tracked.uri, run, "environment.txt", tmp_path).read_text()
    assert environment.startswith(f"adaptkit {adaptkit.__version__}\npython 3.") and "\nmlflow==3." in environment
    card = json.loads(artifact(tracked.uri, run, "adapter/adapter.json", tmp_path).read_text())
    assert (card["strategy"], card["base_fingerprint"]) == ("lora", run.data.tags["adaptkit.base_fingerprint"])


def test_config_repeats_run(cli: Cli, tracked: Tracked, tmp_path: Path) -> None:
    run = runs(tracked.uri)["lora rank=4 seed=0"]
    path = artifact(tracked.uri, run, "config.yaml", tmp_path)
    config = yaml.safe_load(path.read_text())
    assert (config["strategy"], config["strategy.rank"], config["seed"]) == ("lora", 4, 0)
    again = json.loads(cli("run", "--config", str(path), "--no-track", "--json").stdout)
    (record,) = again["runs"]
    timeless = {key for key in record["metrics"] if not key.startswith(("time/", "memory/"))}
    assert {key: record["metrics"][key] for key in timeless} == {key: run.data.metrics[key] for key in timeless}


@pytest.mark.slow
def test_cached_base_is_recorded_once(cli: Cli, store: Path, tracked: Tracked) -> None:
    for strategy in ("head", "lora"):
        assert cli("run", "-s", strategy, *TINY, "-q").exit_code == 0
    found = runs()
    assert sorted(found) == ["base small_cnn mnist5k", "head seed=0", "lora seed=0"]
    base = found["base small_cnn mnist5k"]
    elsewhere = runs(tracked.uri)["base small_cnn mnist5k"]
    # Another test may have trained this base again, in a different time.
    timeless = {key: value for key, value in base.data.metrics.items() if not key.startswith("time/")}
    assert timeless == {key: elsewhere.data.metrics[key] for key in timeless} and len(timeless) == 3
    assert base.data.tags["adaptkit.base_fingerprint"] == elsewhere.data.tags["adaptkit.base_fingerprint"]
    assert {run.data.tags.get("adaptkit.base_run_id", base.info.run_id) for run in found.values()} == {base.info.run_id}


@pytest.mark.slow
def test_mlflow_calls_of_plugin(store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import mlflow

    class Logging:
        @adaptkit.hookimpl
        def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
            mlflow.log_metric("plugin/number", epoch.number, step=epoch.number)
            if epoch.number == 2:
                mlflow.start_run(run_name="left open", nested=True)

    before = mlflow.get_tracking_uri()
    adaptkit.run("head", settings=TINY_SETTINGS, plugins=[Logging()])
    assert mlflow.active_run() is None and mlflow.get_tracking_uri() == before
    assert "MLFLOW_TRACKING_URI" not in os.environ
    found = {run.info.run_name: run for run in client().search_runs(["0", "1", "2"])}
    run = found["head seed=0"]
    history = client().get_metric_history(run.info.run_id, "plugin/number")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0)]
    assert {run.info.status for run in found.values()} == {"FINISHED"}


@pytest.mark.slow
def test_active_run_of_user(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from mlflow.tracking import fluent

    mlflow.set_tracking_uri(f"sqlite:///{store}")
    monkeypatch.setattr(fluent, "_active_experiment_id", client().create_experiment("mine"))
    with mlflow.start_run() as outer:
        adaptkit.run("head", settings=TINY_SETTINGS)
        mlflow.log_metric("mine", 1)
    assert runs()["head seed=0"].info.status == "FINISHED"
    assert client().get_run(outer.info.run_id).data.metrics == {"mine": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("out of luck"), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(3), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_status_of_interrupted_run(
    store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, status: str
) -> None:
    monkeypatch.setenv("ADAPTKIT_STRICT", "1")
    with pytest.raises(type(error)):
        adaptkit.run("head", settings=TINY_SETTINGS, plugins=[Raising(error)])
    run = runs()["head seed=0"]
    assert run.info.status == status and run.info.end_time is not None
    history = client().get_metric_history(run.info.run_id, "train/loss")
    # The hook of the plugin is called before that of the tracker.
    assert [point.step for point in history] == [1]
    assert listed(None, run) == (["error.txt"] if status == "FAILED" else [])
    if isinstance(error, RuntimeError):
        text = artifact(None, run, "error.txt", tmp_path).read_text()
        assert text.startswith("Traceback (most recent call last):") and text.endswith("RuntimeError: out of luck\n")


@pytest.mark.slow
def test_run_after_failed_run(cli: Cli, store: Path) -> None:
    result = cli("run", "-s", "full", "-s", "head", "--lr", "1e30", "--set", "optimizer=sgd", *TINY, "-q")
    assert result.exit_code == 1
    found = runs()
    assert (found["full seed=0"].info.status, found["head seed=0"].info.status) == ("FAILED", "FINISHED")


def test_failure_before_first_batch(store: Path) -> None:
    calls: list[int] = []

    class Late:
        """Succeed in the check before the run, and fail in the run."""

        name = "late"

        def adapt(self, model: Any) -> Any:
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("not again")
            return list(model.parameters())

    class Plugin:
        @adaptkit.hookimpl
        def adaptkit_strategies(self) -> list[type]:
            return [Late]

    (run,) = adaptkit.run("late", settings=TINY_SETTINGS, plugins=[Plugin()]).runs
    assert run.status == "failed" and run.error is not None
    assert run.error.startswith("strategy late fails in adapt(): RuntimeError: not again (")
    assert runs()["late seed=0"].info.status == "FAILED"


def test_no_track(cli: Cli, own_folder: Path) -> None:
    assert cli("run", "-s", "head", *TINY, "--no-track", "-q").exit_code == 0
    assert list(own_folder.iterdir()) == []


@pytest.mark.slow
def test_ui_hint(cli: Cli, store: Path, own_folder: Path) -> None:
    here = cli("run", "-s", "head", *TINY)
    assert here.stderr.splitlines()[-2:] == [
        "Look at the runs:  mlflow ui",
        f"then open          http://127.0.0.1:5000/#/experiments/2/runs?{CHARTS}",
    ]
    (own_folder / "else").mkdir()
    uri = f"sqlite:///{store.rename(own_folder / 'else' / 'mlflow.db')}"
    elsewhere = cli("run", "-s", "head", *TINY, "--tracking-uri", uri, "--experiment", "other")
    assert elsewhere.stderr.splitlines()[-2] == f"Look at the runs:  mlflow ui --backend-store-uri {uri}"
    assert "head seed=0" in runs(uri, "other")
    assert [path.name for path in (own_folder / "else").iterdir() if not path.name.startswith(".")]
    assert listed(uri, runs(uri, "other")["head seed=0"]) == ARTIFACTS
