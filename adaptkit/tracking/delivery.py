"""Tell a tracking store what a journal holds: sent twice, an event counts once."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.errors import TrackingLost
from adaptkit.names import DATA_CONTEXT_TAG, LOCAL_ID_TAG
from adaptkit.tracking.fetching import fetch
from adaptkit.tracking.journal import Create, End, Event, Input, Journal, Log, Put, Reopen

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: MLflow takes so many metrics in one call
METRICS_AT_ONCE = 1000
#: seconds after which the client may have sent a request twice
SLOW = 1.0
#: what a store answers to a request that it will never accept
FINAL = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")


class Delivery:
    """Send events of runs to an experiment; `ids` are the store's ids of runs by their local ids."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.ids: dict[str, str] = {}

    def send(self, journal: Journal, events: Sequence[Event]) -> None:
        """Send the next events of a run and note that they were sent; raise what the store raises.

        All metrics, params and tags in a row are one call: a store that was away for long is soon up to date.
        """
        rest = list(events)
        while rest:
            count = 1
            if isinstance(rest[0], Log):
                count = next((n for n, event in enumerate(rest) if not isinstance(event, Log)), len(rest))
                send_logs(self.client, self._id(journal), [event for event in rest[:count] if isinstance(event, Log)])
            else:
                self._one(journal, rest[0])
            journal.note_sent(count)
            rest = rest[count:]

    def _one(self, journal: Journal, event: Event) -> None:
        client = self.client
        match event:
            case Create():
                self._create(journal, event)
            case Reopen(run_id):
                journal.run_id = self.ids[journal.local_id] = run_id
                client.update_run(run_id, status="RUNNING")
            case Input():
                self._input(self._id(journal), event)
            case Put():
                self._put(self._id(journal), journal.folder / event.folder, event)
            case End():
                run_id = self._id(journal)
                client.set_terminated(run_id, event.status, event.at)
                if journal.doubtful:
                    self._delete_others(journal, run_id)

    def _id(self, journal: Journal) -> str:
        if journal.run_id is None:
            raise TrackingLost(f"the journal of {journal.name} does not begin with its beginning")
        self.ids[journal.local_id] = journal.run_id
        return journal.run_id

    def _create(self, journal: Journal, event: Create) -> None:
        found = self._found(journal.local_id) if journal.doubtful else []
        if found:
            run_id = found[0]
        else:
            tags = {**event.tags, **self._others(event.runs), LOCAL_ID_TAG: journal.local_id}
            begun, journal.doubtful = time.monotonic(), True
            made = self.client.create_run(self.experiment_id, event.at, tags, event.name)
            run_id, journal.doubtful = str(made.info.run_id), time.monotonic() - begun > SLOW
        journal.run_id = self.ids[journal.local_id] = run_id

    def _others(self, runs: Mapping[str, str]) -> dict[str, str]:
        """Return tags that name other runs by the store's ids; a run that the store does not have is not named."""
        tags = {}
        for tag, local_id in runs.items():
            if local_id not in self.ids and (found := self._found(local_id)):
                self.ids[local_id] = found[0]
            if local_id in self.ids:
                tags[tag] = self.ids[local_id]
        return tags

    def _found(self, local_id: str) -> list[str]:
        condition = f"tags.`{LOCAL_ID_TAG}` = '{local_id}'"
        found = self.client.search_runs([self.experiment_id], condition, order_by=["attributes.start_time ASC"])
        return [str(run.info.run_id) for run in found]

    def _delete_others(self, journal: Journal, run_id: str) -> None:
        """Delete what a request made that was taken for lost, and sent again."""
        for other in self._found(journal.local_id):
            if other != run_id:
                self.client.delete_run(other)

    def _input(self, run_id: str, event: Input) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # MLflow has no data set class for torch; its table keeps 36 characters of a digest.
        dataset = Dataset(name=event.name, digest=event.digest[:36], source_type="code", source=event.source)
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag(DATA_CONTEXT_TAG, event.context)])])

    def _put(self, run_id: str, folder: Path, event: Put) -> None:
        self.client.log_artifacts(run_id, str(folder), event.path)
        if not event.signed:
            return
        artifacts = str(self.client.get_run(run_id).info.artifact_uri)
        with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
            try:
                back = fetch(artifacts, event.path or "", temporary, self.client.tracking_uri)
            except FileNotFoundError:
                raise TrackingLost(f"the store does not give back {event.path}") from None
            for path in folder.iterdir():
                if _sha256(back / path.name) != _sha256(path):
                    raise TrackingLost(f"the store does not give back {path.name} as it was")


def send_logs(client: MlflowClient, run_id: str, logs: Sequence[Log]) -> None:
    """Log metrics, params and tags in as few calls as MLflow takes them."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(*point) for log in logs for point in log.metrics]
    params = [Param(key, value) for log in logs for key, value in log.params.items()]
    # Of a tag that was set twice the last value counts, whatever order the store takes them in.
    tags = [RunTag(key, value) for key, value in {k: v for log in logs for k, v in log.tags.items()}.items()]
    for start in range(0, max(1, len(metrics)), METRICS_AT_ONCE):
        part = metrics[start : start + METRICS_AT_ONCE]
        client.log_batch(run_id, part, () if start else params, () if start else tags)


def is_final(error: Exception) -> bool:
    """Tell whether a store will never accept what it refused with this error."""
    return getattr(error, "error_code", None) in FINAL


def _sha256(path: Path) -> str | None:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
    return None
