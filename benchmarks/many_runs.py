"""Compare experiments of many runs with five `full` runs on the plain path, with the default preset."""

from __future__ import annotations

from experiments import PLAIN, embedded, experiment, fresh_folder, runs_alone, strategies, total
from measuring import Figures, Goal, Sample, Setting, column, differences, interleaved, markdown, ratios, spread

TITLE = "Five seeds of each strategy, default preset"
FIVE, FIFTEEN, TWENTY = "5 runs: full, plain path", "15 runs: full, head, lora", "20 runs: and bitfit"
CASES = {FIVE: ("full",), FIFTEEN: ("full", "head", "lora"), TWENTY: ("full", "head", "lora", "bitfit")}


def measure(setting: Setting) -> Figures:
    """Run the three experiments in turn, each in an empty folder."""

    def case(name: str) -> dict[str, Sample]:
        options = [*embedded(setting), "--seeds", "0-1" if setting.quick else "0-4", *strategies(CASES[name])]
        with fresh_folder() as folder:
            return {name: experiment(folder, *options, *([PLAIN] if name == FIVE else []))}

    return interleaved({name: lambda name=name: case(name) for name in CASES}, setting.repeats, setting.keep)


def tables(figures: Figures) -> str:
    """Return tables of whole experiments and of runs alone, then of the elapsed time of each strategy."""
    rows = []
    for name, samples in figures.items():
        alone = [runs_alone(sample) for sample in samples]
        base = ratios(column(samples), column(figures[FIVE])), ratios(alone, _alone(figures, FIVE))
        rows.append([name, spread(column(samples), 1), spread(base[0]), spread(alone, 1), spread(base[1])])
    strategy_rows = [
        [
            f"{strategy} ({name})",
            spread(total(samples, strategy, "seconds"), 1),
            spread(total(samples, strategy), 1),
        ]
        for name, samples in figures.items()
        for strategy in CASES[name]
    ]
    return "\n\n".join(
        [
            markdown(
                ["experiment", "whole process, seconds", "/ 5 full", "without start-up and base, seconds", "/ 5 full"],
                rows,
            ),
            markdown(["epochs of all runs of", "seconds by the clock", "seconds charged"], strategy_rows),
        ]
    )


def goals(figures: Figures) -> list[Goal]:
    """Return the goals for fifteen runs and for adding bitfit, as whole processes and as runs alone."""
    five, fifteen, twenty = (column(figures[name]) for name in (FIVE, FIFTEEN, TWENTY))
    alone, fifteen_alone, twenty_alone = (_alone(figures, name) for name in (FIVE, FIFTEEN, TWENTY))
    runs = "without start-up and base"
    return [
        Goal("15 runs / 5 full on the plain path", ratios(fifteen, five), 1.6),
        Goal(f"15 runs / 5 full on the plain path, {runs}", ratios(fifteen_alone, alone), 1.6),
        Goal("what bitfit adds / 5 full on the plain path", ratios(differences(twenty, fifteen), five), 1.0),
        Goal(
            f"what bitfit adds / 5 full on the plain path, {runs}",
            ratios(differences(twenty_alone, fifteen_alone), alone),
            1.0,
        ),
    ]


def _alone(figures: Figures, name: str) -> list[float]:
    return [runs_alone(sample) for sample in figures[name]]
