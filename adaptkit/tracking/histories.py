"""Read the histories of metrics, of many runs at once where the store can."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: runs whose histories are read by one query, and the most points that it may give
AT_ONCE, MOST = 200, 1_000_000

#: values by step
History = dict[int, float]


def read_histories(client: MlflowClient, run_ids: Sequence[str], key: str) -> dict[str, History]:
    """Return the history of one metric of each run, the last value of a step that has several."""
    together = _together(client)
    found: dict[str, History] = {run_id: {} for run_id in run_ids}
    if together is None:
        with ThreadPoolExecutor(4) as pool:
            histories = pool.map(lambda run_id: client.get_metric_history(run_id, key), run_ids)
            for run_id, points in zip(run_ids, histories, strict=True):
                found[run_id] = {point.step: point.value for point in points}
        return found
    for start in range(0, len(run_ids), AT_ONCE):
        for point in together(run_ids[start : start + AT_ONCE], key, MOST):
            found[point.run_id][point.step] = point.value
    return found


def _together(client: MlflowClient) -> Any:
    """Return the method of a database's store that reads the histories of many runs; None of any other store.

    MLflow's client does not have it, though MLflow's own pages use it: a thousand runs, one by one, take seconds.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    return getattr(store, "get_metric_history_bulk", None) if isinstance(store, SqlAlchemyStore) else None
