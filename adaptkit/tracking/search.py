"""Search a tracking store for runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adaptkit.system.imports import uncollected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

#: runs that one request returns
PAGE = 1000


def search_runs(
    client: MlflowClient,
    experiment_ids: Sequence[str],
    *,
    tags: Mapping[str, str] | None = None,
    status: str | None = None,
    where: str | None = None,
) -> list[MlflowRun]:
    """Return all matching runs of these experiments, in the order in which they started.

    A run matches if it has all `tags` and the `status` (in capitals), and if it meets the condition `where`, which is
    written in MLflow's filter language.
    """
    if not experiment_ids:  # MLflow would search all experiments
        return []
    conditions = [f"tags.`{key}` = '{value}'" for key, value in (tags or {}).items()]
    if status is not None:
        conditions.append(f"attributes.status = '{status}'")
    if where is not None and where.strip():
        conditions.append(where)
    runs: list[MlflowRun] = []
    token: str | None = None
    while True:
        with uncollected():
            page = client.search_runs(
                list(experiment_ids),
                " and ".join(conditions),
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
        runs.extend(page)
        token = page.token
        if not token:
            return runs
