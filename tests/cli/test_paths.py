"""Folders whose names have a meaning in addresses: runs, their artifacts and later commands work there."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from click.testing import Result
from mlflow import MlflowClient
from PIL import Image
from sklearn.metrics import f1_score

Cli = Callable[..., Result]
NAMES = ["My%20Project", "q?r #1;", "p%q & 50%25", "it's", "ü 日", "-a:b@c", "[x]+~"]


@pytest.fixture
def work(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that changes into a new folder with pictures, a cache and a state of its own."""

    def enter(name: str) -> Path:
        folder = own_folder / "parent" / name
        for label, level in (("x", 40), ("y", 200)):
            (folder / "data" / label).mkdir(parents=True)
            for index in range(12):
                noise = numpy.random.default_rng(level + index).integers(level, level + 50, (16, 16, 3), numpy.uint8)
                Image.fromarray(noise).save(folder / "data" / label / f"{index}.png")
        os.chdir(folder)
        monkeypatch.setenv("ADAPTKIT_CACHE", str(folder / "cache"))
        monkeypatch.setenv("ADAPTKIT_STATE", str(folder / "state"))
        return folder

    return enter


def trained(cli: Cli, *arguments: str) -> str:
    """Train on the pictures of the current folder. Return the id of the run."""
    options = ["--dataset", "none", "--weights", "none", "--backbone", "small_cnn", "--protocol", "draws"]
    options += [] if "--target" in arguments else ["--target", f"folder:{Path.cwd() / 'data'}"]
    result = cli("run", "-s", "full", *options, "--image-size", "16", "--epochs", "1", "--json", *arguments)
    assert result.exit_code == 0, result.stderr
    return str(json.loads(result.stdout)["runs"][0]["run_id"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_current_folder(name: str, cli: Cli, work: Callable[[str], Path]) -> None:
    folder = work(name)
    run_id = trained(cli, "-s", "head")
    assert [path.name for path in folder.parent.iterdir()] == [name]
    assert len(list(folder.glob(f"mlruns/*/{run_id}/artifacts/adapter/adapter.json"))) == 1
    for arguments in (
        ("predict", run_id, "data/x/0.png"),
        ("compare",),
        ("export", run_id, "--to", "merged", "-o", f"out {name}"),
    ):
        result = cli(*arguments)
        assert result.exit_code == 0, result.stderr
    assert cli("sync").stdout == "Nothing to upload.\n"
    client = MlflowClient(f"sqlite:///{str(folder / 'mlflow.db').replace('%', '%25').replace('?', '%3F')}")
    assert client.get_run(run_id).info.status == "FINISHED"
    assert "predictions.csv" in {entry.path for entry in client.list_artifacts(run_id)}


@pytest.mark.slow
def test_database_in_another_folder_and_a_moved_project(cli: Cli, work: Callable[[str], Path]) -> None:
    folder = work("plain")
    (folder / "store 50%25?").mkdir()
    uri = "sqlite:///store 50%2525%3F/runs.db"
    run_id = trained(cli, "--tracking-uri", uri)
    assert sorted(path.name for path in (folder / "store 50%25?").iterdir() if not path.name.startswith(".")) == [
        "mlruns",
        "runs.db",
    ]
    moved = folder.parent / "moved%20#1"
    folder.rename(moved)
    os.chdir(moved)
    result = cli("predict", run_id, "data/x/0.png", "--tracking-uri", uri)
    assert result.exit_code == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torch-export", "mlflow"])
def test_exports_into_every_folder(to: str, cli: Cli, work: Callable[[str], Path]) -> None:
    work("plain")
    run_id = trained(cli)
    for name in NAMES:
        result = cli("export", run_id, "--to", to, "-o", f"./{name}")
        assert result.exit_code == 0, result.stderr


def test_percent_sign_that_is_not_quoted(cli: Cli, own_folder: Path) -> None:
    (own_folder / "My%20Project").mkdir()
    result = cli("run", "-s", "full", "--tracking-uri", "sqlite:///My%20Project/runs.db")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: there is no folder 'My Project', for which sqlite:///My%20Project/runs.db stands; write % as %25: "
        "sqlite:///My%2520Project/runs.db"
    )


@pytest.mark.slow
def test_long_path_and_classes_with_names_of_averages(cli: Cli, work: Callable[[str], Path]) -> None:
    folder = work("plain")
    data = folder / "/".join(["d" * 120] * 5)
    data.mkdir(parents=True)
    (folder / "data" / "x").rename(data / "accuracy")
    (folder / "data" / "y").rename(data / "macro avg")
    run_id = trained(cli, "--target", f"folder:{data}")
    (artifacts,) = folder.glob(f"mlruns/*/{run_id}/artifacts")
    report = json.loads((artifacts / "classification_report_shifted.json").read_text(encoding="utf-8"))
    with (artifacts / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    hits = [row["truth"] == row["prediction"] for row in rows]
    assert report["accuracy"] == sum(hits) / len(hits)
    for name in ("accuracy", "macro avg"):
        truth, predicted = ([row[column] == name for row in rows] for column in ("truth", "prediction"))
        assert report["classes"][name]["f1-score"] == pytest.approx(f1_score(truth, predicted, zero_division=0))
        assert report["classes"][name]["support"] == sum(truth)


def test_path_that_is_too_long_for_a_database(cli: Cli, work: Callable[[str], Path]) -> None:
    work("/".join(["d" * 120] * 5))
    result = cli(
        "run", "-s", "full", "--target", "folder:data", "--dataset", "none", "--weights", "none", "--image-size", "16"
    )
    assert result.exit_code == 2
    assert "the path of the tracking store is too long for SQLite (" in result.stderr


def test_folder_in_which_mlflow_cannot_create_a_database(cli: Cli, work: Callable[[str], Path]) -> None:
    work('it\'s "q"')
    result = cli(
        "run", "-s", "full", "--target", "folder:data", "--dataset", "none", "--weights", "none", "--image-size", "16"
    )
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: MLflow cannot create a database here: the current folder has both ' and \" in its name; rename it"
    )
