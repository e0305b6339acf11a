"""Check hundreds of short runs for leaks: python benchmarks/soak.py [--runs 300]

There are three cases: a sweep with this number of trials in one process, half this number of `adaptkit.run` calls in
one process, and a twentieth of this number as separate processes. At intervals, the benchmark records resident memory
(after freed memory was returned to the system), open files, open files of the database, threads, and temporary files.
Growth per run is the slope of a straight line fitted to all samples after the first third.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import described, machine, markdown, timed

TINY = {
    "split.source": 200, "split.pool": 100, "split.test": 100, "shots": 5, "base.epochs": 1, "epochs": 1,
}  # fmt: skip
#: number of samples
SAMPLES = 40
FIGURES = ("memory MB", "open files", "of the database", "threads", "temporary files", "Python objects, thousands")

#: program of the separate process, which executes and monitors runs
WATCHED = """
import ctypes, gc, json, os, sys, tempfile
from pathlib import Path
import psutil
import adaptkit

how, count, every, settings = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
process, done, samples = psutil.Process(), 0, []

def sample():
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    files = [file.path for file in process.open_files()]
    samples.append([
        done, process.memory_info().rss / 1e6, process.num_fds(), sum("mlflow.db" in name for name in files),
        process.num_threads(), len(list(Path(tempfile.gettempdir()).rglob("*"))), len(gc.get_objects()) / 1000,
    ])

class Watch:
    @adaptkit.hookimpl
    def adaptkit_run_ended(self, run, result, model):
        global done
        if run.kind == "adaptation":
            done += 1
            if how == "sweep" and done % every == 0:
                sample()

if how == "run":
    strategies = ("head", "lora")
    for number in range(count):
        adaptkit.run(strategies[number % 2], seeds=[number // 2], settings=settings)
        done = number + 1
        if done % every == 0:
            sample()
else:
    seeds = list(range(count // 2))
    adaptkit.sweep(["head", "lora"], seeds=seeds, settings=settings, plugins=[Watch()])
print(json.dumps(samples))
"""


def soak(how: str, runs: int, samples: int = SAMPLES) -> list[list[float]]:
    """Execute runs in one process with `run` or `sweep`. Return samples; their first value is the number of runs."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "temporary").mkdir()
        command = [sys.executable, "-c", WATCHED, how, str(runs), str(max(1, runs // samples)), json.dumps(TINY)]
        _, printed = timed(command, Path(folder), _environment(folder))
    found: list[list[float]] = json.loads(printed.splitlines()[-1])
    return found


def growth(samples: Sequence[Sequence[float]], figure: int) -> float:
    """Return the growth of a value per run, after the first third of the runs."""
    later = samples[len(samples) // 3 :]
    return statistics.linear_regression([row[0] for row in later], [row[figure] for row in later]).slope


def processes(count: int) -> dict[str, Any]:
    """Execute a run in each of several consecutive processes. Return what remains after each of them."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "temporary").mkdir()
        sets = [word for key, value in TINY.items() if key != "epochs" for word in ("--set", f"{key}={value}")]
        seconds, peaks, left = [], [], []
        for seed in range(count):
            command = [
                sys.executable,
                "-m",
                "adaptkit",
                "run",
                "-s",
                "head",
                "--epochs",
                "1",
                "--seed",
                str(seed),
                *sets,
            ]
            sample, _ = timed(command, Path(folder), _environment(folder))
            seconds.append(sample["seconds"])
            peaks.append(sample["peak_bytes"] / 1e6)
            left.append([
                len(list((Path(folder) / "temporary").rglob("*"))),
                len([path for path in (Path(folder) / "cache").rglob("*") if path.is_file()]),
            ])  # fmt: skip
    return {"seconds": seconds, "peaks": peaks, "left": left}


def _environment(folder: str) -> dict[str, str]:
    return {"ADAPTKIT_CACHE": f"{folder}/cache", "TMPDIR": f"{folder}/temporary", "MLFLOW_DISABLE_TELEMETRY": "true"}


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--only", choices=["run", "sweep", "processes"])
    asked = parser.parse_args()
    before = machine()
    print(f"{described(before)}, load average {before['load']:.1f} before.\n")
    ways = (("run", "`adaptkit.run` in a loop", asked.runs // 2), ("sweep", "one `adaptkit.sweep`", asked.runs))
    for how, title, runs in ways:
        if asked.only not in (None, how):
            continue
        start = time.monotonic()
        samples = soak(how, runs)
        seconds = time.monotonic() - start
        chosen = [samples[0], samples[len(samples) // 3], samples[2 * len(samples) // 3], samples[-1]]
        rows = [
            [name, *(f"{row[place]:.1f}" for row in chosen), f"{growth(samples, place):+.4f}"]
            for place, name in enumerate(FIGURES, start=1)
        ]
        heading = [f"{title}, {seconds:.0f} s", *(f"after {row[0]:.0f} runs" for row in chosen), "growth per run"]
        print(f"{markdown(heading, rows)}\n", flush=True)
    if asked.only in (None, "processes"):
        found = processes(max(2, asked.runs // 20))
        first, last = found["left"][0], found["left"][-1]
        rows = [
            ["seconds", f"{found['seconds'][0]:.1f}", f"{found['seconds'][-1]:.1f}"],
            ["peak memory MB", f"{found['peaks'][0]:.0f}", f"{found['peaks'][-1]:.0f}"],
            ["temporary files left", str(first[0]), str(last[0])],
            ["files in the cache", str(first[1]), str(last[1])],
        ]
        print(markdown([f"{len(found['left'])} processes with one run each", "the first", "the last"], rows))


if __name__ == "__main__":
    main()
