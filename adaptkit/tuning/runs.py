"""Run the trials of a tuning, then the final runs with the chosen values, which are evaluated on the test sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adaptkit.comparison.records import Metric
from adaptkit.contracts import TrialRunner
from adaptkit.errors import RunFailed
from adaptkit.experiment.outcome import RunSummary
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.tuning_run import ACCURACY, LOSS
from adaptkit.names import FINAL_SHIFTED_ACCURACY, TUNING_TAG, VALIDATION_SCORE
from adaptkit.settings.identity import trial_key
from adaptkit.settings.request import Arm, Request
from adaptkit.settings.spaces import changed
from adaptkit.sweeps.engines.tasks import Task, Tell
from adaptkit.sweeps.outcome import SweepTrial
from adaptkit.tracking.store import Store
from adaptkit.tracking.sweeps import find_trials
from adaptkit.tuning.chosen import EVALUATED, OTHER, with_tuned_labels
from adaptkit.tuning.search import TrialRequest
from adaptkit.tuning.study import StudyTrial

#: indices of the shared inputs of the engine: without and with the test images
WITHOUT_TESTS, WITH_TESTS = 0, 1


@dataclass(frozen=True)
class TuningRuns:
    """Run one tuning on an engine; `tried` is called for each finished trial."""

    experiment: Experiment
    metric: Metric
    base_fingerprint: str
    engine: TrialRunner
    tell: Tell
    tried: Callable[[TrialRequest, StudyTrial], None]
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def trials(
        self, requests: Sequence[TrialRequest], seeds: Sequence[int]
    ) -> Iterator[tuple[TrialRequest, StudyTrial]]:
        """Run trials with all tuning seeds, and yield each trial with its mean score.

        Raises RunFailed for a run that the store did not record. Its trial counts as not run.
        """
        tasks: dict[int, TrialRequest] = {}
        records: dict[int, list[RunSummary]] = {}

        def pending() -> Iterator[Task]:
            for trial_request in requests:
                space, trial = trial_request.space, trial_request.trial
                arm = changed(space.arm, trial.values)
                for seed in seeds:
                    label = f"{arm.rated} trial {trial.number + 1}"
                    task = self._task("tuning", arm, seed, label=label)
                    tasks[task.number] = trial_request
                    yield task

        for ended in self.engine.run(pending(), self.tell):
            trial_request, record = tasks[ended.task.number], ended.record
            if record.status != "finished" and record.run_id is None:
                raise RunFailed(
                    f"{ended.task.label} seed={record.seed}: {record.error}; run the same command again to continue"
                )
            trial_records = records.setdefault(id(trial_request), [])
            trial_records.append(record)
            if len(trial_records) == len(seeds):
                trial = _evaluated(trial_request.trial, trial_records, self.metric)
                self.tried(trial_request, trial)
                yield trial_request, trial

    def finals(self, arms: Sequence[tuple[Arm, str]], seeds: Sequence[int], store: Store) -> Iterator[SweepTrial]:
        """Run each arm with every seed, and yield the runs. Runs that the store already has are yielded first.

        The text of each arm describes how it was tuned, and becomes a tag of its runs.
        """
        wanted = [(arm, line, seed) for seed in seeds for arm, line in arms]
        keys = [self.key(arm, seed) for arm, _, seed in wanted]
        stored = find_trials(store, keys)
        tasks: dict[int, tuple[Arm, int, int]] = {}
        left: list[Task] = []
        for number, ((arm, line, seed), key) in enumerate(zip(wanted, keys, strict=True), start=1):
            earlier = stored.get(key)
            label = arm.rated
            if earlier is not None and earlier.status == "finished" and _line_of(store, earlier.run_id) == line:
                yield _sweep_trial(
                    number,
                    arm,
                    seed=seed,
                    status="found",
                    run_id=earlier.run_id,
                    accuracy=earlier.accuracy,
                    warnings=earlier.warnings,
                )
                continue
            task = self._task("adaptation", arm, seed, label=label, tags={TUNING_TAG: line})
            tasks[task.number] = (arm, seed, number)
            left.append(task)
        for ended in self.engine.run(left, self.tell):
            arm, seed, number = tasks[ended.task.number]
            record = ended.record
            yield _sweep_trial(
                number,
                arm,
                seed=seed,
                status=record.status,
                run_id=record.run_id,
                accuracy=record.metrics.get(FINAL_SHIFTED_ACCURACY),
                error=record.error,
                warnings=record.warnings,
            )

    def key(self, arm: Arm, seed: int) -> str:
        """Return the key that identifies a run with all labelled images in the store."""
        experiment = self.experiment
        params = self._final_request.run_params(arm, seed) | experiment.backbone_facts
        return trial_key(
            "adaptation",
            params,
            data_fingerprint=experiment.domains.fingerprint,
            base_fingerprint=self.base_fingerprint,
        )

    @property
    def _final_request(self) -> Request:
        """Return the request of runs with chosen values, which record on which labels these were chosen."""
        experiment = self.experiment
        return with_tuned_labels(experiment.request, EVALUATED if experiment.domains.is_pool_tested else OTHER)

    def _task(self, kind: str, arm: Arm, seed: int, *, label: str, tags: Mapping[str, str] | None = None) -> Task:
        request = self.experiment.request if kind == "tuning" else self._final_request
        return Task(
            number=next(self._numbers),
            kind=kind,
            stage=WITHOUT_TESTS if kind == "tuning" else WITH_TESTS,
            params=request.config(request.run_params(arm, seed)),
            label=label,
            tags=tags or {},
        )


def _evaluated(trial: StudyTrial, records: Sequence[RunSummary], metric: Metric) -> StudyTrial:
    """Return a trial with the mean score, accuracy and loss of its runs.

    The trial has failed if one of them failed, or if the score of one is not defined.
    """
    ordered = sorted(records, key=lambda record: record.seed)
    runs = tuple(record.run_id for record in ordered if record.run_id is not None)
    reason = next((record.error for record in ordered if record.status != "finished"), None)
    name = f"{VALIDATION_SCORE}{metric.key}"
    if reason is None and any(name not in record.metrics for record in ordered):
        reason = f"{metric.label} is not defined for the held-out images"
    if reason is not None:
        return StudyTrial(trial.number, trial.values, reason=reason, runs=runs)
    score, accuracy, loss = (
        sum(record.metrics[key] for record in ordered) / len(ordered) for key in (name, ACCURACY, LOSS)
    )
    return StudyTrial(trial.number, trial.values, score=score, runs=runs, loss=loss, accuracy=accuracy)


def _sweep_trial(number: int, arm: Arm, **fields: Any) -> SweepTrial:
    label = arm.rated
    return SweepTrial(
        number, label=label, strategy=arm.strategy, values={} if arm.lr is None else {"lr": arm.lr}, **fields
    )


def _line_of(store: Store, run_id: str) -> str | None:
    """Return the tag of a run that describes how its strategy was tuned."""
    line: str | None = store.client.get_run(run_id).data.tags.get(TUNING_TAG)
    return line
