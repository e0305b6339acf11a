"""Read from a store what it has of a run that stopped, and complete the record when the run goes on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from adaptkit.contracts import Run
from adaptkit.hookspecs import hookimpl
from adaptkit.tracking.source import source_tags
from adaptkit.tracking.store import Store
from adaptkit.tracking.tracker import ERROR_TAG, LOCAL_ID_TAG, Resumed, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from torch import nn

#: how often a run was taken up again
RESUMED_TAG = "adaptkit.resumed"
#: a metric that each epoch has
OF_EVERY_EPOCH = "train/loss"
PAGE = 1000


def what_it_has(client: MlflowClient, run: MlflowRun) -> Resumed:
    """Return how many epochs of a run a store has, and which metrics: it goes on after them."""
    run_id = str(run.info.run_id)
    logged = client.get_metric_history(run_id, OF_EVERY_EPOCH) if OF_EVERY_EPOCH in run.data.metrics else ()
    local_id = run.data.tags.get(LOCAL_ID_TAG, "")
    return Resumed(run_id, local_id, max((point.step for point in logged), default=0), frozenset(run.data.metrics))


def by_local_id(client: MlflowClient, local_ids: Sequence[str]) -> dict[str, MlflowRun]:
    """Return the runs of a store that have these local ids; the run that groups others is known by its own id."""
    from mlflow.exceptions import MlflowException

    experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=PAGE)]
    found: dict[str, MlflowRun] = {}
    for local_id in local_ids:
        runs = client.search_runs(experiments, f"tags.`{LOCAL_ID_TAG}` = '{local_id}'", max_results=1)
        if runs:
            found[local_id] = runs[0]
            continue
        try:
            run = client.get_run(local_id)
        except MlflowException:
            continue
        if run.info.lifecycle_stage == "active":
            found[local_id] = run
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


@contextmanager
def reopened(store: Store, run_id: str) -> Iterator[None]:
    """Let the run that groups others be under way again, in this process; end it if the block fails."""
    from mlflow.entities import RunTag

    own = {key: value for key, value in source_tags(store.without_secrets).items() if key.startswith("adaptkit.")}
    store.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in own.items()])
    store.client.update_run(run_id, status="RUNNING")
    _count(store.client, run_id)
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # a store that does not answer changes nothing of what went wrong
            store.client.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


class Completer:
    """Count how often a run was taken up again, and forget why it had ended: a plugin that watches run events."""

    def __init__(self, tracker: Tracker, names: Collection[str]) -> None:
        self._tracker, self._names = tracker, names

    @hookimpl
    def adaptkit_run_started(self, run: Run, model: nn.Module) -> None:
        """Tag a run that goes on."""
        run_id, client = self._tracker.run_id(run), self._tracker.store.client
        if run.name in self._names and run_id is not None and self._tracker.fault is None:
            _count(client, run_id)


def _count(client: MlflowClient, run_id: str) -> None:
    tags = client.get_run(run_id).data.tags
    if ERROR_TAG in tags:
        client.delete_tag(run_id, ERROR_TAG)
    before = tags.get(RESUMED_TAG, "0")
    client.set_tag(run_id, RESUMED_TAG, str(int(before) + 1 if before.isdigit() else 1))
