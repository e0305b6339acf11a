"""Measure the cost of tracking: a default run with an existing store, tracked and untracked."""

from __future__ import annotations

import json
import sys
from collections import Counter

from experiments import embedded, experiment, fresh_folder, strategies
from measuring import Figures, Goal, Sample, Setting, column, differences, interleaved, markdown, spread, timed

TITLE = "Tracking"
TRACKED, UNTRACKED, WATCHED = "tracked", "--no-track", "calls of MlflowClient"

#: program that runs the command and prints the time of each outermost call of MLflow's client
DRIVER = """
import functools, json, sys, threading, time
from mlflow import MlflowClient
inside, calls = threading.local(), []
def watched(name, call):
    @functools.wraps(call)
    def timed(*arguments, **options):
        if getattr(inside, "call", False):
            return call(*arguments, **options)
        inside.call, start = True, time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            inside.call = False
            calls.append((name, time.perf_counter() - start))
    return timed
for name, call in list(vars(MlflowClient).items()):
    if callable(call) and not name.startswith("_"):
        setattr(MlflowClient, name, watched(name, call))
from adaptkit.cli import main
try:
    main(sys.argv[1:])
finally:  # the command ends with SystemExit
    print(json.dumps(calls))
"""


def measure(setting: Setting) -> Figures:
    """Fill the cache and store of a folder, then run there tracked, untracked and with a timed MLflow client."""
    options = [*embedded(setting), *strategies(["lora"])]
    with fresh_folder() as folder:
        experiment(folder, *options)

        def tracked() -> dict[str, Sample]:
            return {TRACKED: experiment(folder, *options)}

        def untracked() -> dict[str, Sample]:
            return {UNTRACKED: experiment(folder, *options, "--no-track")}

        def watched() -> dict[str, Sample]:
            command = [sys.executable, "-c", DRIVER, "run", "-q", *options]
            sample, printed = timed(command, folder, {"ADAPTKIT_CACHE": str(folder / "cache")})
            return {WATCHED: sample | {"calls": json.loads(printed.splitlines()[-1])}}

        cases = {TRACKED: tracked, UNTRACKED: untracked, WATCHED: watched}
        return interleaved(cases, setting.repeats, setting.keep)


def tables(figures: Figures) -> str:
    """Return tables of whole processes and of the time in each kind of call."""
    rows = [
        [name, spread(column(figures[name])), spread(column(figures[name], "cpu_seconds"))]
        for name in (TRACKED, UNTRACKED)
    ]
    rows.append(
        [
            "difference",
            *(
                spread(differences(column(figures[TRACKED], key), column(figures[UNTRACKED], key)))
                for key in ("seconds", "cpu_seconds")
            ),
        ]
    )
    numbers = Counter(name for name, _ in figures[WATCHED][-1]["calls"])
    calls = [[f"`{name}`", str(count), spread(_inside(figures, name), 3)] for name, count in sorted(numbers.items())]
    calls.append(["those named `log_*`", "", spread(_inside(figures, "log_"), 3)])
    calls.append(["all", str(numbers.total()), spread(_inside(figures, ""), 3)])
    return "\n\n".join(
        [
            markdown(["default run, `-s lora`, all cached", "seconds", "CPU-seconds"], rows),
            markdown(["calls of MLflow's client", "number", "seconds inside"], calls),
        ]
    )


def goals(figures: Figures) -> list[Goal]:
    """Return the goals for the total overhead and for logging calls."""
    return [
        Goal("tracked - untracked", differences(column(figures[TRACKED]), column(figures[UNTRACKED])), 3, " s"),
        Goal("inside logging calls", _inside(figures, "log_"), 0.3, " s"),
    ]


def _inside(figures: Figures, prefix: str) -> list[float]:
    """Return the seconds in calls with this name prefix, for each repeat."""
    return [sum(took for name, took in sample["calls"] if name.startswith(prefix)) for sample in figures[WATCHED]]
