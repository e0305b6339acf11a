"""Cross-validation in the trials of a sweep: the same predictions as without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

CLASSES, EACH, SIDE = ("a", "b", "c"), 9, 12
FOUR = (
    *("-s", "full", "-s", "head", "--target", "table:t.csv", "--weights", "none", "--image-size", str(SIDE)),
    *("--epochs", "2", "--grid", "shots=2,3", "--json", "-q"),
)


@pytest.fixture
def work(own_folder: Path) -> Path:
    """Write noisy pictures of one colour for each class, from three sites, and their table."""
    rows = ["path,label,patient,site"]
    for number, name in enumerate(CLASSES):
        for index in range(EACH):
            noise = numpy.random.default_rng(100 * number + index).normal(0, 40, (SIDE, SIDE, 3))
            noise[..., number] += 150
            Image.fromarray(noise.clip(0, 255).astype(numpy.uint8)).save(f"{name}{index}.png")
            rows.append(f"{name}{index}.png,{name},{name}{index // 2},{'xyz'[index % 3]}")
    (own_folder / "t.csv").write_text("\n".join(rows))
    return own_folder


def predictions(work: Path, *arguments: str) -> dict[str, str]:
    """Run a sweep; return the predictions of each trial as they are stored."""
    command = [sys.executable, "-m", "adaptkit", "sweep", *FOUR, *arguments]
    ran = subprocess.run(command, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    stored = {}
    for trial in json.loads(ran.stdout)["trials"]:
        assert trial["status"] == "finished", trial
        (path,) = work.glob(f"mlruns/*/{trial['run_id']}/artifacts/predictions.csv")
        stored[trial["label"]] = path.read_text(encoding="utf-8")
    return stored


@pytest.mark.slow
@pytest.mark.parametrize("folds", [("--folds", "3"), ("--folds", "by:site", "--set", "table.group=none")])
def test_folds(work: Path, folds: tuple[str, ...]) -> None:
    on_ray = predictions(work, *folds, "--engine", "ray", "--engine-option", "address=local", "--experiment", "ray")
    assert len(on_ray) == 4 and all(len(text.splitlines()) == 1 + len(CLASSES) * EACH for text in on_ray.values())
    assert predictions(work, *folds, "--experiment", "local") == on_ray
