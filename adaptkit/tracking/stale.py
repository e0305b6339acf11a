"""Find runs that are on record as running, and end those whose process is gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptkit.tracking.liveness import lives
from adaptkit.tracking.tracker import ERROR_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 1000


@dataclass(frozen=True)
class StaleRun:
    """A run on record as running; `lives` tells whether its process does, None where that cannot be seen."""

    run_id: str
    name: str
    place: str
    lives: bool | None


def unfinished(client: MlflowClient, experiments: Sequence[str]) -> list[StaleRun]:
    """Return adaptkit's runs in these experiments that are on record as running, the earliest first."""
    found: list[StaleRun] = []
    token: str | None = None
    while experiments:
        page = client.search_runs(
            list(experiments),
            "attributes.status = 'RUNNING'",
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        for run in page:
            tags = run.data.tags
            if "adaptkit.kind" in tags:
                place = f"process {tags.get('adaptkit.pid', '?')} on {tags.get('adaptkit.host', '?')}"
                name = run.info.run_name or run.info.run_id
                found.append(StaleRun(run.info.run_id, name, place, lives(tags)))
        token = page.token
        if not token:
            break
    return found


def end_stale(client: MlflowClient, runs: Iterable[StaleRun]) -> None:
    """End runs whose process is gone as killed."""
    for run in runs:
        client.set_tag(run.run_id, ERROR_TAG, "its process is gone")
        client.set_terminated(run.run_id, "KILLED")
