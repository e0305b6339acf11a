"""`adaptkit refit`: train the best strategy on all labels, and use the model."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock
from mlflow import MlflowClient
from PIL import Image
from support.artifacts import artifacts_of, copied
from support.experiments import FOREIGN, KEPT, Tracked, own_cache

import adaptkit
from adaptkit.cli import main
from adaptkit.errors import Interrupted, RunFailed
from adaptkit.system.folders import state_folder

Cli = Callable[..., Result]
pytestmark = pytest.mark.slow

#: colours of the classes: easy to learn from the whole image, but not from an untrained base's features
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
PER_CLASS = 20
DATA = ("--dataset", "none", "--weights", "none", "--target", "folder:colours", "--image-size", "16")
#: the head learns too little to be as good
BOTH = ("-s", "head", "-s", "full", "--set", "head.lr=1e-5")
RUN = ("run", *BOTH, *DATA, "--epochs", "3", "--seeds", "0-1", "--set", "full.lr=0.003")


def make_colours(folder: Path) -> None:
    """Write images of a class in shades of one colour."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            shade = tuple(min(255, value + 5 * (number % 8)) for value in colour)
            image = Image.new("RGB", (16, 16), shade)
            image.putpixel((number % 16, number // 16), (255, 255, 255))
            image.save(folder / name / f"{number:02}.png")


@pytest.fixture(scope="session")
def refitted(shared: Path, empty_store: Path) -> Tracked:
    """Compare two strategies and refit the best one, once for all tests."""
    folder = shared / "refitted"
    with FileLock(shared / "refitted.lock"):
        if not (folder / "outcome.json").exists():
            folder.mkdir(exist_ok=True)
            shutil.copy(empty_store, folder / "mlflow.db")
            make_colours(folder / "colours")
            with pytest.MonkeyPatch.context() as patch:
                for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
                    patch.delenv(name)
                patch.setenv("ADAPTKIT_CACHE", str(own_cache(shared)))
                patch.chdir(folder)
                result = CliRunner().invoke(main, [*RUN, "--refit", "--json"], catch_exceptions=False)
            assert result.exit_code == 0, result.stderr
            (folder / "outcome.json").write_text(result.stdout)
    return Tracked(folder, json.loads((folder / "outcome.json").read_text()))


@pytest.fixture
def project(refitted: Tracked, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tracked:
    """Work in a copy of the folder of the refitted comparison."""
    copied(refitted, own_folder / "project")
    monkeypatch.chdir(own_folder / "project")
    return Tracked(own_folder / "project", refitted.outcome)


def arms(refitted: Tracked) -> dict[str, dict[str, Any]]:
    return {arm["name"]: arm for arm in refitted.outcome["comparison"]["arms"]}


def test_run_with_refit(refitted: Tracked) -> None:
    refit, full = refitted.outcome["refit"], arms(refitted)["full"]
    assert (refit["strategy"], refit["images"], refit["lr"]) == ("full", len(COLOURS) * PER_CLASS, 0.003)
    assert refit["comparison_run_id"] == refitted.outcome["parent_run_id"]
    assert refit["refit_of"] == full["runs"][0]["run_id"]
    expected = refit["expected"]
    assert expected["accuracy"] == pytest.approx(full["shifted"]["mean"])
    # At least the interval over runs, and that over images.
    error = (expected["accuracy"] * (1 - expected["accuracy"]) / 60) ** 0.5
    assert expected["low"] <= max(0.0, min(full["shifted"]["low"], expected["accuracy"] - 1.5 * error))
    assert expected["high"] >= min(1.0, max(full["shifted"]["high"], expected["accuracy"] + 1.5 * error))
    assert (expected["runs"], expected["strategies"], refitted.outcome["refit_error"]) == (2, 2, None)
    assert 0 <= expected["optimism"] < 0.05


def test_record_of_the_final_run(refitted: Tracked) -> None:
    client, refit = MlflowClient(tracking_uri=refitted.uri), refitted.outcome["refit"]
    run = client.get_run(refit["run_id"])
    assert (run.info.run_name, run.info.status) == ("full refit", "FINISHED")
    tags, metrics, expected = run.data.tags, run.data.metrics, refit["expected"]
    assert tags["adaptkit.kind"] == "final"
    assert tags["adaptkit.refit_of"] == refit["refit_of"]
    assert tags["adaptkit.comparison_run_id"] == refit["comparison_run_id"]
    source = client.get_run(refit["refit_of"])
    for tag in ("base_fingerprint", "data_fingerprint", "base_run_id", "init_seed"):
        assert tags[f"adaptkit.{tag}"] == source.data.tags[f"adaptkit.{tag}"]
    assert run.info.experiment_id == source.info.experiment_id
    assert run.data.params == source.data.params
    assert {key: metrics[key] for key in metrics if key.startswith("final/")} == {
        "final/shifted_accuracy": expected["accuracy"],
        "final/shifted_accuracy_low": expected["low"],
        "final/shifted_accuracy_high": expected["high"],
        "final/optimism": expected["optimism"],
    }
    assert not any(key.startswith(("test/", "shifted/")) for key in metrics)
    accuracy = f"{100 * expected['accuracy']:.1f} %"
    assert tags["mlflow.note.content"].startswith(f"Expected target accuracy: {accuracy} [")
    assert (
        "an estimate from 2 runs that left labels out; it is not measured on this model" in tags["mlflow.note.content"]
    )
    files = {entry.path for entry in client.list_artifacts(refit["run_id"])}
    assert files == {"adapter", "config.yaml", "curves.png", "environment.txt", "split.json"}


def test_model_of_all_labels(project: Tracked, cli: Cli) -> None:
    refit = project.outcome["refit"]
    evaluated = pandas.read_parquet(artifacts_of(project.uri, refit["refit_of"]) / "predictions.parquet")
    assert len(evaluated) == refit["images"] == 60 and set(evaluated["fold"]) == set(range(5))
    rows = csv.DictReader(cli("predict", refit["run_id"], "colours", "--csv").stdout.splitlines())
    right = [row["path"].split("/")[1] == row["prediction"] for row in rows]
    assert len(right) == 60 and sum(right) / 60 > 0.9
    final = MlflowClient(tracking_uri=project.uri).get_run(refit["run_id"])
    assert (60 * final.data.metrics["train/accuracy"]) % 1 == pytest.approx(0, abs=1e-9)
    assert final.data.tags["adaptkit.drawn_images"] == "60"


def test_predictions_join_with_the_files(refitted: Tracked) -> None:
    artifacts = artifacts_of(refitted.uri, refitted.outcome["refit"]["refit_of"])
    for rows in (
        pandas.read_parquet(artifacts / "predictions.parquet"),
        pandas.read_csv(artifacts / "predictions.csv"),
    ):
        files = [path.relative_to(refitted.folder / "colours") for path in (refitted.folder / "colours").rglob("*.png")]
        table = pandas.DataFrame({"path": map(str, files), "label": [path.parts[0] for path in files]})
        joined = rows.merge(table, on="path", validate="one_to_one")
        assert len(joined) == len(rows) > 0 and (joined["label"] == joined["truth"]).all()
        shares = rows[[f"p_{name}" for name in sorted(COLOURS)]]
        assert shares.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
        assert (shares.idxmax(axis=1).str[2:] == rows["prediction"]).all()


def test_the_comparison_stands_for_its_refit(project: Tracked, cli: Cli) -> None:
    parent, final = project.outcome["parent_run_id"], project.outcome["refit"]["run_id"]
    named = cli("predict", final, "colours/red", "--csv")
    assert named.exit_code == 0, named.stderr
    by_parent = cli("predict", parent, "colours/red", "--csv")
    assert by_parent.stdout == named.stdout
    assert by_parent.stderr.splitlines() == [f"Model: run {final} (full refit), the refit of {parent}"]
    assert named.stderr == ""
    document = json.loads(cli("predict", parent, "colours/red", "--json").stdout)
    assert (document["run_id"], document["strategy"]) == (final, "full")
    exported = cli("export", parent, "--to", "merged", "-o", "model")
    assert exported.exit_code == 0 and "100.00% equal predictions" in exported.stdout, exported.stderr


def test_a_run_with_folds_stands_for_its_refit(project: Tracked, cli: Cli) -> None:
    refit, other = project.outcome["refit"], arms(project)["full"]["runs"][1]["run_id"]
    expected = cli("predict", refit["run_id"], "colours/red", "--csv").stdout
    assert cli("predict", refit["refit_of"], "colours/red", "--csv").stdout == expected
    result = cli("predict", other, "colours/red")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        f"(full seed=1) has a model for each fold; train one on all labels with `adaptkit refit {other}`\n"
    )


def test_comparison_without_a_refit(project: Tracked, cli: Cli) -> None:
    parent = project.outcome["parent_run_id"]
    MlflowClient(tracking_uri=project.uri).delete_run(project.outcome["refit"]["run_id"])
    result = cli("predict", parent, "colours/red")
    assert result.exit_code == 2
    assert f"train one on all labels with `adaptkit refit {parent}`, or name one of its runs: " in result.stderr


def test_refit_of_a_named_strategy(project: Tracked, cli: Cli) -> None:
    parent = project.outcome["parent_run_id"]
    result = cli("refit", parent, "-s", "head", "--json", "-q")
    assert result.exit_code == 0, result.stderr
    refit = json.loads(result.stdout)
    assert (refit["label"], refit["images"], refit["expected"]["optimism"]) == ("head", 60, None)
    # Now the comparison stands for the latest refit.
    assert cli("predict", parent, "colours/red").stdout == cli("predict", refit["run_id"], "colours/red").stdout
    # Refits are no part of comparisons.
    compared = json.loads(cli("compare", "--no-track", "--json").stdout)
    assert [(arm["name"], arm["n"]) for arm in compared["arms"]] == [("full", 2), ("head", 2)]


def test_refit_of_a_run_of_the_other_seed(project: Tracked, cli: Cli) -> None:
    run = arms(project)["full"]["runs"][1]
    result = cli("refit", run["run_id"], "--dry-run")
    assert result.exit_code == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == f"Final model: full, 60 labels to train on (settings of run {run['run_id']})"
    assert second.startswith("Expected target accuracy: ")
    client = MlflowClient(tracking_uri=project.uri)
    experiment = client.get_run(run["run_id"]).info.experiment_id
    assert len(client.search_runs([experiment], "tags.`adaptkit.kind` = 'final'")) == 1


def test_same_bits_again(project: Tracked, cli: Cli) -> None:
    again = json.loads(cli("refit", project.outcome["parent_run_id"], "--json", "-q").stdout)
    weights = [
        (artifacts_of(project.uri, run_id) / "adapter" / "adapter.safetensors").read_bytes()
        for run_id in (project.outcome["refit"]["run_id"], again["run_id"])
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        ("nothing", "no run 'nothing' in "),
        ("final", r"(full refit) is of kind final: name a comparison or an adaptation run"),
        ("misspelt", "--strategy: the comparison has no 'ful'; did you mean 'full'?"),
        ("of another", "is of strategy full; leave --strategy out"),
        ("undecided", "no strategy is shown to be better than "),
        ("more images", "the data have changed since then (the target images differ): its accuracy says nothing about"),
        ("base gone", "its base run has no artifact base/base.safetensors, and the cache of this machine has no base "),
        ("base altered", "base/base.safetensors of its base, "),
    ],
)
def test_refits_that_are_refused(
    make: str, problem: str, project: Tracked, cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, options = project.outcome["parent_run_id"], []
    if make == "nothing":
        run_id = make
    elif make == "final":
        run_id = project.outcome["refit"]["run_id"]
    elif make == "misspelt":
        options = ["--strategy", "ful"]
    elif make == "of another":
        run_id, options = arms(project)["full"]["runs"][0]["run_id"], ["--strategy", "head"]
    elif make == "undecided":
        client = MlflowClient(tracking_uri=project.uri)
        for arm in arms(project).values():
            client.delete_run(arm["runs"][1]["run_id"])
        for arm in arms(project).values():
            path = artifacts_of(project.uri, arm["runs"][0]["run_id"]) / "predictions.csv"
            shutil.copy(artifacts_of(project.uri, arms(project)["head"]["runs"][0]["run_id"]) / "predictions.csv", "p")
            shutil.copy("p", path)
    elif make == "more images":
        shutil.copy("colours/red/00.png", "colours/red/99.png")
    else:
        monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
        weights = artifacts_of(project.uri, project.outcome["base"]["run_id"]) / "base" / "base.safetensors"
        if make == "base gone":
            weights.unlink()
        else:
            weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    result = cli("refit", run_id, *options, "-q")
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert problem in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_other_commands_say_what_a_refit_is(project: Tracked, cli: Cli) -> None:
    final = project.outcome["refit"]["run_id"]
    assert "is a refit, which was not evaluated; reproduce the run" in cli("reproduce", final).stderr
    assert "is of kind final; only adaptation runs can be compared" in cli("compare", final).stderr


def test_run_with_refit_needs_a_store(cli: Cli) -> None:
    make_colours(Path("colours"))
    result = cli(*RUN, "--refit", "--no-track")
    assert result.exit_code == 2 and "refit: the final model is recorded in MLflow" in result.stderr


def test_python(project: Tracked) -> None:
    parent = project.outcome["parent_run_id"]
    summary = adaptkit.refit(parent, strategy="head", tracking_uri=project.uri)
    assert (summary.label, summary.images, summary.comparison_run_id) == ("head", 60, parent)
    assert summary.run_id is not None and summary.expected.strategies == 2
    final, of_comparison = (adaptkit.load(run, tracking_uri=project.uri) for run in (summary.run_id, parent))
    pixels = final.preprocess("colours/red/00.png")
    assert torch.equal(final(pixels), of_comparison(pixels))


def test_run_with_refit_that_cannot_choose(cli: Cli, store: Path) -> None:
    make_colours(Path("colours"))
    arguments = (*RUN, "-o", "full.lr=1e-9", "-o", "head.lr=1e-9", "--seeds", "0", "--epochs", "1", "--refit", "-q")
    result = cli(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    line = result.stdout.splitlines()[-1]
    start = "No final model: no strategy is shown to be better than always answering "
    assert line.startswith(start) and " --strategy NAME`: " in line
    parent = line.partition("`adaptkit refit ")[2].partition(" ")[0]
    assert cli("refit", parent, "--strategy", "head", "--dry-run").exit_code == 0
    outcome = json.loads(cli(*arguments, "--json").stdout)
    assert (outcome["refit"], len(outcome["runs"])) == (None, 2)
    assert f"No final model: {outcome['refit_error']}" == line.replace(parent, outcome["parent_run_id"])


def test_run_with_refit_that_fails(cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> None:
        raise RunFailed("the loss is not finite")

    monkeypatch.setattr("adaptkit.api.refit.refit_once", failing)
    make_colours(Path("colours"))
    result = cli("run", "-s", "full", *DATA, "--epochs", "3", "--set", "full.lr=0.003", "--refit", "-q")
    assert (result.exit_code, result.stderr) == (1, "Error: no final model: the loss is not finite\n")
    assert not records()


def records() -> list[Path]:
    return list((state_folder() / "runs").glob("*/record.json"))


DYING = """
import os, signal
from adaptkit import hookimpl

@hookimpl
def adaptkit_epoch_ended(run, epoch):
    if run.kind == os.environ.get("DIE") and epoch.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("named", [BOTH, ("-s", "full")], ids=["comparison", "one run"])
@pytest.mark.parametrize("killed_in", ["adaptation", "final"])
def test_resume_makes_the_refit(
    cli: Cli, store: Path, own_folder: Path, killed_in: str, named: tuple[str, ...]
) -> None:
    """A command that is killed before its refit, or during it, is resumed to the same final model."""
    make_colours(Path("colours"))
    Path("dying.py").write_text(DYING)
    command = ["run", *named, *DATA, "--epochs", "3", "--set", "full.lr=0.003", "--refit", "--calibrate"]
    command += ["--plugin", "dying.py", "-q"]
    whole = json.loads(cli(*command, "--json", "--experiment", "undisturbed").stdout)
    dead = subprocess.run([sys.executable, "-m", "adaptkit", *command], env={**os.environ, "DIE": killed_in})
    assert dead.returncode == -signal.SIGKILL and records()
    doctor = cli("doctor")
    assert "1 interrupted run" in doctor.stdout, doctor.stdout
    result = cli("resume", "--all", "--json", "-q")
    assert result.exit_code == 0, result.stderr
    (attempt,) = json.loads(result.stdout)["resumed"]
    outcome = attempt["outcome"]
    assert [run["status"] for run in outcome["runs"]] == ["finished"] * named.count("-s")
    assert outcome["refit"]["strategy"] == "full" and not records()
    weights = [
        (artifacts_of(f"sqlite:///{store}", made["refit"]["run_id"]) / "adapter" / "adapter.safetensors").read_bytes()
        for made in (whole, outcome)
    ]
    assert weights[0] == weights[1]
    assert whole["refit"]["calibration"] and outcome["refit"]["calibration"] == whole["refit"]["calibration"]
    client = MlflowClient()
    experiment = client.get_experiment_by_name("adaptkit").experiment_id
    found = client.search_runs([experiment], "tags.`adaptkit.kind` = 'final'")
    states = sorted(run.info.status for run in found)
    assert states == (["FINISHED", "KILLED"] if killed_in == "final" else ["FINISHED"])
    parent = outcome["parent_run_id"] or outcome["runs"][0]["run_id"]
    assert client.get_run(parent).info.status == "FINISHED"
    assert "is finished: there is nothing to resume" in cli("resume", parent).stderr


def test_interrupted_refit(cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise Interrupted(15)

    make_colours(Path("colours"))
    with monkeypatch.context() as patch:
        patch.setattr("adaptkit.api.refit.refit_once", interrupted)
        result = cli("run", "-s", "full", *DATA, "--epochs", "1", "--refit", "-q")
    assert result.exit_code == 128 + 15
    hint = result.stderr.splitlines()[-1]
    assert hint.startswith("To resume:  adaptkit resume ")
    resumed = cli("resume", hint.split()[-1])
    assert resumed.exit_code == 0, resumed.stderr
    assert "Final model: full, trained on all 60 labels" in resumed.stdout and not records()
