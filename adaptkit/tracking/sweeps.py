"""Read and write sweeps in MLflow: the run that groups the trials, and the trials of earlier starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from adaptkit.errors import BadInput
from adaptkit.names import (
    ERROR_TAG,
    FINAL_SHIFTED_ACCURACY,
    KIND_TAG,
    PARENT_TAG,
    SWEEP_KEY_TAG,
    TRIAL_KEY_TAG,
    WARNINGS_TAG,
)
from adaptkit.tracking.parent import ParentRun, open_parent
from adaptkit.tracking.search import search_runs
from adaptkit.tracking.store import Store

#: maximum number of trials to search one by one; for more trials, reading all runs of the experiment is faster
FEW = 50


@dataclass(frozen=True)
class StoredTrial:
    """A trial in the store: its latest finished run, or else its latest failed run with the `error`."""

    run_id: str
    status: str
    accuracy: float | None
    error: str | None
    warnings: tuple[str, ...] = ()


@contextmanager
def open_sweep(
    store: Store, key: str, name: str, params: Mapping[str, object], tags: Mapping[str, str] | None = None
) -> Iterator[ParentRun]:
    """Open the run that groups the trials of a sweep, for the duration of a block.

    If an earlier start of the same sweep created the run, it is reopened, and its trials that still count as running
    are marked as killed. Raises TrackingLost if the store fails.
    """
    earlier = search_runs(store.client, [store.experiment_id], tags={SWEEP_KEY_TAG: key})
    run_id = str(earlier[-1].info.run_id) if earlier else None
    if run_id is not None:
        end_dead(store, run_id)
        params = {}  # MLflow does not accept other values for params that a run already has
    tags = {SWEEP_KEY_TAG: key, **(tags or {})}
    with open_parent(store, name, kind="sweep", params=params, tags=tags, run_id=run_id) as parent:
        yield parent


def end_dead(store: Store, parent: str, key: str | None = None) -> None:
    """Mark trials of this parent that still count as running as killed; with a `key`, only those of one trial."""
    tags = {PARENT_TAG: parent} | ({} if key is None else {TRIAL_KEY_TAG: key})
    for run in search_runs(store.client, [store.experiment_id], tags=tags, status="RUNNING"):
        store.client.set_terminated(run.info.run_id, "KILLED")


def fail_dead(store: Store, parent: str, key: str, reason: str) -> None:
    """Mark the run of a trial as failed after its process died; do nothing if the trial has no such run."""
    tags = {PARENT_TAG: parent, TRIAL_KEY_TAG: key}
    for run in search_runs(store.client, [store.experiment_id], tags=tags, status="RUNNING"):
        store.client.set_tag(run.info.run_id, ERROR_TAG, reason)
        store.client.set_terminated(run.info.run_id, "FAILED")


def finished_run(store: Store, parent: str, key: str) -> tuple[str, dict[str, float]] | None:
    """Return the id and the metrics of a finished run of this parent and trial; None if there is none."""
    tags = {PARENT_TAG: parent, TRIAL_KEY_TAG: key}
    for run in search_runs(store.client, [store.experiment_id], tags=tags, status="FINISHED"):
        return str(run.info.run_id), dict(run.data.metrics)
    return None


def require_parent(store: Store, parent: str) -> None:
    """Raise BadInput if the store does not contain the parent run.

    On another machine, the same path can be the path of another database.
    """
    from mlflow.exceptions import MlflowException

    try:
        experiment_id = store.client.get_run(parent).info.experiment_id
    except MlflowException:
        experiment_id = None
    if experiment_id != store.experiment_id:
        shown = store.without_secrets(store.uri)
        raise BadInput(f"{shown} is another store than that of the sweep; share its folder, or use an MLflow server")


def find_trials(store: Store, keys: Iterable[str], kind: str = "adaptation") -> dict[str, StoredTrial]:
    """Return the trials of the experiment that have one of these keys, run by any command."""
    requested = set(keys)
    searches = [{TRIAL_KEY_TAG: key} for key in requested] if len(requested) <= FEW else [{}]
    trials: dict[str, StoredTrial] = {}
    for tags in searches:
        for run in search_runs(store.client, [store.experiment_id], tags={KIND_TAG: kind, **tags}):
            key = run.data.tags.get(TRIAL_KEY_TAG, "")
            status = {"FINISHED": "finished", "FAILED": "failed"}.get(run.info.status)
            if key not in requested or status is None or (status == "failed" and key in trials):
                continue
            trials[key] = StoredTrial(
                run_id=run.info.run_id,
                status=status,
                accuracy=run.data.metrics.get(FINAL_SHIFTED_ACCURACY),
                error=run.data.tags.get(ERROR_TAG, "no reason was recorded") if status == "failed" else None,
                warnings=tuple(run.data.tags.get(WARNINGS_TAG, "").splitlines()),
            )
    return trials
