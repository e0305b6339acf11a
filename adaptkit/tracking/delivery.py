"""Deliver journaled events to a tracking store, idempotently."""

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
from adaptkit.tracking.search import search_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: maximum number of metrics in one call to MLflow
METRICS_PER_CALL = 1000
#: maximum length of the name of a data set in MLflow, in characters
NAME_LENGTH = 500
#: seconds after which MLflow's client may have repeated a request
SLOW = 1.0
#: error codes of requests that the store rejects permanently
FINAL = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")


class Delivery:
    """Send events of runs to an experiment; `ids` maps local ids of runs to the store's ids."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.ids: dict[str, str] = {}

    def send(self, journal: Journal, events: Sequence[Event]) -> None:
        """Send the next events of a run and record in the journal that they were sent; raise the errors of the store.

        Consecutive `Log` events are sent in one call, so that a store catches up quickly after an outage.
        """
        rest = list(events)
        while rest:
            count = 1
            if isinstance(rest[0], Log):
                count = next((n for n, event in enumerate(rest) if not isinstance(event, Log)), len(rest))
                send_logs(self.client, self._id(journal), [event for event in rest[:count] if isinstance(event, Log)])
            else:
                self._send_one(journal, rest[0])
            journal.note_sent(count)
            rest = rest[count:]

    def _send_one(self, journal: Journal, event: Event) -> None:
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
                    self._delete_duplicates(journal, run_id)

    def _id(self, journal: Journal) -> str:
        if journal.run_id is None:
            raise TrackingLost(f"the journal of {journal.name} is corrupt: its first event is missing")
        self.ids[journal.local_id] = journal.run_id
        return journal.run_id

    def _create(self, journal: Journal, event: Create) -> None:
        existing = self._run_ids(journal.local_id) if journal.doubtful else []
        if existing:
            run_id = existing[0]
        else:
            tags = {**event.tags, **self._related_runs(event.runs), LOCAL_ID_TAG: journal.local_id}
            start, journal.doubtful = time.monotonic(), True
            run = self.client.create_run(
                experiment_id=self.experiment_id, start_time=event.at, tags=tags, run_name=event.name
            )
            run_id, journal.doubtful = str(run.info.run_id), time.monotonic() - start > SLOW
        journal.run_id = self.ids[journal.local_id] = run_id

    def _related_runs(self, runs: Mapping[str, str]) -> dict[str, str]:
        """Return tags whose values are the store's ids of other runs; leave out runs that the store does not have."""
        tags = {}
        for tag, local_id in runs.items():
            if local_id not in self.ids and (run_ids := self._run_ids(local_id)):
                self.ids[local_id] = run_ids[0]
            if local_id in self.ids:
                tags[tag] = self.ids[local_id]
        return tags

    def _run_ids(self, local_id: str) -> list[str]:
        """Return the ids of the runs in the experiment that have this local id."""
        runs = search_runs(self.client, [self.experiment_id], tags={LOCAL_ID_TAG: local_id})
        return [str(run.info.run_id) for run in runs]

    def _delete_duplicates(self, journal: Journal, run_id: str) -> None:
        """Delete the runs that a repeated request created in addition to this one."""
        for other in self._run_ids(journal.local_id):
            if other != run_id:
                self.client.delete_run(other)

    def _input(self, run_id: str, event: Input) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        # MLflow has no data set class for torch. Its table holds 36 characters of a digest.
        name = event.name if len(event.name) <= NAME_LENGTH else f"...{event.name[3 - NAME_LENGTH :]}"
        dataset = Dataset(name=name, digest=event.digest[:36], source_type="code", source=event.source)
        inputs = [DatasetInput(dataset, [InputTag(DATA_CONTEXT_TAG, event.context)])]
        try:
            self.client.log_inputs(run_id, inputs)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            # MLflow looks a data set up and then adds it. If another process adds it in between, the request fails;
            # the second request finds it.
            self.client.log_inputs(run_id, inputs)

    def _put(self, run_id: str, folder: Path, event: Put) -> None:
        self.client.log_artifacts(run_id, str(folder), event.path)
        if not event.signed:
            return
        artifacts = str(self.client.get_run(run_id).info.artifact_uri)
        with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
            try:
                copies = fetch(
                    artifacts=artifacts, name=event.path or "", folder=temporary, tracking_uri=self.client.tracking_uri
                )
            except FileNotFoundError:
                raise TrackingLost(f"{event.path} is missing in the store after its upload") from None
            for path in folder.iterdir():
                if _sha256(copies / path.name) != _sha256(path):
                    raise TrackingLost(f"{path.name} differs from the original after its upload to the store")


def send_logs(client: MlflowClient, run_id: str, logs: Sequence[Log]) -> None:
    """Log metrics, params and tags in as few calls as MLflow allows."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(*point) for log in logs for point in log.metrics]
    params = [Param(key, value) for log in logs for key, value in log.params.items()]
    # Only the last value of each tag: the store may apply several in any order.
    tags = [RunTag(key, value) for key, value in {k: v for log in logs for k, v in log.tags.items()}.items()]
    for start in range(0, max(1, len(metrics)), METRICS_PER_CALL):
        part = metrics[start : start + METRICS_PER_CALL]
        client.log_batch(run_id=run_id, metrics=part, params=() if start else params, tags=() if start else tags)


def is_final(error: Exception) -> bool:
    """Return whether the store would reject the same request again after this error."""
    return getattr(error, "error_code", None) in FINAL


def _sha256(path: Path) -> str | None:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
    return None
