"""Gather what there is of a run that goes on, and of all runs of its command where it groups others."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adaptkit.errors import BadInput
from adaptkit.events import RunStart
from adaptkit.experiment.outcome import RunSummary
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.recovery import Claim, RecoveryRecord, claim, read_record, records
from adaptkit.names import BASE_FINGERPRINT_TAG, ERROR_TAG
from adaptkit.resumption.interrupted import ENDED, InterruptedRun, by_local_id, children, local_id_of, what_it_has
from adaptkit.settings.request import Arm
from adaptkit.tracking.liveness import lives
from adaptkit.tracking.store import errors_as_lines
from adaptkit.tracking.tracker import Resumed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class ResumedGroup:
    """What there is of the runs of a command, by their names: those that go on, with their folders, and those done.

    `base_fingerprints` are those of the bases that they were made from.
    """

    resumed: dict[str, Resumed] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    records: dict[str, RecoveryRecord] = field(default_factory=dict)
    done: dict[str, RunSummary] = field(default_factory=dict)
    base_fingerprints: set[str] = field(default_factory=set)

    def require_same(self, found: InterruptedRun, described: RunStart) -> None:
        """Raise BadInput for a run that goes on if it would have other settings than it had."""
        if found.record.kind == "adaptation" and described.name != found.record.name:
            raise BadInput(f"{found.stored.title} cannot go on: a plugin calls it {described.name} now")
        if described.name not in self.records:
            return
        was = self.records[described.name].params
        now = {key: str(value) for key, value in described.params.items()}
        if changed := sorted(key for key in now.keys() | was.keys() if now.get(key) != was.get(key)):
            what = ", ".join(changed)
            raise BadInput(f"{found.stored.title} cannot go on: a plugin gives other settings than it did: {what}")


def gather(found: InterruptedRun, experiment: Experiment, held: ExitStack) -> ResumedGroup:
    """Return what there is of a run, or of all runs of its command; `held` lets others have their folders again."""
    begun, client = ResumedGroup(), found.stored.runs.reader.client
    with errors_as_lines(found.stored.runs.reader.address):
        if found.record.kind != "comparison":
            _take(begun, client, found.stored.record, found.record, found.claim)
            return begun
        begun.claims[experiment.request.group_name] = found.claim
        arms = {
            f"{arm.label} seed={seed}": (arm, seed)
            for arm, seed in itertools.product(experiment.request.arms, experiment.request.settings.seed)
        }
        for run in children(client, found.stored.record):
            name = str(run.info.run_name)
            if name not in arms or begun.done.get(name, NOTHING).status == "finished":
                continue
            if run.info.status in ENDED:
                begun.done[name] = _done(run, *arms[name])
                begun.base_fingerprints.add(run.data.tags.get(BASE_FINGERPRINT_TAG, ""))
            else:
                _claim(begun, client, run, held)
        for record in records():
            if record.kind == "base" and (record.base_key, record.store) == (experiment.base_key, found.record.store):
                for run in by_local_id(client, [record.local_id]).values():
                    if run.info.status not in ENDED and record.name not in begun.resumed:
                        _claim(begun, client, run, held)
    return begun


def _claim(begun: ResumedGroup, client: MlflowClient, run: MlflowRun, held: ExitStack) -> None:
    """Take up a run that stopped, if anything is kept of it; else it ends as killed, and another is made for it."""
    record = read_record(local_id_of(run))
    own = claim(record.local_id) if record is not None else None
    if record is None:
        if run.info.status == "RUNNING" and lives(run.data.tags) is not True:
            client.set_terminated(run.info.run_id, "KILLED")
        return
    if own is None:
        raise BadInput(f"run {run.info.run_id} ({record.name}) is being made or resumed by another process")
    held.callback(own.release)
    _take(begun, client, run, record, own)


def _take(begun: ResumedGroup, client: MlflowClient, run: MlflowRun, record: RecoveryRecord, own: Claim) -> None:
    begun.resumed[record.name] = what_it_has(client, run)
    begun.claims[record.name] = own
    begun.records[record.name] = record
    begun.base_fingerprints.update(filter(None, [record.base_fingerprint]))


def _done(run: MlflowRun, arm: Arm, seed: int) -> RunSummary:
    metrics: Mapping[str, float] = run.data.metrics
    finished = run.info.status == "FINISHED"
    error = None if finished else run.data.tags.get(ERROR_TAG, "it failed before")
    status = "finished" if finished else "failed"
    return RunSummary(
        arm.strategy, arm.label, arm.options, arm.lr, seed, status, run.info.run_id, dict(metrics), (), error
    )


NOTHING = RunSummary("", "", {}, 0.0, 0, "none", None, {}, ())
