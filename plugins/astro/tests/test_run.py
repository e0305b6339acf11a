"""Experiments with first-galaxies on the command line."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

PAGES = (Path(__file__).parents[1] / "README.md", Path(__file__).parents[3] / "docs" / "galaxies.md")
PAIR = (
    *("--dataset", "first-galaxies?catalogue=Gendre", "--target", "first-galaxies?catalogue=MiraBest"),
    *("--classes", "FRI,FRII,Bent"),
)
ALONE = ("--dataset", "none", "--target", "first-galaxies", "--weights", "none")


def plan(cli: Any, *arguments: str) -> dict[str, Any]:
    result = cli("run", "-s", "scratch", *arguments, "--dry-run", "--no-track", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_plan_of_two_catalogues(cli):
    shown = plan(cli, *PAIR)
    assert (shown["classes"], shown["channels"], shown["size"]) == (["FRI", "FRII", "Bent"], 1, 64)
    assert (shown["source_images"] + shown["clean_test_images"], shown["pool_images"]) == (526, 745)
    assert (shown["protocol"], shown["groups"], shown["evaluation_counts"]) == ("folds", 744, [288, 412, 45])
    notices = "\n".join(shown["notices"])
    assert notices.count("for scholarly, educational and private non-commercial use") == 1
    # This galaxy is in both catalogues: its two positions are 62 arcseconds apart.
    assert re.search(r"4 groups have images in the source \S+ too, which trains the base: 121\.38\+24\.173, ", notices)


def test_plan_of_all_galaxies(cli):
    shown = plan(cli, *ALONE, "--image-size", "32")
    assert (shown["pool_images"], shown["groups"], shown["size"]) == (2158, 2124, 32)
    assert shown["evaluation_counts"] == [495, 924, 391, 348]


def test_catalogues_are_domains(cli):
    shown = plan(cli, *ALONE, "--image-size", "16", "--folds", "by:catalogue")
    assert shown["folds"] == 6
    assert re.search(r"folds: 17 groups have images with several values of catalogue", "\n".join(shown["notices"]))


@pytest.mark.slow
def test_predictions_have_coordinates(cli, own_folder):
    small = ("--image-size", "16", "--epochs", "1", "--set", "base.epochs=1", "--folds", "2")
    result = cli("run", "-s", "head", *PAIR, *small, "--json", "--tracking-uri", "sqlite:///runs.db")
    assert result.exit_code == 0, result.stderr
    (run,) = json.loads(result.stdout)["runs"]
    (path,) = own_folder.rglob(f"{run['run_id']}/artifacts/predictions.csv")
    with open(path, newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file) if row["test_set"] == "shifted"}
    assert rows["14.084-9.608"]["truth"] == "Bent"
    assert rows["121.396+24.164"]["group"] == "121.38+24.173"


def test_description_states_the_terms(cli):
    (described,) = [row for row in json.loads(cli("datasets", "--json").stdout) if row["name"] == "first-galaxies"]
    assert "FIRST survey" in described["summary"]
    assert "scholarly, educational and private" in described["summary"]


def refusal(cli: Any) -> str:
    result = cli("run", "-s", "scratch", *ALONE)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr


def test_missing_package(cli, monkeypatch):
    find: Any = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "firstgalaxydata" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert refusal(cli) == (
        "Error: data set first-galaxies: its images are part of the package firstgalaxydata; install it: "
        "pip install firstgalaxydata==0.2.1\n"
    )


@pytest.mark.parametrize("content", [None, b"", b"pictures of another version"])
def test_other_version(cli, own_folder, monkeypatch, content):
    package = own_folder / "other" / "firstgalaxydata"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    if content is not None:
        (package / "galaxy_data.zip").write_bytes(content)
    monkeypatch.delitem(sys.modules, "firstgalaxydata", raising=False)
    monkeypatch.syspath_prepend(package.parent)
    assert refusal(cli) == (
        f"Error: data set first-galaxies: {package / 'galaxy_data.zip'} is not the file of firstgalaxydata 0.2.1; "
        "install this version: pip install --force-reinstall --no-deps firstgalaxydata==0.2.1\n"
    )


def commands(page: Path) -> list[list[str]]:
    """Return the words of each `adaptkit run` on a page, without `adaptkit`."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("adaptkit run ")]


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for page in PAGES for words in commands(page)], ids=" ".join)
def test_commands_of_the_pages(cli, words):
    result = cli(*words, "--image-size", "16", "--dry-run", "--no-track")
    assert result.exit_code == 0, result.stderr


@pytest.mark.slow
def test_verdict_of_the_pages(cli):
    """The scores resemble those of docs/galaxies.md, with smaller images, which take a quarter of the time."""
    words, *_ = commands(PAGES[1])
    assert words == commands(PAGES[0])[0]
    result = cli(*words, "--no-track", "--json", "--image-size", "32")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    scores = {run["label"]: run["metrics"]["final/shifted_balanced_accuracy"] for run in document["runs"]}
    assert scores["scratch"] == pytest.approx(0.549, abs=0.05) and scores["scratch"] == max(scores.values())
    assert min(scores.values()) > 0.4
    assert document["comparison"]["metric"] == "final/shifted_balanced_accuracy"
