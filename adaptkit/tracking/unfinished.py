"""Read from a store what it has of a run that stopped, and complete the record when the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from adaptkit.tracking.events import LOCAL_ID_TAG
from adaptkit.tracking.tracker import ERROR_TAG, Resumed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

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
