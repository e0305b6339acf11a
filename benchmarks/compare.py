"""Time `adaptkit compare` on 200 tracked runs: python benchmarks/compare.py [--repeats 5]

The benchmark writes runs into a real SQLite store, in the same way as adaptkit. Each run has two test sets of 1,500
images and random predictions with an accuracy that depends on the arm. There are two cases: 40 arms of 5 seeds, and
4 arms of 50 seeds. Each repeat is a separate process. Start-up (imports, opening the store) is measured separately.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy
from measuring import markdown, spread, timed

# Functions of the tests that write records.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fabrication import CLASSES, fabricate

IMAGES = 1500
SHAPES = {"40 arms of 5 seeds": (40, 5), "4 arms of 50 seeds": (4, 50)}

MEASURED = """
import json, sys, time, tempfile
from pathlib import Path
marks = [("", time.perf_counter())]
def mark(name): marks.append((name, time.perf_counter()))
import scipy.stats, mlflow, mlflow.artifacts
from adaptkit.cli.views.results import print_findings
from adaptkit.comparison.judge import judge_runs, require_pairs
from adaptkit.reports.report import write_report
from adaptkit.tracking.reader import open_reader
from rich.console import Console
reader = open_reader(sys.argv[1])
mark("start-up: imports, opening the store")
runs = reader.read(reader.find([], None, None))
mark("read runs and predictions")
findings = judge_runs(runs)
mark("compare pairs")
print_findings(Console(file=sys.stderr, width=120), findings)
mark("print")
runs = reader.with_curves(runs)
mark("for the report: read histories")
with tempfile.TemporaryDirectory() as folder:
    write_report(Path(folder), judge_runs(runs))
mark("for the report: draw and write it")
print(json.dumps([(name, then - before) for (_, before), (name, then) in zip(marks, marks[1:])]))
"""


def fill(uri: str, arms: int, seeds: int) -> None:
    """Record the runs."""
    truth = numpy.arange(IMAGES) % len(CLASSES)
    for arm in range(arms):
        for seed in range(seeds):
            generator = numpy.random.default_rng([arm, seed])
            wrong = numpy.flatnonzero(generator.random(IMAGES) > 0.7 + 0.2 * arm / arms)
            rank = str(2 ** (arm // 4))
            fabricate(
                uri, f"strategy {arm % 4}", seed, wrong, options={"rank": rank}, truth=truth,
                metrics={"params/trainable": 1000 + arm, "time/train_seconds": 2 + generator.random()},
            )  # fmt: skip


def measure(arms: int, seeds: int, repeats: int) -> dict[str, list[float]]:
    """Record the runs and return the seconds of each phase of their comparison."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        fill(uri, arms, seeds)
        for _ in range(repeats):
            _, printed = timed([sys.executable, "-c", MEASURED, uri], Path(folder))
            for phase, seconds in json.loads(printed):
                found.setdefault(phase, []).append(seconds)
    compared = [found[phase] for phase in ("read runs and predictions", "compare pairs", "print")]
    return found | {"**compare, after start-up**": [sum(parts) for parts in zip(*compared, strict=True)]}


def main() -> None:
    """Print the median of each phase as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    found = {name: measure(arms, seeds, repeats) for name, (arms, seeds) in SHAPES.items()}
    phases = next(iter(found.values()))
    rows = [[phase, *(spread(figures[phase]) for figures in found.values())] for phase in phases]
    print(markdown([f"seconds, median (minimum to maximum) of {repeats}", *found], rows))


if __name__ == "__main__":
    main()
