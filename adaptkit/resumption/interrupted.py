"""Find the runs that can go on, and say of any other why it cannot."""

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
    ERROR_TAG,
    HOST_TAG,
    KIND_TAG,
    LOCAL_ID_TAG,
    PARENT_TAG,
    PID_TAG,
    RESUMED_TAG,
    TRAIN_LOSS,
)
from adaptkit.tracking.liveness import lives
from adaptkit.tracking.runs import RunFinder, StoredRun, open_runs
from adaptkit.tracking.store import errors_as_lines
from adaptkit.tracking.tracker import Resumed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

#: a metric that each epoch has
OF_EVERY_EPOCH = TRAIN_LOSS
PAGE = 1000


def what_it_has(client: MlflowClient, run: MlflowRun) -> Resumed:
    """Return how many epochs of a run a store has, and which metrics: it goes on after them."""
    run_id = str(run.info.run_id)
    logged = client.get_metric_history(run_id, OF_EVERY_EPOCH) if OF_EVERY_EPOCH in run.data.metrics else ()
    local_id = run.data.tags.get(LOCAL_ID_TAG, "")
    return Resumed(run_id, local_id, max((point.step for point in logged), default=0), frozenset(run.data.metrics))


def by_local_id(client: MlflowClient, local_ids: Sequence[str]) -> dict[str, MlflowRun]:
    """Return the runs of a store that have these local ids."""

    experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=PAGE)]
    found: dict[str, MlflowRun] = {}
    for local_id in local_ids:
        runs = client.search_runs(experiments, f"tags.`{LOCAL_ID_TAG}` = '{local_id}'", max_results=1)
        if runs:
            found[local_id] = runs[0]
    return found


def children(client: MlflowClient, parent: MlflowRun) -> list[MlflowRun]:
    """Return the runs that a run groups, the latest begun last."""
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    found: list[MlflowRun] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [parent.info.experiment_id],
            condition,
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found.extend(page)
        token = page.token
        if not token:
            return found


def count_again(client: MlflowClient, run_id: str) -> None:
    """Note that a run was taken up again, and forget why it had ended, if the store takes that now."""
    with suppress(Exception):
        tags = client.get_run(run_id).data.tags
        if ERROR_TAG in tags:
            client.delete_tag(run_id, ERROR_TAG)
        before = tags.get(RESUMED_TAG, "0")
        client.set_tag(run_id, RESUMED_TAG, str(int(before) + 1 if before.isdigit() else 1))


#: kinds of runs of which something is kept
KINDS = ("base", "adaptation", "comparison")
ENDED = ("FINISHED", "FAILED")


@dataclass(frozen=True)
class InterruptedRun:
    """A run that can go on: what a store has of it, and what is kept of it here, which nobody else may use now."""

    stored: StoredRun
    record: RecoveryRecord
    claim: Claim


def open_stopped(uri: str | None) -> RunFinder:
    """Open the store that is meant; raise BadInput, with where stopped runs are, when there is none."""
    try:
        return open_runs(uri)
    except BadInput as error:
        raise BadInput(*(f"{problem}{_hint()}" for problem in error.problems)) from None


def _hint(here: str | None = None) -> str:
    """Return in which other stores the runs are of which something is kept."""
    stores = sorted({record.store for record in records()} - {here})
    return f"; what is kept here is of runs in {', '.join(stores)}: name it with --tracking-uri" if stores else ""


def find_resumable(runs: RunFinder, run_id: str) -> InterruptedRun:
    """Return a run that can go on, and claim it; raise BadInput, with what else can be done, for any other."""
    found = runs.get(run_id)
    if found is None:
        here = runs.reader.address.without_secrets(runs.reader.address.uri)
        raise BadInput(f"there is no run {run_id!r} in {runs.reader.address.shown}{_hint(here)}")
    stored = StoredRun(runs, found)
    _require_unfinished(stored)
    local_id = local_id_of(found)
    record = read_record(local_id)
    if record is None and is_damaged(local_id):
        kept = f"what is kept of it in {folder_of(local_id)} is damaged"
        raise BadInput(f"{stored.title} cannot be resumed: {kept}; remove that folder and run it anew")
    if record is None:
        raise BadInput(f"{stored.title} cannot be resumed: {_why_nothing(stored)}")
    held = claim(local_id)
    if held is None:
        raise BadInput(f"{stored.title} is being made or resumed by another process")
    return InterruptedRun(stored, record, held)


def local_id_of(run: MlflowRun) -> str:
    """Return what a run's folder is called."""
    return str(run.data.tags.get(LOCAL_ID_TAG) or run.info.run_id)


def find_all(runs: RunFinder) -> list[str]:
    """Return the ids of the runs in a store that stopped and can go on here; forget those that ended meanwhile."""
    remove_leftovers()
    with errors_as_lines(runs.reader.address):
        kept = {record.local_id: record for record in records() if not is_held(record.local_id)}
        found = by_local_id(runs.reader.client, list(kept))
        for local_id, run in found.items():
            if run.info.status in ENDED:
                forget(local_id)
        here = runs.reader.address.without_secrets(runs.reader.address.uri)
        for local_id, record in kept.items():
            # Its process died before the store had anything of it; what was trained since is kept, come what may.
            if local_id not in found and record.store == here and not (folder_of(local_id) / CHECKPOINT).exists():
                forget(local_id)
        return [run_id for run_id, _ in stopped(runs.reader.client)]


def stopped(client: MlflowClient) -> list[tuple[str, str]]:
    """Return the ids and names of the runs in a store that stopped and can go on here.

    A run that groups others stands for those of them that stopped.
    """
    kept = {record.local_id: record for record in records() if not is_held(record.local_id)}
    found = {
        local_id: str(run.info.run_id)
        for local_id, run in by_local_id(client, list(kept)).items()
        if run.info.status not in ENDED and not _is_made(run)
    }
    groups_first = sorted(found, key=lambda local_id: kept[local_id].kind != "comparison")
    alone = [local_id for local_id in groups_first if kept[local_id].parent not in found]
    return [(found[local_id], kept[local_id].name) for local_id in alone]


def forget(local_id: str) -> None:
    """Remove what is kept of a run unless a process uses it."""
    held = claim(local_id)
    if held is not None:
        held.discard()


def require_unchanged(found: InterruptedRun) -> None:
    """Raise BadInput for plugins' files that are not what they were when the run began."""
    problems = []
    for path, digest in found.record.plugin_files.items():
        try:
            now: str | None = file_digest(path)
        except OSError:
            now = None
        if now != digest:
            what = "is gone" if now is None else "was changed since the run began"
            problems.append(f"{found.stored.title} cannot go on: the plugin {path} {what}: put it back as it was")
    if problems:
        raise BadInput(*problems)


def require_same_start(found: InterruptedRun, experiment: Experiment) -> None:
    """Raise BadInput if data or base are not what they were when the run began."""
    record, problems = found.record, []
    if experiment.domains.fingerprint != record.data_fingerprint:
        problems.append("its images are no longer what they were, and no run goes on with others")
    if experiment.base_key != record.base_key:
        told = changed_versions(record)
        why = f" ({told})" if told else ""
        problems.append(f"its base would be another one: the backbone, its training or its data changed{why}")
    if problems:
        raise BadInput(*(f"{found.stored.title} cannot go on: {problem}" for problem in problems))


def changed_versions(record: RecoveryRecord) -> str:
    """Return which versions, of what decides the last digits, are not what they were; nothing if none."""
    now = versions()
    changed = {name: was for name, was in record.versions.items() if now.get(name) != was}
    return ", ".join(f"{name} was {was} and is {now.get(name, 'not there')}" for name, was in changed.items())


def _require_unfinished(stored: StoredRun) -> None:
    """Raise BadInput for a run of which nothing is left to do, or that another command goes on with."""
    info, tags = stored.record.info, stored.tags
    if info.lifecycle_stage == "deleted":
        raise BadInput(f"{stored.title} was deleted; `mlflow runs restore --run-id {stored.run_id}` brings it back")
    parent = stored.runs.get(tags[PARENT_TAG]) if PARENT_TAG in tags else None
    for run, what in ((stored.record, "groups others"), (parent, "is one of a sweep's or a tuning's")):
        if run is not None and run.data.tags.get(KIND_TAG) == "sweep":
            command = run.data.tags.get(COMMAND_TAG, "adaptkit sweep")
            raise BadInput(f"{stored.title} {what}: typed again, the same command goes on: {command}")
    if stored.kind not in KINDS:
        raise BadInput(f"{stored.title} is {f'of kind {stored.kind}' if stored.kind else 'not a run of adaptkit'}")
    if info.status in ENDED:
        if read_record(local_id_of(stored.record)) is not None:
            forget(local_id_of(stored.record))  # its process died just before it would have done so
        reason = f": {tags[ERROR_TAG]}" if ERROR_TAG in tags else ""
        done = {"FINISHED": "is finished: there is nothing to resume", "FAILED": f"failed{reason}; run it anew"}
        raise BadInput(f"{stored.title} {done[info.status]}")
    if _is_made(stored.record):
        raise BadInput(f"{stored.title} is being made by process {tags.get(PID_TAG)} on this machine")


def _is_made(run: MlflowRun) -> bool:
    """Tell whether a process that can be seen is making a run; one that was interrupted may be this one's."""
    return run.info.status == "RUNNING" and lives(run.data.tags) is True


def _why_nothing(stored: StoredRun) -> str:
    host = stored.tags.get(HOST_TAG, "?")
    if host != socket.gethostname():
        return f"it was begun on {host}, and what is kept of it is there"
    return "nothing is kept of it on this machine; run it anew"
