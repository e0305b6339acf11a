"""Plan a sweep before training: check every trial with the real data and model, and estimate the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.experiment.estimate import base_seconds, run_seconds
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.settings.identity import trial_key
from adaptkit.sweeps.engines.tasks import Task
from adaptkit.sweeps.grid import GridCell, stages_of
from adaptkit.sweeps.outcome import SweepPlan, TrialPlan


@dataclass(frozen=True)
class PlannedTrial:
    """One cell of the grid with one seed; `stage` is the index of its data and base in the sweep."""

    number: int
    cell: GridCell
    seed: int
    stage: int

    @property
    def name(self) -> str:
        """Return the name of the run of this trial."""
        return f"{self.cell.label} seed={self.seed}"


@dataclass(frozen=True)
class Prepared:
    """A checked sweep: one experiment for each stage, and the trials in the order in which they run.

    Trials are ordered by seed, so that an interrupted sweep has run all cells on the same images.
    """

    experiments: tuple[Experiment, ...]
    trials: tuple[PlannedTrial, ...]
    grid: Mapping[str, tuple[Any, ...]]

    def params(self, trial: PlannedTrial) -> dict[str, Any]:
        """Return all settings of the run of a trial, including settings that were resolved, such as the device."""
        resolved = self.experiments[trial.stage].request.settings
        request = trial.cell.request.with_settings(
            device=resolved.device,
            precision=resolved.precision,
            split=resolved.split,
            image_size=resolved.image_size,
            protocol=resolved.protocol,
            folds=resolved.folds,
            shots=resolved.shots,
            metric=resolved.metric,
        )
        return request.run_params(trial.cell.arm, trial.seed)

    def key(self, trial: PlannedTrial, base_fingerprint: str) -> str:
        """Return the key that identifies a trial in the store."""
        experiment = self.experiments[trial.stage]
        params = self.params(trial) | experiment.backbone_facts
        return trial_key(
            "adaptation",
            params,
            data_fingerprint=experiment.domains.fingerprint,
            base_fingerprint=base_fingerprint,
        )

    def task(self, trial: PlannedTrial) -> Task:
        """Return a trial as a task for an engine."""
        params = trial.cell.request.config(self.params(trial))
        return Task(number=trial.number, kind="adaptation", stage=trial.stage, params=params, label=trial.cell.label)

    def plan(self, jobs: int, status: Mapping[int, str] | None = None, seconds: float | None = None) -> SweepPlan:
        """Return the plan of the sweep. `status` maps numbers of trials to states; the other trials are left."""
        states = status or {}
        trials = tuple(
            TrialPlan(
                number=trial.number,
                label=trial.cell.label,
                strategy=trial.cell.arm.strategy,
                values=trial.cell.values,
                seed=trial.seed,
                status=states.get(trial.number, "left"),
            )
            for trial in self.trials
        )
        return SweepPlan(
            trials=trials,
            grid=self.grid,
            strategies=tuple(dict.fromkeys(trial.cell.arm.strategy for trial in self.trials)),
            seeds=tuple(dict.fromkeys(trial.seed for trial in self.trials)),
            experiments=tuple(experiment.plan for experiment in self.experiments),
            bases=sum(not experiment.plan.base_cached for experiment in self.experiments),
            jobs=jobs,
            seconds=seconds,
            notices=tuple(dict.fromkeys(line for experiment in self.experiments for line in experiment.plan.notices)),
        )

    def seconds(self, finished: Container[int] = ()) -> float:
        """Estimate the seconds of training and evaluation, one trial after the other, from a few batches.

        One trial of each stage, strategy, number of epochs and number of configurations is measured. Trials with a
        number in `finished` are not counted.
        """
        total = sum(map(base_seconds, self.experiments))
        measured: dict[tuple[int, str, int, int], float] = {}
        for trial in (trial for trial in self.trials if trial.number not in finished):
            arm, settings = trial.cell.arm, trial.cell.request.settings
            epochs, trials = settings.epochs, settings.tuning.trials
            kind = (trial.stage, arm.strategy, epochs, trials)
            if kind not in measured:
                measured[kind] = run_seconds(self.experiments[trial.stage], arm, epochs, trials)
            total += measured[kind]
        return total


def prepare_sweep(
    cells: Sequence[GridCell], grid: Mapping[str, tuple[Any, ...]], *, refresh_base: bool = False
) -> Prepared:
    """Load the data of every stage, and apply the strategy of every cell to the untrained model as a check.

    Raises BadInput if that fails.
    """
    prepared = [(prepare(request, refresh_base=refresh_base), members) for request, members in stages_of(cells)]
    stage_of = {id(cell): number for number, (_, members) in enumerate(prepared) for cell in members}
    experiments = tuple(experiment for experiment, _ in prepared)
    settled = {
        id(cell): dataclasses.replace(cell, request=experiments[stage_of[id(cell)]].settled(cell.request))
        for cell in cells
    }
    trials = (
        PlannedTrial(number, cell=settled[id(cell)], seed=seed, stage=stage_of[id(cell)])
        for number, (seed, cell) in enumerate(_ordered(cells), start=1)
    )
    return Prepared(experiments, tuple(trials), grid)


def _ordered(cells: Sequence[GridCell]) -> Iterator[tuple[int, GridCell]]:
    for seed in dict.fromkeys(seed for cell in cells for seed in cell.request.settings.seed):
        yield from ((seed, cell) for cell in cells)
