"""Sweeps in MLflow: the run that groups the trials, and what earlier starts have left there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.comparison.records import Comparisons
from adaptkit.errors import BadInput
from adaptkit.names import ERROR_TAG, FINAL_SHIFTED_ACCURACY, KIND_TAG, SWEEP_KEY_TAG, TRIAL_KEY_TAG, VERSION_TAG
from adaptkit.system.imports import uncollected
from adaptkit.tracking.environment import source_tags
from adaptkit.tracking.recorder import log_findings
from adaptkit.tracking.store import Store
from adaptkit.version import __version__

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

PAGE = 1000
#: keys that are looked for one by one
FEW = 50
SWEEP_KEY, TRIAL_KEY = SWEEP_KEY_TAG, TRIAL_KEY_TAG


@dataclass(frozen=True)
class FoundTrial:
    """A trial that the store knows: its latest run that finished, or else its latest that failed, and why."""

    run_id: str
    status: str
    accuracy: float | None
    error: str | None


def open_sweep(store: Store, key: str, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
    """Return the run that groups the trials of this sweep, made anew or opened again.

    Runs in it that seem to be running are those of an earlier start, which died: they end as killed.
    """
    from mlflow.entities import Param

    client = store.client
    found = client.search_runs([store.experiment_id], f"tags.`{SWEEP_KEY}` = '{key}'", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
        end_dead(store, run_id)
        client.update_run(run_id, status="RUNNING")
        return run_id
    own = {VERSION_TAG: __version__, KIND_TAG: "sweep", SWEEP_KEY: key, **tags}
    created = client.create_run(store.experiment_id, run_name=name, tags=source_tags(store.without_secrets) | own)
    run_id = str(created.info.run_id)
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    return run_id


def end_dead(store: Store, parent: str, key: str | None = None) -> None:
    """End runs of this parent that nobody runs any more as killed: all of them, or those of one trial."""
    condition = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    if key is not None:
        condition += f" and tags.`{TRIAL_KEY}` = '{key}'"
    for run in _search(store, condition):
        store.client.set_terminated(run.info.run_id, "KILLED")


def fail_dead(store: Store, parent: str, key: str, reason: str) -> None:
    """End the run of a trial whose process died as failed, if there is one."""
    mine = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`{TRIAL_KEY}` = '{key}'"
    for run in _search(store, f"{mine} and attributes.status = 'RUNNING'"):
        store.client.set_tag(run.info.run_id, ERROR_TAG, reason)
        store.client.set_terminated(run.info.run_id, "FAILED")


def finished_run(store: Store, parent: str, key: str) -> tuple[str, dict[str, float]] | None:
    """Return the id and the metrics of the finished run of this parent with this key, if there is one."""
    mine = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`{TRIAL_KEY}` = '{key}'"
    for run in _search(store, f"{mine} and attributes.status = 'FINISHED'"):
        return str(run.info.run_id), dict(run.data.metrics)
    return None


def require_parent(store: Store, parent: str) -> None:
    """Raise BadInput unless the run that groups others is in this store: what is there by the same name may not be."""
    from mlflow.exceptions import MlflowException

    try:
        found = store.client.get_run(parent).info.experiment_id
    except MlflowException:
        found = None
    if found != store.experiment_id:
        shown = store.without_secrets(store.uri)
        raise BadInput(f"{shown} is not the sweep's store here: share its folder, or use an MLflow server")


def find_trials(store: Store, keys: Iterable[str], kind: str = "adaptation") -> dict[str, FoundTrial]:
    """Return what the experiment holds of trials with these keys, whichever run or sweep made them."""
    wanted = set(keys)
    condition = f"tags.`adaptkit.kind` = '{kind}'"
    # A few are found sooner one by one than among all runs of the experiment.
    conditions = [f"{condition} and tags.`{TRIAL_KEY}` = '{key}'" for key in wanted]
    found: dict[str, FoundTrial] = {}
    for run in itertools.chain.from_iterable(
        _search(store, one) for one in (conditions if len(wanted) <= FEW else [condition])
    ):
        key = run.data.tags.get(TRIAL_KEY, "")
        status = {"FINISHED": "finished", "FAILED": "failed"}.get(run.info.status)
        if key not in wanted or status is None or (status == "failed" and key in found):
            continue
        found[key] = FoundTrial(
            run.info.run_id,
            status,
            run.data.metrics.get(FINAL_SHIFTED_ACCURACY),
            run.data.tags.get(ERROR_TAG, "no reason is on record") if status == "failed" else None,
        )
    return found


def close_sweep(
    store: Store, run_id: str, status: str, findings: Comparisons | None = None, files: Sequence[Path] = ()
) -> None:
    """End the run that groups a sweep's trials, with what they say and these files."""
    try:
        if findings is not None:
            log_findings(store, run_id, findings, files)
        else:
            for path in files:
                store.client.log_artifact(run_id, str(path))
    finally:
        store.client.set_terminated(run_id, status)


def _search(store: Store, condition: str) -> Iterable[MlflowRun]:
    """Yield the runs under a condition, the latest last."""
    token: str | None = None
    while True:
        with uncollected():
            page = store.client.search_runs(
                [store.experiment_id],
                condition,
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
        yield from page
        token = page.token
        if not token:
            return
