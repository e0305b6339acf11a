"""Time commands on experiments of 30 and 1,000 runs: python benchmarks/large.py [--repeats 2]

The benchmark writes runs into a real SQLite store, in the same way as a sweep. They have the settings, keys and
fingerprints of real trials, 10 epochs each, and predictions for two test sets of 400 images. Only the base is trained.
Each command is a separate process; the two stores are used in turn.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy
from measuring import Sample, column, described, interleaved, machine, markdown, spread, timed

# Functions of the tests that write records.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

IMAGES, EPOCHS, EXPERIMENT = 400, 10, "large"
SEEDS = "0-4"
#: number of runs -> strategies and learning rates, with five seeds
SIZES = {30: (("head", "lora"), 3), 1000: (("full", "head", "lora", "partial"), 50)}


@dataclass(frozen=True)
class Shop:
    """A store with its runs, a working folder, and a cache for all commands."""

    runs: int
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the commands."""
        return {"ADAPTKIT_CACHE": str(self.folder.parent / "cache"), "MLFLOW_TRACKING_URI": self.uri}

    @property
    def uri(self) -> str:
        """Return the address of the store."""
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def grid(self) -> list[str]:
        """Return the command that would create the missing runs."""
        strategies, rates = SIZES[self.runs]
        named = [word for name in strategies for word in ("-s", name)]
        return ["sweep", *named, "--grid", f"lr=1e-4..1e-2/{rates}log", "--seeds", SEEDS, "--preset", "quick"]

    def adaptkit(self, *arguments: str) -> Sample:
        """Run a command and return its time and memory."""
        command = [sys.executable, "-m", "adaptkit", *arguments]
        return timed(command, self.folder, self.environment)[0]


def fill(shop: Shop) -> float:
    """Record the runs of a sweep and return the seconds."""
    os.environ.update(shop.environment)
    from support.fabrication import CLASSES, fabricate

    from adaptkit.experiment.base_cache import stored_base
    from adaptkit.plugins.loading import load_plugins
    from adaptkit.settings.resolve import Layer
    from adaptkit.sweeps.grid import collect_grid, expand
    from adaptkit.sweeps.planning import prepare_sweep

    strategies, rates = SIZES[shop.runs]
    plugins, problems = load_plugins(()), list[str]()
    layers = [Layer({"strategy": list(strategies), "preset": "quick", "seed": list(range(5))})]
    grid, layers = collect_grid({"lr": f"1e-4..1e-2/{rates}log"}, layers, problems)
    prepared = prepare_sweep(expand(layers, grid, plugins, problems), grid)
    (experiment,) = prepared.experiments
    base = stored_base(experiment.base_key)
    if base is None or len(prepared.trials) != shop.runs:
        sys.exit(f"{len(prepared.trials)} trials, and {'a' if base else 'no'} base")
    truth, start = numpy.arange(IMAGES) % len(CLASSES), time.monotonic()
    for trial in prepared.trials:
        generator = numpy.random.default_rng([trial.number])
        arm = trial.cell.arm
        skill = 0.7 + 0.03 * strategies.index(arm.strategy) + 0.02 * float(numpy.log10(arm.lr))
        params = {key: str(value) for key, value in prepared.params(trial).items()}
        fabricate(
            shop.uri, arm.strategy, trial.seed, numpy.flatnonzero(generator.random(IMAGES) > skill),
            experiment=EXPERIMENT, params=params, truth=truth, arm=arm.label, epochs=EPOCHS,
            metrics={"params/trainable": 1000 + len(arm.strategy), "time/train_seconds": 2 + generator.random()},
            tags={
                "adaptkit.version": "0.1.0",
                "adaptkit.trial_key": prepared.key(trial, base.fingerprint),
                "mlflow.note.content": f"Strategy **{arm.strategy}** adapts a base to shifted images.",
                **{f"adaptkit.{name}_seed": str(trial.number) for name in ("draw", "init", "order")},
            },
        )  # fmt: skip
    return time.monotonic() - start


def measure(shops: list[Shop], repeats: int, only: str) -> dict[str, list[Sample]]:
    """Return the samples of each command on each store, with keys `RUNS COMMAND`."""
    fresh = ["sweep", "-s", "head", "--preset", "quick", "--epochs", "1"]
    there = ["--experiment", EXPERIMENT]
    numbers = itertools.count(int(time.time()))  # use new numbers, even in a folder of an earlier benchmark
    commands = {
        "`doctor`": lambda shop: shop.adaptkit("doctor"),
        "`compare --no-track`": lambda shop: shop.adaptkit("compare", *there, "--no-track"),
        "`compare --no-track --json`": lambda shop: shop.adaptkit("compare", *there, "--no-track", "--json"),
        "`compare --no-track --output DIR`": lambda shop: shop.adaptkit(
            "compare", *there, "--no-track", "--output", f"report{next(numbers)}"
        ),
        "`sweep` of one new trial, in another experiment": lambda shop: shop.adaptkit(
            *fresh, "--experiment", f"empty {next(numbers)}"
        ),
        "`sweep` of one new trial, in the same experiment": lambda shop: shop.adaptkit(
            *fresh, *there, "--lr", f"0.1{next(numbers)}"
        ),
        "`sweep --print-trials`, all trials finished": lambda shop: shop.adaptkit(*shop.grid, *there, "--print-trials"),
        "`sweep` with a report, all trials finished": lambda shop: shop.adaptkit(*shop.grid, *there),
    }
    found: dict[str, list[Sample]] = {}
    for name, command in commands.items():
        if only not in name:
            continue
        cases = {str(shop.runs): partial(_sample, shop, name, command) for shop in shops}
        found |= interleaved(cases, repeats, lambda figures: None)
    return found


def _sample(shop: Shop, name: str, command: Callable[[Shop], Sample]) -> dict[str, Sample]:
    return {f"{shop.runs} {name}": command(shop)}


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", default="", help="part of the names of the commands to time")
    parser.add_argument("--folder", type=Path, help="folder for the stores; existing stores are reused")
    asked = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.folder or Path(temporary)).absolute()
        shops = [Shop(runs, root / str(runs)) for runs in SIZES]
        for shop in shops:
            if not shop.folder.is_dir():
                shop.folder.mkdir(parents=True)
                shop.adaptkit("run", "-s", "head", "--preset", "quick", "--epochs", "1", "--experiment", "base")
                print(f"{shop.runs} runs recorded in {fill(shop):.0f} s", file=sys.stderr)
        found = measure(shops, asked.repeats, asked.only)
    print(f"{described(before)}\n\n{asked.repeats} repeats, load average {before['load']:.1f} before.\n")
    names = list(dict.fromkeys(name.partition(" ")[2] for name in found))
    rows = [
        [
            name,
            *(spread(column(found[f"{runs} {name}"]), 1) for runs in SIZES),
            f"{max(sample['peak_bytes'] for sample in found[f'1000 {name}']) / 1e6:.0f}",
        ]
        for name in names
    ]
    heading = [f"seconds, median (minimum to maximum) of {asked.repeats}", *(f"{runs:,} runs" for runs in SIZES)]
    print(markdown([*heading, "peak MB at 1,000"], rows))


if __name__ == "__main__":
    main()
