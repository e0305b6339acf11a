"""`adaptkit predict`: classes of images, equal to the predictions of the run."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from click.testing import Result
from PIL import Image
from support.artifacts import artifacts_of, run_of
from support.experiments import Tracked

import adaptkit
from adaptkit.models.preprocessing import Preprocessing, find_pictures, predict_pictures
from adaptkit.models.run_images import run_data
from adaptkit.models.trained import find_trained, given_plugins

Cli = Callable[..., Result]
COLUMNS = [f"p_{digit}" for digit in range(10)]


@pytest.fixture
def lora(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the id of the tracked LoRA run, with its store as the default store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    return run_of(tracked, "lora")


@pytest.fixture
def digits(lora: str, tracked: Tracked) -> dict[str, str]:
    """Save the source test images as PNG files in `digits/`. Return the prediction of the run for each."""
    trained = find_trained(lora, None, given_plugins([]))
    _, domains = run_data(trained.stored, given_plugins([]))
    assert domains.clean_test is not None
    images = (domains.clean_test.pixels[:] * 255).round().to(torch.uint8)
    folder = Path("digits")
    with (artifacts_of(tracked.uri, lora) / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["test_set"] == "clean"]
    predicted = {}
    for number, (image, row) in enumerate(zip(images, rows, strict=True)):
        # One folder per class, as usual.
        path = folder / row["truth"] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
        predicted[str(path)] = row["prediction"]
    return predicted


def test_predictions_match_the_run(cli: Cli, lora: str, digits: dict[str, str], tracked: Tracked) -> None:
    result = cli("predict", lora, "digits", "--csv", "--batch-size", "7")
    assert result.exit_code == 0
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert list(rows[0]) == ["path", "prediction", *COLUMNS]
    assert {row["path"]: row["prediction"] for row in rows} == digits
    assert [row["path"] for row in rows] == sorted(digits)
    with (artifacts_of(tracked.uri, lora) / "predictions.csv").open() as file:
        recorded = [row for row in csv.DictReader(file) if row["test_set"] == "clean"]
    by_path = {row["path"]: row for row in rows}
    for path, row in zip(digits, recorded, strict=True):
        for column in COLUMNS:
            # The same column names and numbers as in the table of the run; the pictures are rounded to 256 levels.
            assert float(by_path[path][column]) == pytest.approx(float(row[column]), abs=1e-5)


def test_formats_hold_the_same_rows(cli: Cli, lora: str, digits: dict[str, str]) -> None:
    paths = sorted(digits)[::-1][:3]
    document = json.loads(cli("predict", lora, *paths, "--json").stdout)
    assert document["run_id"] == lora and document["classes"] == list("0123456789")
    rows = document["predictions"]
    assert [row["path"] for row in rows] == paths  # the order of the arguments
    assert all(row["prediction"] == max(COLUMNS, key=row.get)[2:] == digits[row["path"]] for row in rows)
    assert cli("predict", lora, *paths, "--format", "json").stdout == cli("predict", lora, *paths, "--json").stdout
    printed = cli("predict", lora, *paths, "--format", "csv").stdout
    assert printed == cli("predict", lora, *paths, "--csv").stdout
    assert pandas.read_csv(io.StringIO(printed), dtype={"prediction": str}).to_dict("records") == rows
    result = cli("predict", lora, *paths, "--output", "new/rows.parquet")
    assert (result.exit_code, result.stdout) == (0, "")
    table = pandas.read_parquet("new/rows.parquet")
    assert list(table) == list(rows[0]) and (table[COLUMNS].dtypes == "float32").all()
    assert table[["path", "prediction"]].to_dict("records") == [
        {key: row[key] for key in ("path", "prediction")} for row in rows
    ]
    assert table[COLUMNS].to_numpy() == pytest.approx(numpy.array([[row[key] for key in COLUMNS] for row in rows]))
    result = cli("predict", lora, *paths, "--format", "parquet")
    assert result.stdout_bytes == Path("new/rows.parquet").read_bytes()
    assert cli("predict", lora, *paths, "--output", "rows.CSV").exit_code == 0
    assert Path("rows.CSV").read_text() == printed
    assert cli("predict", lora, *paths, "--output", "rows", "--json").stdout == ""
    assert json.loads(Path("rows").read_text()) == document


def test_best_classes_in_json(cli: Cli, lora: str, digits: dict[str, str]) -> None:
    path = next(iter(digits))
    (row,) = json.loads(cli("predict", lora, path, "--json", "--top-k", "30").stdout)["predictions"]
    shares = [top["confidence"] for top in row["top"]]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-4)
    assert [top["class"] for top in row["top"]] == [name[2:] for name in sorted(COLUMNS, key=row.get, reverse=True)]


def test_table_without_a_terminal(cli: Cli, lora: str, digits: dict[str, str]) -> None:
    paths = list(digits)[:2]
    lines = cli("predict", lora, *paths, "--top-k", "3").stdout.splitlines()
    assert lines[0].split() == ["image", "class", "confidence", "then"]
    assert [line.split()[:2] for line in lines[1:]] == [[path, digits[path]] for path in paths]
    assert all(line.split()[2].endswith("%") and line.count("%") == 3 for line in lines[1:])


def test_files_that_are_not_images(cli: Cli, lora: str, digits: dict[str, str]) -> None:
    good = next(iter(digits))
    Path("digits/0/broken.png").write_bytes(Path(good).read_bytes()[:60])
    Path("digits/notes.png").write_text("not a picture")
    Path("digits/0/labels.csv").write_text("file,class")
    result = cli("predict", lora, "digits", "--csv")
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 1 + len(digits)
    note, *problems = result.stderr.splitlines()
    assert note == "Note: 1 file is not an image, and is not read: digits/0/labels.csv"
    assert [line.partition(":")[2].strip().partition(":")[0] for line in problems[:2]] == [
        "digits/notes.png",
        "digits/0/broken.png",
    ]
    assert problems[2] == "Error: 2 files could not be read; --skip-bad-images skips them"
    result = cli("predict", lora, "digits", "--json", "--skip-bad-images")
    assert result.exit_code == 0 and len(json.loads(result.stdout)["predictions"]) == len(digits)
    assert result.stderr.count("Skipped: ") == 2
    result = cli("predict", lora, "digits/notes.png", "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["predictions"] == []


def test_bad_input(cli: Cli, lora: str) -> None:
    result = cli("predict", lora, "nowhere", "gone.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: nowhere: there is no such file or folder\nError: gone.png: there is no such file or folder\n"
    )
    Path("folder").mkdir()
    assert cli("predict", lora, "folder", "--csv", "--json").stderr == "Error: --csv and --json: choose one\n"
    for options, message in (
        (("--format", "parquet", "--csv"), "--format and --csv: choose one"),
        (("--format", "csv", "--csv", "--top-k", "2"), "--top-k: csv has a column for every class; leave --top-k out"),
        (("--output", "rows.txt"), "--output: rows.txt does not end in .csv, .parquet or .json; choose a --format"),
        (("--output", "folder", "--csv"), "--output: folder is not a file"),
    ):
        result = cli("predict", lora, "folder", *options)
        assert (result.exit_code, result.stderr) == (2, f"Error: {message}\n")
    result = cli("predict", lora, "folder", "--csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: no files found in folder\n"
    for option in (("--top-k", "0"), ("--batch-size", "0"), ("--device", "gpu"), ("--format", "cvs")):
        result = cli("predict", lora, "folder", *option)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_failed_output_leaves_no_file(cli: Cli, lora: str, digits: dict[str, str]) -> None:
    Path("file").touch()
    result = cli("predict", lora, next(iter(digits)), "--output", "file/rows.csv")
    assert result.exit_code == 2 and result.stderr.startswith("Error: file/rows.csv cannot be written: ")
    Path("rows.csv").write_text("earlier")
    assert cli("predict", "no-such-run", next(iter(digits)), "--output", "rows.csv").exit_code == 2
    assert Path("rows.csv").read_text() == "earlier" and not list(Path().glob(".rows*"))


def test_parquet_is_not_printed_on_a_terminal(lora: str, digits: dict[str, str], own_folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "adaptkit", "predict", lora, next(iter(digits)), "--format", "parquet"]
    result = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(theirs)
    os.close(ours)
    assert (result.returncode, result.stderr) == (
        2,
        "Error: --format parquet cannot be printed on a terminal; name a file with --output FILE\n",
    )


def test_hidden_files_and_order(own_folder: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a/x/1.png", ".hidden/1.png", "a/.thumbs", "a/Thumbs.db"):
        path = own_folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (own_folder / "photos" / "a" / "again").symlink_to(own_folder / "photos")
    found = [path.relative_to("photos").as_posix() for path in find_pictures([Path("photos")], (".png",))]
    assert found == ["a/x/1.png", "b/10.png", "b/2.png"]


def test_at_most_two_batches_are_decoded_ahead(lora: str, own_folder: Path) -> None:
    Image.new("L", (28, 28)).save("one.png")
    asked = []

    def paths() -> Iterator[Path]:
        for number in range(100):
            asked.append(number)
            yield Path("one.png")

    model = adaptkit.load(lora)
    predictions = predict_pictures(
        model, Preprocessing(1, 28), tuple("0123456789"), paths(), batch_size=10, broken=lambda line: None
    )
    for number, _ in enumerate(predictions, start=1):
        assert len(asked) <= 10 * (-(-number // 10) + 1)
    assert number == 100
