"""Collect the state of a run to resume; for a parent run, the state of all its children."""

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
from adaptkit.names import BASE_FINGERPRINT_TAG, ERROR_TAG, WARNINGS_TAG
from adaptkit.resumption.interrupted import ENDED, InterruptedRun, by_local_id, children, local_id_of, stored_progress
from adaptkit.settings.request import Arm
from adaptkit.tracking.liveness import lives
from adaptkit.tracking.store import errors_as_lines
from adaptkit.tracking.tracker import Resumed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class ResumedGroup:
    """The runs of a command by name: runs to resume with their locked recovery records, and runs that have ended.

    `base_fingerprints` are the fingerprints of the bases that these runs were adapted from.
    """

    resumed: dict[str, Resumed] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    records: dict[str, RecoveryRecord] = field(default_factory=dict)
    done: dict[str, RunSummary] = field(default_factory=dict)
    base_fingerprints: set[str] = field(default_factory=set)

    def require_same(self, interrupted: InterruptedRun, described: RunStart) -> None:
        """Raise BadInput if a plugin has changed the name or a setting of a run since the run started."""
        title = interrupted.stored.title
        if interrupted.record.kind == "adaptation" and described.name != interrupted.record.name:
            raise BadInput(f"{title} cannot be resumed: a plugin now calls it {described.name}")
        if described.name not in self.records:
            return
        before = self.records[described.name].params
        now = {key: str(value) for key, value in described.params.items()}
        if changed := sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key)):
            raise BadInput(f"{title} cannot be resumed: a plugin has changed its settings: {', '.join(changed)}")


def gather(interrupted: InterruptedRun, experiment: Experiment, held: ExitStack) -> ResumedGroup:
    """Return the state of a run, or of all children of a parent run; leaving `held` unlocks their recovery records."""
    group, client = ResumedGroup(), interrupted.stored.runs.reader.client
    with errors_as_lines(interrupted.stored.runs.reader.address):
        if interrupted.record.kind != "comparison":
            if interrupted.stored.record.info.status in ENDED:  # only its refit is missing
                (arm,), (seed,) = experiment.request.arms, experiment.request.settings.seed
                group.done[interrupted.record.name] = _done(interrupted.stored.record, arm, seed)
                group.base_fingerprints.add(interrupted.stored.tags.get(BASE_FINGERPRINT_TAG, ""))
                return group
            _add(
                group=group,
                client=client,
                run=interrupted.stored.record,
                record=interrupted.record,
                lock=interrupted.claim,
            )
            return group
        group.claims[experiment.request.group_name] = interrupted.claim
        arms = {
            f"{arm.label} seed={seed}": (arm, seed)
            for arm, seed in itertools.product(experiment.request.arms, experiment.request.settings.seed)
        }
        for run in children(client, interrupted.stored.record):
            name = str(run.info.run_name)
            if name not in arms or group.done.get(name, NOTHING).status == "finished":
                continue
            if run.info.status in ENDED:
                group.done[name] = _done(run, *arms[name])
                group.base_fingerprints.add(run.data.tags.get(BASE_FINGERPRINT_TAG, ""))
            else:
                _claim(group=group, client=client, run=run, held=held)
        base = ("base", experiment.base_key, interrupted.record.store)
        for record in records():
            if (record.kind, record.base_key, record.store) == base:
                for run in by_local_id(client, [record.local_id]).values():
                    if run.info.status not in ENDED and record.name not in group.resumed:
                        _claim(group=group, client=client, run=run, held=held)
    return group


def _claim(group: ResumedGroup, client: MlflowClient, run: MlflowRun, held: ExitStack) -> None:
    """Add an interrupted run to the group; if it has no recovery record, end it as killed, so that it runs again."""
    record = read_record(local_id_of(run))
    lock = claim(record.local_id) if record is not None else None
    if record is None:
        if run.info.status == "RUNNING" and lives(run.data.tags) is not True:
            client.set_terminated(run.info.run_id, "KILLED")
        return
    if lock is None:
        raise BadInput(f"run {run.info.run_id} ({record.name}) is in use by another process")
    held.callback(lock.release)
    _add(group=group, client=client, run=run, record=record, lock=lock)


def _add(group: ResumedGroup, client: MlflowClient, run: MlflowRun, record: RecoveryRecord, lock: Claim) -> None:
    group.resumed[record.name] = stored_progress(client, run)
    group.claims[record.name] = lock
    group.records[record.name] = record
    group.base_fingerprints.update(filter(None, [record.base_fingerprint]))


def _done(run: MlflowRun, arm: Arm, seed: int) -> RunSummary:
    metrics: Mapping[str, float] = run.data.metrics
    finished = run.info.status == "FINISHED"
    error = None if finished else run.data.tags.get(ERROR_TAG, "it failed before")
    status = "finished" if finished else "failed"
    return RunSummary(
        strategy=arm.strategy,
        label=arm.label,
        options=arm.options,
        lr=arm.lr,
        seed=seed,
        status=status,
        run_id=run.info.run_id,
        metrics=dict(metrics),
        epochs=(),
        error=error,
        warnings=tuple(run.data.tags.get(WARNINGS_TAG, "").splitlines()),
    )


NOTHING = RunSummary(
    strategy="", label="", options={}, lr=0.0, seed=0, status="none", run_id=None, metrics={}, epochs=()
)
