"""Measure experiments of adaptkit. Each is a separate process, with a folder and cache chosen by the caller."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import Sample, Setting, timed

HERE = Path(__file__).parent
STAMPS = HERE / "stamps.py"
BITFIT = HERE.parent / "plugins" / "bitfit" / "adaptkit_bitfit.py"
PLAIN = "--no-feature-cache"


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """Yield a folder without a store and without a cache."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        yield Path(folder)


@contextmanager
def copied_folder(prepared: Path) -> Iterator[Path]:
    """Yield a copy of a folder with a cache that an earlier run has filled."""
    with fresh_folder() as folder:
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        yield folder


def strategies(names: Iterable[str]) -> list[str]:
    """Return the options for strategies. Add the bitfit plugin if it is needed and not installed."""
    wanted = list(names)
    options = [part for name in wanted for part in ("-s", name)]
    if "bitfit" in wanted and importlib.util.find_spec("adaptkit_bitfit") is None:
        options += ["--plugin", str(BITFIT)]
    return options


def embedded(setting: Setting) -> list[str]:
    """Return the options of an experiment with the default preset, or of a tiny one."""
    return ["--preset", "quick", "--epochs", "1", "--set", "base.epochs=1"] if setting.quick else []


def experiment(folder: Path, *options: str) -> Sample:
    """Run `adaptkit run` in a folder that contains its cache, and add data about runs and events to the sample.

    `marks` are events in seconds since the start of the process. `base` is `{seconds, cached}`. `runs` has one
    `{strategy, seed, seconds, charged, shifted, clean}` for each run: `seconds` is the elapsed time from its first
    batch to its last epoch; `charged` is the time that adaptkit reports, with the original cost of reused features.
    """
    stamps = folder / "stamps.jsonl"
    stamps.unlink(missing_ok=True)
    command = [sys.executable, "-m", "adaptkit", "run", "--json", "-q", "--plugin", str(STAMPS), *options]
    environment = {"ADAPTKIT_CACHE": str(folder / "cache"), "BENCHMARK_STAMPS": str(stamps)}
    sample, printed = timed(command, folder, environment)
    marks = [json.loads(line) for line in stamps.read_text().splitlines()]
    for mark in marks:
        mark["at"] -= sample["started"]
    document, elapsed = json.loads(printed), _elapsed(marks)
    base = document["base"]
    sample["base"] = {"cached": base["cached"], "seconds": sum(epoch["seconds"] for epoch in base["epochs"])}
    sample["runs"] = [
        {
            "strategy": run["strategy"],
            "seed": run["seed"],
            "seconds": elapsed[run["strategy"], run["seed"]],
            "charged": sum(epoch["seconds"] for epoch in run["epochs"]),
            "shifted": run["metrics"]["final/shifted_accuracy"],
            "clean": run["metrics"]["final/test_accuracy"],
        }
        for run in document["runs"]
    ]
    sample["marks"] = [mark for mark in marks if mark["event"] != "epoch"]
    return sample


def first_batch(sample: Sample, key: str = "at", event: str = "started") -> float:
    """Return the seconds from the start of the process to an event of the first adaptation run."""
    return next(float(mark[key]) for mark in sample["marks"] if (mark["kind"], mark["event"]) == ("adaptation", event))


def runs_alone(sample: Sample) -> float:
    """Return the seconds from the first batch of the first adaptation run to the end of the process."""
    return float(sample["seconds"]) - first_batch(sample)


def total(samples: Sequence[Sample], strategy: str, key: str = "charged") -> list[float]:
    """Return the sum of a value over the runs of a strategy, for each sample."""
    return [sum(run[key] for run in sample["runs"] if run["strategy"] == strategy) for sample in samples]


def _elapsed(marks: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Return the seconds from the first batch to the last epoch of each adaptation run, by strategy and seed."""
    starts: dict[tuple[str, int], float] = {}
    found: dict[tuple[str, int], float] = {}
    for mark in marks:
        if mark["kind"] == "adaptation":
            run = (mark["run"][0], int(mark["run"][1]))
            if mark["event"] == "started":
                starts[run] = mark["at"]
            elif mark["event"] == "epoch":
                found[run] = mark["at"] - starts[run]
    return found
