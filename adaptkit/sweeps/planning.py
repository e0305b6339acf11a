"""Check every trial of a sweep against real data and a real model, and say what it will take, before anything runs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import BadInput
from adaptkit.experiment.estimate import base_seconds, run_seconds
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.settings.identity import trial_key
from adaptkit.sweeps.engines.tasks import Task
from adaptkit.sweeps.grid import GridCell, stages_of
from adaptkit.sweeps.outcome import SweepPlan, TrialPlan


@dataclass(frozen=True)
class PlannedTrial:
    """One cell with one seed; `stage` counts the stages of its sweep."""

    number: int
    cell: GridCell
    seed: int
    stage: int

    @property
    def name(self) -> str:
        """Return the name that its run will have."""
        return f"{self.cell.label} seed={self.seed}"


@dataclass(frozen=True)
class Prepared:
    """A checked sweep: an experiment for each stage, and the trials in the order in which they run.

    Seed by seed: a sweep that is cut short has still run its cells on the same images.
    """

    experiments: tuple[Experiment, ...]
    trials: tuple[PlannedTrial, ...]
    grid: Mapping[str, tuple[Any, ...]]

    def params(self, trial: PlannedTrial) -> dict[str, Any]:
        """Return every setting of a trial's run, as its stage's experiment found them."""
        found = self.experiments[trial.stage].request.settings
        request = trial.cell.request.with_settings(
            device=found.device, precision=found.precision, split=found.split, image_size=found.image_size
        )
        return request.run_params(trial.cell.arm, trial.seed)

    def key(self, trial: PlannedTrial, base_fingerprint: str) -> str:
        """Return what a trial is known by in the store."""
        experiment = self.experiments[trial.stage]
        params = self.params(trial) | experiment.backbone_facts
        return trial_key("adaptation", params, experiment.domains.fingerprint, base_fingerprint)

    def task(self, trial: PlannedTrial) -> Task:
        """Return a trial as it travels to whoever runs it."""
        params = trial.cell.request.config(self.params(trial))
        return Task(trial.number, "adaptation", trial.stage, params, trial.cell.label)

    def plan(self, jobs: int, status: Mapping[int, str] | None = None, seconds: float | None = None) -> SweepPlan:
        """Return what will be done; `status` are the states of trials, by their numbers, that are not left."""
        known = status or {}
        trials = tuple(
            TrialPlan(
                trial.number,
                trial.cell.label,
                trial.cell.arm.strategy,
                trial.cell.values,
                trial.seed,
                known.get(trial.number, "left"),
            )
            for trial in self.trials
        )
        return SweepPlan(
            trials=trials,
            grid=self.grid,
            strategies=tuple(dict.fromkeys(trial.cell.arm.strategy for trial in self.trials)),
            seeds=tuple(dict.fromkeys(trial.seed for trial in self.trials)),
            bases=sum(not experiment.plan.base_cached for experiment in self.experiments),
            jobs=jobs,
            seconds=seconds,
            notices=tuple(dict.fromkeys(line for experiment in self.experiments for line in experiment.plan.notices)),
        )

    def seconds(self, known: Container[int] = ()) -> float:
        """Return the seconds that training and evaluation will take one after the other, as a few batches say.

        Of each stage and strategy one trial is tried; those with a known number take none.
        """
        total = sum(map(base_seconds, self.experiments))
        tried: dict[tuple[int, str, int], float] = {}
        for trial in (trial for trial in self.trials if trial.number not in known):
            arm, epochs = trial.cell.arm, trial.cell.request.settings.epochs
            kind = (trial.stage, arm.strategy, epochs)
            if kind not in tried:
                tried[kind] = run_seconds(self.experiments[trial.stage], arm, epochs)
            total += tried[kind]
        return total


def prepare_sweep(
    cells: Sequence[GridCell], grid: Mapping[str, tuple[Any, ...]], *, refresh_base: bool = False
) -> Prepared:
    """Load the data of every stage and try every cell's strategy on the untrained model; raise BadInput."""
    found = [(prepare(request, refresh_base=refresh_base), members) for request, members in stages_of(cells)]
    if "shots" in grid:
        _require_different_draws([experiment for experiment, _ in found])
    stage_of = {id(cell): number for number, (_, members) in enumerate(found) for cell in members}
    trials = (
        PlannedTrial(number, cell, seed, stage_of[id(cell)])
        for number, (seed, cell) in enumerate(_ordered(cells), start=1)
    )
    return Prepared(tuple(experiment for experiment, _ in found), tuple(trials), grid)


def _require_different_draws(experiments: Sequence[Experiment]) -> None:
    """Raise BadInput for numbers of shots above half of the pool: their trials would be those of a smaller number."""
    problems = []
    for experiment in experiments:
        plan = experiment.plan
        same = [other for other in experiments if other.plan.pool_images == plan.pool_images]
        fewer = [other.plan.shots for other in same if other.plan.drawn_images == plan.drawn_images]
        if plan.drawn_images < plan.shots * len(plan.classes) and min(fewer) < plan.shots:
            problems.append(
                f"grid shots: {plan.shots} draws the same {plan.drawn_images:,} images as {min(fewer)}, since a run "
                f"draws at most half of the pool of {plan.pool_images:,}: leave it out, or raise split.pool"
            )
    if problems:
        raise BadInput(*dict.fromkeys(problems))


def _ordered(cells: Sequence[GridCell]) -> Iterator[tuple[int, GridCell]]:
    for seed in dict.fromkeys(seed for cell in cells for seed in cell.request.settings.seed):
        yield from ((seed, cell) for cell in cells)
