"""Write runs to MLflow: a plugin that watches run events."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adaptkit import __version__
from adaptkit.contracts import Epoch, Run, RunInput, RunResult
from adaptkit.findings import Findings
from adaptkit.hookspecs import hookimpl
from adaptkit.signals import origin
from adaptkit.tracking.artifacts import write_artifacts
from adaptkit.tracking.fluent import ActiveRun
from adaptkit.tracking.recorder import TAG_LENGTH, create_comparison, log_findings
from adaptkit.tracking.source import source_tags
from adaptkit.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput
    from torch import nn

T = TypeVar("T")

#: the folder of a run's artifacts that holds its adapter
ADAPTER = "adapter"
#: why a run failed, in one line
ERROR_TAG = "adaptkit.error"
#: what a run is called where it is made, before the store has given it an id
LOCAL_ID_TAG = "adaptkit.local_id"


@dataclass(frozen=True)
class Resumed:
    """A run that goes on in its own record: how many epochs the store has of it, and which metrics without a step."""

    run_id: str
    local_id: str
    epochs: int
    metrics: frozenset[str]


class Tracker:
    """Record each run in an MLflow store, one synchronous call an epoch.

    When the store stops answering, `fault` says so, nothing more is sent, and training goes on. Adaptation and tuning
    runs are grouped under the run `parent`, if there is one, and have these `tags` too. Runs `resumed`, by name, go on
    in their own records, and nothing is logged twice.
    """

    def __init__(
        self,
        store: Store,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        resumed: Mapping[str, Resumed] | None = None,
    ) -> None:
        self.store = store
        self.fault: str | None = None
        self._resumed = dict(resumed or {})
        self._local_ids = {name: run.local_id for name, run in self._resumed.items()}
        self._run_ids: dict[str, str] = {}
        self._ended: set[str] = set()
        self._kept: set[str] = set()
        self._active: ActiveRun | None = None
        self._tags = {"adaptkit.version": __version__, **source_tags(store.without_secrets)}
        self._own_tags = dict(tags or {})
        self._parent = parent

    def run_id(self, run: Run) -> str | None:
        """Return the MLflow id of a run that was recorded here."""
        return self._run_ids.get(run.name)

    def local_id(self, run: Run) -> str:
        """Return what a run is called here, whether or not the store has given it an id yet."""
        return self._local_ids.setdefault(run.name, uuid.uuid4().hex)

    def find_base(self, fingerprint: str) -> str | None:
        """Return the id of a finished base run with these weights in this experiment."""
        condition = (
            f"tags.`adaptkit.kind` = 'base' and tags.`adaptkit.base_fingerprint` = '{fingerprint}' "
            "and attributes.status = 'FINISHED'"
        )
        found = self._try(
            "looking for the base run",
            lambda: self.store.client.search_runs([self.store.experiment_id], condition, max_results=1),
        )
        return found[0].info.run_id if found else None

    def record(self, run: Run, epochs: Iterable[Epoch], result: RunResult, model: nn.Module) -> None:
        """Record a run that took place earlier from the history kept of it."""
        try:
            self.adaptkit_run_started(run, model)
            for epoch in epochs:
                self.adaptkit_epoch_ended(run, epoch)
            self.adaptkit_run_ended(run, result, model)
        except BaseException as error:  # a signal
            self.adaptkit_run_failed(run, error)
            raise

    def keep_adapter(self, run: Run, files: Mapping[str, Path], folder: Path) -> Path | None:
        """Put a run's adapter into the store and read it back into a folder; None if the store does not answer."""

        def keep() -> Path:
            run_id = self._run_ids[run.name]
            for path in files.values():
                self.store.client.log_artifact(run_id, str(path), ADAPTER)
            folder.mkdir()
            read = Path(self.store.client.download_artifacts(run_id, ADAPTER, str(folder)))
            self._kept.add(run.name)
            return read

        return self._try("keeping the adapter", keep)

    @property
    def parent_id(self) -> str | None:
        """Return the MLflow id of the run that groups the adaptation runs, if there is one."""
        return self._parent

    @contextmanager
    def grouped(self, name: str, params: Mapping[str, Any]) -> Iterator[None]:
        """Group the adaptation runs of this block under a run of kind comparison."""
        self._parent = self._try("starting the comparison", create_comparison, self.store, name, params)
        try:
            yield
        except BaseException as error:
            self._end_parent("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise

    def end_group(self, findings: Findings | None, files: Sequence[Path]) -> None:
        """Log what the group's runs say, with these files, and end the run that groups them."""
        if self._parent is None:
            return
        if findings is not None:
            self._try("logging the comparison", log_findings, self.store, self._parent, findings, files)
        self._end_parent("FAILED" if findings is None or self.fault else "FINISHED")

    def _end_parent(self, status: str) -> None:
        if self._parent is not None:
            terminate = self.store.client.set_terminated
            self._try("ending the comparison", terminate, self._parent, status, even_so=True)

    @hookimpl(tryfirst=True)
    def adaptkit_run_started(self, run: Run, model: nn.Module) -> None:
        """Create the MLflow run with its params, tags and inputs, and make it the active one."""
        self._try("starting a run", lambda: self._start(run))

    @hookimpl(trylast=True)
    def adaptkit_epoch_ended(self, run: Run, epoch: Epoch) -> None:
        """Log the epoch's metrics in one call."""
        if run.name in self._resumed and epoch.number <= self._resumed[run.name].epochs:
            return
        metrics = {
            "train/loss": epoch.loss,
            "train/accuracy": epoch.train_accuracy,
            "time/epoch_seconds": epoch.seconds,
            "time/cumulative_seconds": epoch.cumulative_seconds,
        }
        if epoch.test_accuracy is not None:
            metrics["test/accuracy"] = epoch.test_accuracy
        if epoch.shifted_accuracy is not None:
            metrics["shifted/accuracy"] = epoch.shifted_accuracy
        if epoch.validation_accuracy is not None:
            metrics["validation/accuracy"] = epoch.validation_accuracy
        if epoch.validation_loss is not None:
            metrics["validation/loss"] = epoch.validation_loss
        self._try(f"logging epoch {epoch.number}", lambda: self._log_metrics(run, metrics, epoch.number))

    @hookimpl(trylast=True)
    def adaptkit_run_ended(self, run: Run, result: RunResult, model: nn.Module) -> None:
        """Log the final metrics and the artifacts, and finish the run."""
        there = self._resumed[run.name].metrics if run.name in self._resumed else frozenset()
        metrics = {key: value for key, value in result.metrics.items() if key not in there}
        self._try("logging results", lambda: self._log_metrics(run, metrics, None, result.tags))
        self._try("writing artifacts", lambda: self._log_artifacts(run, result))
        # A record with a gap is not that of a finished run, whatever became of the run.
        self._end(run, "FINISHED" if self.fault is None else "FAILED")

    @hookimpl(trylast=True)
    def adaptkit_run_failed(self, run: Run, error: BaseException) -> None:
        """End the run as what it is: KILLED after a signal, FAILED after an error, with its traceback."""
        if run.name in self._ended:  # what failed came after the run
            return
        if isinstance(error, KeyboardInterrupt):
            status = "KILLED"
        elif isinstance(error, SystemExit) and error.code in (None, 0):
            status = "FINISHED"
        else:
            status = "FAILED"
        if run.name not in self._run_ids:  # it failed before its first batch
            self._try("starting a run", lambda: self._start(run))
        if status == "FAILED":
            self._try("logging the error", lambda: self._log_error(run, error))
        self._end(run, status)

    def _start(self, run: Run) -> None:
        client = self.store.client
        tags = self._tags | dict(run.tags) | {LOCAL_ID_TAG: self.local_id(run)}
        if run.name in self._resumed:
            self._reopen(run, tags)
            return
        if run.kind != "base":
            tags |= self._own_tags
            if self._parent is not None:
                tags["mlflow.parentRunId"] = self._parent
        if run.description:
            tags["mlflow.note.content"] = run.description
        created = client.create_run(self.store.experiment_id, run_name=run.name, tags=tags)
        self._run_ids[run.name] = created.info.run_id
        self._active = ActiveRun(self.store.uri, created.info.run_id)
        self._log_start(run)

    def _log_start(self, run: Run) -> None:
        from mlflow.entities import Param

        client, run_id = self.store.client, self._run_ids[run.name]
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in run.params.items()])
        if run.inputs:
            client.log_inputs(run_id, [_dataset(given) for given in run.inputs])

    def _reopen(self, run: Run, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        client, run_id = self.store.client, self._resumed[run.name].run_id
        self._run_ids[run.name] = run_id
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        client.update_run(run_id, status="RUNNING")
        self._active = ActiveRun(self.store.uri, run_id)
        # Its process may have died before it had written this; where it is there, nothing changes.
        self._log_start(run)

    def _log_metrics(
        self, run: Run, metrics: Mapping[str, float], step: int | None, tags: Mapping[str, str] | None = None
    ) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        # Without a step of its own (0), MLflow's page draws a bar for each run instead of a curve.
        points = [Metric(key, float(value), now, step or 0) for key, value in metrics.items()]
        named = [RunTag(key, value) for key, value in (tags or {}).items()]
        self.store.client.log_batch(self._run_ids[run.name], metrics=points, tags=named)

    def _log_artifacts(self, run: Run, result: RunResult) -> None:
        if run.name in self._kept:
            files = {name: path for name, path in result.files.items() if not name.startswith(f"{ADAPTER}/")}
            result = dataclasses.replace(result, files=files)
        with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
            write_artifacts(Path(folder), run, result)
            self.store.client.log_artifacts(self._run_ids[run.name], folder)

    def _log_error(self, run: Run, error: BaseException) -> None:
        text = self.store.without_secrets("".join(traceback.format_exception(error)))
        line = self.store.without_secrets(" ".join(str(error).split()) or type(error).__name__)
        self.store.client.set_tag(self._run_ids[run.name], ERROR_TAG, line[:TAG_LENGTH])
        self.store.client.log_text(self._run_ids[run.name], text, "error.txt")

    def _end(self, run: Run, status: str) -> None:
        run_id = self._run_ids.get(run.name)
        if run_id is None:
            return
        if self._active is not None:
            self._try("ending a run", self._active.end, status, even_so=True)
        else:  # a signal came before the run was made MLflow's active one
            self._try("ending a run", self.store.client.set_terminated, run_id, status, even_so=True)
        # Only now: a signal until here ends the run once more, as KILLED.
        self._active = None
        self._ended.add(run.name)

    def _try(self, doing: str, action: Callable[..., T], *arguments: Any, even_so: bool = False) -> T | None:
        """Do this unless the store has failed already; note it when it fails now."""
        if self.fault is not None and not even_so:
            return None
        try:
            return action(*arguments)
        except Exception as error:  # the store's or a figure's: the training's results are not lost for either
            if not even_so and (cause := origin(error)) is not error:
                raise cause from error
            reason = self.store.without_secrets(str(error).strip().split("\n")[0] or type(error).__name__)
            self.fault = self.fault or f"tracking stopped while {doing}: {reason}"
            return None


def _dataset(given: RunInput) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    # MLflow has no data set class for torch; its table keeps 36 characters of a digest.
    source = json.dumps({"tags": {"mlflow.source.name": given.source}})
    dataset = Dataset(name=given.name, digest=given.digest[:36], source_type="code", source=source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", given.context)])
