"""Output to terminals and pipes that cannot encode every character."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from PIL import Image

from adaptkit.cli import main

Cli = Callable[..., Result]
ENCODINGS = ("latin-1", "ascii", "cp1252", "utf-8")


def command(encoding: str, *arguments: str) -> Result:
    result = CliRunner(charset=encoding).invoke(main, list(arguments), prog_name="adaptkit")
    assert result.exit_code == 0, (result.exception, result.stderr)
    return result


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on pictures of the classes `katze` and `日本`. Return the folder of the pictures and the store."""
    folder = tmp_path_factory.mktemp("encodings")
    for number, label in enumerate(("katze", "日本")):
        (folder / "pictures" / label).mkdir(parents=True)
        for index in range(16):
            noise = numpy.random.default_rng(100 * number + index).integers(0, 256, (16, 16, 3), numpy.uint8)
            Image.fromarray(noise).save(folder / "pictures" / label / f"{index}.png")
    arguments = [
        "--dataset",
        "none",
        "--weights",
        "none",
        "--target",
        f"folder:{folder / 'pictures'}",
        "--backbone",
        "small_cnn",
    ]
    arguments += ["--protocol", "draws"]
    command("ascii", "run", "-s", "head", "-s", "full", *arguments, "--image-size", "16", "--epochs", "1",
            "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}")  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_results_in_every_encoding(encoding: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{store / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("adaptkit").experiment_id])
    run_id = next(run.info.run_id for run in runs if run.info.run_name.startswith("head"))
    japanese = {"utf-8": "日本"}.get(encoding, r"\u65e5\u672c")
    comparison = command(encoding, "compare").stdout_bytes.decode(encoding)
    assert ("+-" if encoding == "ascii" else "±") in comparison
    table = command(encoding, "predict", run_id, str(store / "pictures")).stdout_bytes.decode(encoding)
    assert f"pictures/{japanese}/0.png" in table.replace("\n", "")
    rows = command(encoding, "predict", run_id, str(store / "pictures"), "--csv").stdout_bytes.decode(encoding)
    found = list(csv.DictReader(rows.splitlines()))
    assert len(found) == 32 and {row["prediction"] for row in found} <= {"katze", japanese}
    assert sum(f"pictures/{japanese}/" in row["path"] for row in found) == 16


def test_messages_in_every_encoding(own_folder: Path) -> None:
    for encoding in ENCODINGS[:3]:
        arguments = ["run", "-s", "scratch", "--target", "folder:日本"]
        result = CliRunner(charset=encoding).invoke(main, arguments, prog_name="adaptkit")
        assert result.exit_code == 2 and r"folder:\u65e5\u672c: there is no such folder" in result.stderr


@pytest.mark.slow
def test_line_breaks_in_names_of_pictures(store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{store / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("adaptkit").experiment_id])
    run_id = next(run.info.run_id for run in runs if run.info.run_name.startswith("head"))
    names = ["a\nb.png", 'c",d.png', "e;f.png", "g\th.png", " i.png"]
    (own_folder / "new").mkdir()
    for name in names:
        shutil.copy(store / "pictures" / "katze" / "0.png", own_folder / "new" / name)
    Path("out.csv").write_bytes(command("utf-8", "predict", run_id, "new", "--csv").stdout_bytes)
    with open("out.csv", encoding="utf-8", newline="") as file:
        assert sorted(row["path"] for row in csv.DictReader(file)) == sorted(f"new/{name}" for name in names)
