"""Time `adaptkit compare` on 200 tracked runs: python benchmarks/compare.py [--repeats 5]

The runs are written into a real SQLite store as adaptkit records them, with 1,500 test images in each of the two test
sets and predictions drawn at random around an accuracy for each arm: once 40 arms of 5 seeds, once 4 arms of 50 seeds.
Each repeat is a process of its own; its start-up (imports, opening the store) is timed apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy

# The records that the tests fabricate.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fabrication import CLASSES, fabricate

IMAGES = 1500
SHAPES = {"40 arms of 5 seeds": (40, 5), "4 arms of 50 seeds": (4, 50)}

MEASURED = """
import json, sys, time, tempfile
from pathlib import Path
marks = [("", time.perf_counter())]
def mark(name): marks.append((name, time.perf_counter()))
import scipy.stats, mlflow, mlflow.artifacts
from adaptkit.cli.results import print_findings
from adaptkit.reports.judgement import judge_runs, require_pairs
from adaptkit.reports.report import write_report
from adaptkit.tracking.reader import open_reader
from rich.console import Console
reader = open_reader(sys.argv[1])
mark("start-up")
runs = reader.read(reader.find([], None, None))
mark("read runs and predictions")
findings = judge_runs(runs)
mark("judge")
print_findings(Console(file=sys.stderr, width=120), findings)
mark("print")
runs = reader.with_curves(runs)
mark("read histories")
with tempfile.TemporaryDirectory() as folder:
    write_report(Path(folder), judge_runs(runs))
mark("draw and write the report (judging once more)")
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


def main() -> None:
    """Print the medians of each phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for name, (arms, seeds) in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            uri = f"sqlite:///{folder}/mlflow.db"
            fill(uri, arms, seeds)
            found: dict[str, list[float]] = {}
            for _ in range(repeats):
                command = [sys.executable, "-c", MEASURED, uri]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                for phase, seconds in json.loads(done.stdout):
                    found.setdefault(phase, []).append(seconds)
        print(f"{name}, median of {repeats} (minimum to maximum), seconds")
        for phase, times in found.items():
            print(f"  {phase:<48} {statistics.median(times):6.2f}  ({min(times):.2f} to {max(times):.2f})")
        compared = ("read runs and predictions", "judge", "print")
        total = [sum(found[phase][index] for phase in compared) for index in range(repeats)]
        print(
            f"  {'compare, after start-up':<48} {statistics.median(total):6.2f}  ({min(total):.2f} to {max(total):.2f})"
        )


if __name__ == "__main__":
    main()
