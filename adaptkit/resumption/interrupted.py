"""Find interrupted runs that can be resumed, and explain for other runs why they cannot."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptkit.errors import BadInput
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.recovery import (
    CHECKPOINT,
    Claim,
    RecoveryRecord,
    claim,
    file_digest,
    folder_of,
    is_damaged,
    is_held,
    read_record,
    records,
    remove_leftovers,
    versions,
)
from adaptkit.names import (
    COMMAND_TAG,
    COMPARISON_RUN_ID_TAG,
    ERROR_TAG,
    HOST_TAG,
    KIND_TAG,
    LOCAL_ID_TAG,
    PARENT_TAG,
    PID_TAG,
    REFIT_OF_TAG,
    RESUMED_TAG,
    TRAIN_LOSS,
)
from adaptkit.tracking.liveness import lives
from adaptkit.tracking.runs import RunFinder, StoredRun, open_runs
from adaptkit.tracking.search import PAGE, search_runs
from adaptkit.tracking.store import errors_as_lines
from adaptkit.tracking.tracker import Resumed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

#: a metric that is logged in each epoch
EPOCH_METRIC = TRAIN_LOSS


def stored_progress(client: MlflowClient, run: MlflowRun) -> Resumed:
    """Return the number of epochs and the names of the metrics that the store has of a run."""
    run_id = str(run.info.run_id)
    logged = client.get_metric_history(run_id, EPOCH_METRIC) if EPOCH_METRIC in run.data.metrics else ()
    return Resumed(
        run_id=run_id,
        local_id=run.data.tags.get(LOCAL_ID_TAG, ""),
        epochs=max((point.step for point in logged), default=0),
        metrics=frozenset(run.data.metrics),
    )


def by_local_id(client: MlflowClient, local_ids: Sequence[str]) -> dict[str, MlflowRun]:
    """Return the runs of a store with these local ids, by local id."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=PAGE)]
    runs: dict[str, MlflowRun] = {}
    for local_id in local_ids:
        if matching := search_runs(client, experiments, tags={LOCAL_ID_TAG: local_id}):
            runs[local_id] = matching[-1]
    return runs


def children(client: MlflowClient, parent: MlflowRun) -> list[MlflowRun]:
    """Return the children of a parent run, in the order in which they started."""
    return search_runs(client, [parent.info.experiment_id], tags={PARENT_TAG: str(parent.info.run_id)})


def count_again(client: MlflowClient, run_id: str) -> None:
    """Increase the number of times that a run was resumed, and remove its error; do nothing if the store fails."""
    with suppress(Exception):
        tags = client.get_run(run_id).data.tags
        if ERROR_TAG in tags:
            client.delete_tag(run_id, ERROR_TAG)
        before = tags.get(RESUMED_TAG, "0")
        client.set_tag(run_id, RESUMED_TAG, str(int(before) + 1 if before.isdigit() else 1))


#: kinds of runs that have a recovery record
KINDS = ("base", "adaptation", "comparison")
ENDED = ("FINISHED", "FAILED")
RUN_AGAIN = "run the command again"


@dataclass(frozen=True)
class InterruptedRun:
    """A run that can be resumed: its record in the store, and its recovery record on this machine, which is locked."""

    stored: StoredRun
    record: RecoveryRecord
    claim: Claim


def open_stopped(uri: str | None) -> RunFinder:
    """Open a store; raise BadInput with the stores of interrupted runs if it does not exist."""
    try:
        return open_runs(uri)
    except BadInput as error:
        raise BadInput(*(f"{problem}{_hint()}" for problem in error.problems)) from None


def _hint(here: str | None = None) -> str:
    """Return a hint with the other stores that contain interrupted runs of this machine."""
    stores = sorted({record.store for record in records()} - {here})
    return f"; interrupted runs are in {', '.join(stores)}: name the store with --tracking-uri" if stores else ""


def find_resumable(runs: RunFinder, run_id: str) -> InterruptedRun:
    """Return an interrupted run and lock its recovery record; raise BadInput with a hint if it cannot be resumed."""
    run = runs.get(run_id)
    if run is None:
        here = runs.reader.address.without_secrets(runs.reader.address.uri)
        raise BadInput(f"{runs.reader.unknown(run_id)}{_hint(here)}")
    stored = StoredRun(runs, run)
    _require_unfinished(stored)
    local_id = local_id_of(run)
    record = read_record(local_id)
    if record is None and is_damaged(local_id):
        folder = folder_of(local_id)
        raise BadInput(f"{stored.title} cannot be resumed: its checkpoint in {folder} is damaged; {RUN_AGAIN}")
    if record is None:
        raise BadInput(f"{stored.title} cannot be resumed: {_missing_reason(stored)}")
    lock = claim(local_id)
    if lock is None:
        raise BadInput(f"{stored.title} is in use by another process")
    return InterruptedRun(stored, record, lock)


def local_id_of(run: MlflowRun) -> str:
    """Return the local id of a run; its recovery folder has this name."""
    return str(run.data.tags.get(LOCAL_ID_TAG) or run.info.run_id)


def find_all(runs: RunFinder) -> list[str]:
    """Return the ids of the interrupted runs in a store; remove the recovery records of runs that have ended."""
    remove_leftovers()
    with errors_as_lines(runs.reader.address):
        unused = {record.local_id: record for record in records() if not is_held(record.local_id)}
        in_store = by_local_id(runs.reader.client, list(unused))
        for local_id, run in in_store.items():
            if run.info.status in ENDED and not awaits_refit(runs.reader.client, run, unused[local_id]):
                forget(local_id)
        here = runs.reader.address.without_secrets(runs.reader.address.uri)
        for local_id, record in unused.items():
            # The process died before the store had created the run. A checkpoint is never deleted.
            if local_id not in in_store and record.store == here and not (folder_of(local_id) / CHECKPOINT).exists():
                forget(local_id)
        return [run_id for run_id, _ in stopped(runs.reader.client)]


def stopped(client: MlflowClient) -> list[tuple[str, str]]:
    """Return the ids and names of the interrupted runs in a store; a parent run represents its children."""
    unused = {record.local_id: record for record in records() if not is_held(record.local_id)}
    run_ids = {
        local_id: str(run.info.run_id)
        for local_id, run in by_local_id(client, list(unused)).items()
        if (run.info.status not in ENDED and not _is_running(run)) or awaits_refit(client, run, unused[local_id])
    }
    parents_first = sorted(run_ids, key=lambda local_id: unused[local_id].kind != "comparison")
    without_children = [local_id for local_id in parents_first if unused[local_id].parent not in run_ids]
    return [(run_ids[local_id], unused[local_id].name) for local_id in without_children]


def awaits_refit(client: MlflowClient, run: MlflowRun, record: RecoveryRecord) -> bool:
    """Return whether the runs of a command have finished, and the refit that the command was to make has not."""
    if not record.refit or run.info.status != "FINISHED":
        return False
    return not search_runs(client, [run.info.experiment_id], tags=_refit_tags(run), status="FINISHED")


def end_dead_refits(stored: StoredRun) -> None:
    """Mark refits of a comparison, or of its only run, as killed whose process has ended."""
    run, client = stored.record, stored.runs.reader.client
    with errors_as_lines(stored.runs.reader.address):
        for refit in search_runs(client, [run.info.experiment_id], tags=_refit_tags(run), status="RUNNING"):
            if lives(refit.data.tags) is False:
                client.set_terminated(refit.info.run_id, "KILLED")


def _refit_tags(run: MlflowRun) -> dict[str, str]:
    of = REFIT_OF_TAG if run.data.tags.get(KIND_TAG) == "adaptation" else COMPARISON_RUN_ID_TAG
    return {KIND_TAG: "final", of: str(run.info.run_id)}


def forget(local_id: str) -> None:
    """Remove the recovery record of a run unless a process uses it."""
    lock = claim(local_id)
    if lock is not None:
        lock.discard()


def require_unchanged(run: InterruptedRun) -> None:
    """Raise BadInput if a plugin file was changed or removed since the run started."""
    problems = []
    for path, digest in run.record.plugin_files.items():
        try:
            now: str | None = file_digest(path)
        except OSError:
            now = None
        if now != digest:
            what = "was removed" if now is None else "was changed since the run started"
            problems.append(f"{run.stored.title} cannot be resumed: the plugin {path} {what}; restore it")
    if problems:
        raise BadInput(*problems)


def require_same_start(run: InterruptedRun, experiment: Experiment) -> None:
    """Raise BadInput if the data or the base have changed since the run started."""
    record, problems = run.record, []
    if experiment.domains.fingerprint != record.data_fingerprint:
        problems.append("its images have changed since it started")
    if experiment.base_key != record.base_key:
        versions_changed = changed_versions(record)
        why = f" ({versions_changed})" if versions_changed else ""
        problems.append(f"it needs another base now: the backbone, its training or its data changed{why}")
    if problems:
        raise BadInput(*(f"{run.stored.title} cannot be resumed: {problem}" for problem in problems))


def changed_versions(record: RecoveryRecord) -> str:
    """Return a text with the changed versions of libraries that influence results; empty if none has changed."""
    now = versions()
    changed = {name: was for name, was in record.versions.items() if now.get(name) != was}
    return ", ".join(f"{name} was {was} and is {now.get(name, 'not installed')}" for name, was in changed.items())


def _require_unfinished(stored: StoredRun) -> None:
    """Raise BadInput if a run has ended, is still running, or must be continued with another command."""
    info, tags = stored.record.info, stored.tags
    if info.lifecycle_stage == "deleted":
        raise BadInput(f"{stored.title} was deleted; `mlflow runs restore --run-id {stored.run_id}` brings it back")
    parent = stored.runs.get(tags[PARENT_TAG]) if PARENT_TAG in tags else None
    for run, what in ((stored.record, "is a sweep or a tuning"), (parent, "belongs to a sweep or a tuning")):
        if run is not None and run.data.tags.get(KIND_TAG) == "sweep":
            command = run.data.tags.get(COMMAND_TAG, "adaptkit sweep")
            raise BadInput(f"{stored.title} {what}: run the same command again to continue: {command}")
    if stored.kind not in KINDS:
        what = f"is of kind {stored.kind}" if stored.kind else "was not made by adaptkit"
        raise BadInput(f"{stored.title} {what} and cannot be resumed")
    if info.status in ENDED:
        record = read_record(local_id_of(stored.record))
        if record is not None and awaits_refit(stored.runs.reader.client, stored.record, record):
            return
        if record is not None:
            forget(local_id_of(stored.record))  # the process died just before it could remove the record
        reason = f": {tags[ERROR_TAG]}" if ERROR_TAG in tags else ""
        done = {"FINISHED": "is finished: there is nothing to resume", "FAILED": f"failed{reason}; {RUN_AGAIN}"}
        raise BadInput(f"{stored.title} {done[info.status]}")
    if _is_running(stored.record):
        raise BadInput(f"{stored.title} is running in process {tags.get(PID_TAG)} on this machine")


def _is_running(run: MlflowRun) -> bool:
    """Return whether the process of a run exists on this machine."""
    return run.info.status == "RUNNING" and lives(run.data.tags) is True


def _missing_reason(stored: StoredRun) -> str:
    host = stored.tags.get(HOST_TAG, "?")
    if host != socket.gethostname():
        return f"it started on {host}, and its checkpoint is there"
    return f"this machine has no checkpoint of it; {RUN_AGAIN}"
