"""Make the runs of a tuning: those of its trials, and those with what was chosen, which the test sets judge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from adaptkit.contracts import TrialRunner
from adaptkit.errors import RunFailed
from adaptkit.experiment.outcome import RunSummary
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.tuning_run import ACCURACY, LOSS
from adaptkit.names import FINAL_SHIFTED_ACCURACY, TUNING_TAG
from adaptkit.settings.identity import trial_key
from adaptkit.settings.request import Arm
from adaptkit.sweeps.engines.tasks import Task, Tell
from adaptkit.sweeps.outcome import SweepTrial
from adaptkit.tracking.store import Store
from adaptkit.tracking.sweeps import find_trials
from adaptkit.tuning.search import TrialRequest
from adaptkit.tuning.spaces import changed
from adaptkit.tuning.study import StudyTrial

#: the engine's stages: without the test images, and with them
BLIND, SEEING = 0, 1


@dataclass(frozen=True)
class TuningRuns:
    """The runs of one tuning on an engine; `told` hears of each trial that is known."""

    experiment: Experiment
    base_fingerprint: str
    engine: TrialRunner
    tell: Tell
    told: Callable[[TrialRequest, StudyTrial], None]
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def trials(self, asked: Sequence[TrialRequest], seeds: Sequence[int]) -> Iterator[tuple[TrialRequest, StudyTrial]]:
        """Run trials, each with every tuning seed, and yield each with its mean when it is known.

        Raises RunFailed for a run that is not on record: its trial counts as not run.
        """
        tasks: dict[int, TrialRequest] = {}
        records: dict[int, list[RunSummary]] = {}

        def given() -> Iterator[Task]:
            for one in asked:
                arm = changed(one.space.arm, one.trial.values)
                for seed in seeds:
                    label = f"{arm.label} lr={arm.lr:g} trial {one.trial.number + 1}"
                    task = self._task("tuning", BLIND, arm, seed, label, {})
                    tasks[task.number] = one
                    yield task

        for ended in self.engine.run(given(), self.tell):
            one, record = tasks[ended.task.number], ended.record
            if record.status != "finished" and record.run_id is None:
                raise RunFailed(f"{ended.task.label} seed={record.seed}: {record.error}; the same command goes on")
            known = records.setdefault(id(one), [])
            known.append(record)
            if len(known) == len(seeds):
                trial = _judged(one.trial, known)
                self.told(one, trial)
                yield one, trial

    def finals(self, arms: Sequence[tuple[Arm, str]], seeds: Sequence[int], store: Store) -> Iterator[SweepTrial]:
        """Run each arm, with its line on how it was tuned, with every seed; yield first those that are there."""
        wanted = [(arm, line, seed) for seed in seeds for arm, line in arms]
        keys = [self.key(arm, seed) for arm, _, seed in wanted]
        found = find_trials(store, keys)
        tasks: dict[int, tuple[Arm, int, int]] = {}
        left: list[Task] = []
        for number, ((arm, line, seed), key) in enumerate(zip(wanted, keys, strict=True), start=1):
            known = found.get(key)
            label = f"{arm.label} lr={arm.lr:g}"
            if known is not None and known.status == "finished" and _line_of(store, known.run_id) == line:
                yield _record(number, arm, seed, "found", run_id=known.run_id, accuracy=known.accuracy)
                continue
            task = self._task("adaptation", SEEING, arm, seed, label, {TUNING_TAG: line})
            tasks[task.number] = (arm, seed, number)
            left.append(task)
        for ended in self.engine.run(left, self.tell):
            arm, seed, number = tasks[ended.task.number]
            made = ended.record
            accuracy = made.metrics.get(FINAL_SHIFTED_ACCURACY)
            yield _record(number, arm, seed, made.status, run_id=made.run_id, accuracy=accuracy, error=made.error)

    def key(self, arm: Arm, seed: int) -> str:
        """Return what a run with all labelled images is known by in the store."""
        experiment = self.experiment
        params = experiment.request.run_params(arm, seed) | experiment.backbone_facts
        return trial_key("adaptation", params, experiment.domains.fingerprint, self.base_fingerprint)

    def _task(self, kind: str, stage: int, arm: Arm, seed: int, label: str, tags: dict[str, str]) -> Task:
        request = self.experiment.request
        params = request.config(request.run_params(arm, seed))
        return Task(next(self._numbers), kind, stage, params, label, tags)


def _judged(trial: StudyTrial, records: Sequence[RunSummary]) -> StudyTrial:
    """Return a trial with the mean of its runs; one of which any failed counts as nothing."""
    ordered = sorted(records, key=lambda record: record.seed)
    runs = tuple(record.run_id for record in ordered if record.run_id is not None)
    reason = next((record.error for record in ordered if record.status != "finished"), None)
    if reason is not None:
        return StudyTrial(trial.number, trial.values, 0.0, reason, runs)
    accuracy, loss = (sum(record.metrics[key] for record in ordered) / len(ordered) for key in (ACCURACY, LOSS))
    return StudyTrial(trial.number, trial.values, accuracy, None, runs, loss)


def _record(number: int, arm: Arm, seed: int, status: str, **found: Any) -> SweepTrial:
    return SweepTrial(number, f"{arm.label} lr={arm.lr:g}", arm.strategy, {"lr": arm.lr}, seed, status, **found)


def _line_of(store: Store, run_id: str) -> str | None:
    """Return how the strategy of a run was tuned."""
    line: str | None = store.client.get_run(run_id).data.tags.get(TUNING_TAG)
    return line
