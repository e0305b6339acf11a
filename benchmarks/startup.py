"""Measure start-up: the help page, and the time to the first training batch compared with bare imports."""

from __future__ import annotations

import sys

from experiments import embedded, experiment, first_batch, fresh_folder, strategies
from measuring import Figures, Goal, Sample, Setting, column, interleaved, markdown, ratios, spread, timed

TITLE = "Start-up"
HELP, BARE, TRACKED, UNTRACKED = "adaptkit --help", "torch and MlflowClient imported", "tracked", "--no-track"


def measure(setting: Setting) -> Figures:
    """Fill the cache and store of a folder, then measure in turn after one warm-up round."""
    options = [*embedded(setting), *strategies(["lora"]), "--epochs", "1"]
    with fresh_folder() as folder:
        commands = {
            HELP: [sys.executable, "-m", "adaptkit", "--help"],
            BARE: [sys.executable, "-c", "import torch; from mlflow import MlflowClient"],
        }

        def bare(name: str) -> dict[str, Sample]:
            return {name: timed(commands[name], folder)[0]}

        def run(name: str) -> dict[str, Sample]:
            return {name: experiment(folder, *options, *([UNTRACKED] if name == UNTRACKED else []))}

        cases = {name: lambda name=name: bare(name) for name in (HELP, BARE)}
        cases |= {name: lambda name=name: run(name) for name in (TRACKED, UNTRACKED)}
        interleaved(cases, 1, lambda figures: None)
        return interleaved(cases, setting.repeats, setting.keep)


def tables(figures: Figures) -> str:
    """Return seconds and CPU-seconds of the whole process, or until the first batch."""
    rows = [
        [f"`{HELP}`", spread(column(figures[HELP])), spread(column(figures[HELP], "cpu_seconds")), ""],
        [BARE, spread(column(figures[BARE])), spread(column(figures[BARE], "cpu_seconds")), ""],
    ]
    for event, what in (("started", "about to train the first batch"), ("stepped", "first optimizer step")):
        for name in (TRACKED, UNTRACKED):
            reached = [first_batch(sample, event=event) for sample in figures[name]]
            busy = [first_batch(sample, "cpu_seconds", event) for sample in figures[name]]
            over = ratios(reached, column(figures[BARE]))
            rows.append([f"{what}, {name}", spread(reached), spread(busy), spread(over)])
    return markdown(["from process start; base and features cached", "seconds", "CPU-seconds", "/ bare imports"], rows)


def goals(figures: Figures) -> list[Goal]:
    """Return the goals for the help page and for the first batch."""
    bare = column(figures[BARE])
    return [
        Goal("`adaptkit --help`", column(figures[HELP], "cpu_seconds"), 0.3, " CPU-s"),
        Goal("start to first batch / bare imports", ratios(_first(figures, TRACKED), bare), 1.5),
        Goal("start to first batch / bare imports, untracked", ratios(_first(figures, UNTRACKED), bare), 1.5),
    ]


def _first(figures: Figures, name: str) -> list[float]:
    return [first_batch(sample) for sample in figures[name]]
