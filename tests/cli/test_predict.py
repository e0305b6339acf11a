"""`adaptkit predict`: classes of images, equal to the predictions of the run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

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


def test_predictions_match_the_run(cli: Cli, lora: str, digits: dict[str, str]) -> None:
    result = cli("predict", lora, "digits", "--csv", "--batch-size", "7")
    assert result.exit_code == 0
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert list(rows[0]) == ["path", "class", "confidence"]
    assert {row["path"]: row["class"] for row in rows} == digits
    assert [row["path"] for row in rows] == sorted(digits)


def test_json_has_classes_by_confidence(cli: Cli, lora: str, digits: dict[str, str]) -> None:
    path = next(iter(digits))
    document = json.loads(cli("predict", lora, path, path, "--json", "--top-k", "30").stdout)
    assert document["run_id"] == lora and document["classes"] == list("0123456789")
    first, second = document["predictions"]
    assert first == second
    assert (first["path"], first["class"]) == (path, digits[path])
    shares = [top["confidence"] for top in first["top"]]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-4)
    assert first["top"][0] == {"class": first["class"], "confidence": first["confidence"]}


def test_table_without_a_terminal(cli: Cli, lora: str, digits: dict[str, str]) -> None:
    paths = list(digits)[:2]
    lines = cli("predict", lora, *paths, "--top-k", "3").stdout.splitlines()
    assert lines[0].split() == ["image", "class", "confidence", "then"]
    assert [line.split()[:2] for line in lines[1:]] == [[path, digits[path]] for path in paths]
    assert all(line.split()[2].endswith("%") and line.count("%") == 3 for line in lines[1:])


def test_files_that_are_not_images(cli: Cli, lora: str, digits: dict[str, str]) -> None:
    good = next(iter(digits))
    Path("digits/0/broken.png").write_bytes(Path(good).read_bytes()[:60])
    Path("digits/notes.txt").write_text("not a picture")
    result = cli("predict", lora, "digits", "--csv")
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 1 + len(digits)
    problems = result.stderr.splitlines()
    assert [line.partition(":")[2].strip().partition(":")[0] for line in problems[:2]] == [
        "digits/notes.txt",
        "digits/0/broken.png",
    ]
    assert problems[2] == "Error: 2 files could not be read; --skip-bad-images skips them"
    result = cli("predict", lora, "digits", "--json", "--skip-bad-images")
    assert result.exit_code == 0 and len(json.loads(result.stdout)["predictions"]) == len(digits)
    assert result.stderr.count("Skipped: ") == 2
    result = cli("predict", lora, "digits/notes.txt", "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["predictions"] == []


def test_bad_input(cli: Cli, lora: str) -> None:
    result = cli("predict", lora, "nowhere", "gone.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: nowhere: there is no such file or folder\nError: gone.png: there is no such file or folder\n"
    )
    Path("folder").mkdir()
    assert cli("predict", lora, "folder", "--csv", "--json").stderr == "Error: --json and --csv: choose one\n"
    result = cli("predict", lora, "folder", "--csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: no files found in folder\n"
    for option in (("--top-k", "0"), ("--batch-size", "0"), ("--device", "gpu")):
        result = cli("predict", lora, "folder", *option)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_hidden_files_and_order(own_folder: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a/x/1.png", ".hidden/1.png", "a/.thumbs", "a/Thumbs.db"):
        path = own_folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (own_folder / "photos" / "a" / "again").symlink_to(own_folder / "photos")
    found = [path.relative_to("photos").as_posix() for path in find_pictures([Path("photos")])]
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
