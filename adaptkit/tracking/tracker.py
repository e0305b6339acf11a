"""Record runs in MLflow: a plugin that receives the events of runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adaptkit.comparison.findings import Comparisons
from adaptkit.errors import first_line
from adaptkit.events import Epoch, RunInput, RunResult, RunStart
from adaptkit.hookspecs import hookimpl
from adaptkit.names import (
    ADAPTER_FOLDER,
    BASE_FINGERPRINT_TAG,
    BASE_RUN_ID_TAG,
    COMMAND_TAG,
    DESCRIPTION_TAG,
    ERROR_FILE,
    ERROR_TAG,
    KIND_TAG,
    PARENT_TAG,
    SHIFTED_ACCURACY,
    TEST_ACCURACY,
    TIME_CUMULATIVE_SECONDS,
    TIME_EPOCH_SECONDS,
    TRAIN_ACCURACY,
    TRAIN_LOSS,
    VALIDATION_ACCURACY,
    VALIDATION_LOSS,
    VERSION_TAG,
)
from adaptkit.system.signals import origin
from adaptkit.tracking.active_run import ActiveRun
from adaptkit.tracking.artifacts import write_artifacts
from adaptkit.tracking.environment import source_tags
from adaptkit.tracking.findings import TAG_LENGTH
from adaptkit.tracking.journal import Create, End, Event, Input, Log, Reopen, now, points
from adaptkit.tracking.outbox import Outbox
from adaptkit.tracking.parent import ParentRun, status_after
from adaptkit.tracking.search import search_runs
from adaptkit.tracking.store import Store
from adaptkit.version import __version__

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Resumed:
    """The record of a run to resume: its ids, and the number of epochs and the metrics that the store has."""

    run_id: str
    local_id: str
    epochs: int
    metrics: frozenset[str]


def begin_run(run: RunStart, tags: Mapping[str, str], runs: Mapping[str, str]) -> list[Event]:
    """Return the events that create a run with its params, tags and inputs.

    `runs` are tags whose values are ids of other runs, here local ids.
    """
    description = {DESCRIPTION_TAG: run.description} if run.description else {}
    params = {key: str(value) for key, value in run.params.items()}
    return [
        Create(name=run.name, at=now(), tags={**tags, **description}, runs=runs),
        Log(params=params),
        *map(_input, run.inputs),
    ]


def epoch_log(epoch: Epoch) -> Log:
    """Return the metrics of an epoch under their MLflow names."""
    metrics = {
        TRAIN_LOSS: epoch.loss,
        TRAIN_ACCURACY: epoch.train_accuracy,
        TIME_EPOCH_SECONDS: epoch.seconds,
        TIME_CUMULATIVE_SECONDS: epoch.cumulative_seconds,
        TEST_ACCURACY: epoch.test_accuracy,
        SHIFTED_ACCURACY: epoch.shifted_accuracy,
        VALIDATION_ACCURACY: epoch.validation_accuracy,
        VALIDATION_LOSS: epoch.validation_loss,
    }
    return Log(points({key: value for key, value in metrics.items() if value is not None}, epoch.number))


def _input(data: RunInput) -> Input:
    source = json.dumps({"tags": {COMMAND_TAG: data.source}})
    return Input(name=data.name, digest=data.digest, source=source, context=data.context)


T = TypeVar("T")


class Tracker:
    """Record each run in a journal that is forwarded to an MLflow store, so that training does not wait for the store.

    With `parent`, adaptation and tuning runs become children of this run. `tags` are added to them. `resumed` maps
    names of runs to existing records in which the runs continue; nothing is logged twice. `journals` is a folder for
    journals that `adaptkit sync` must not find. After `close`, `fault` is the reason why the store lacks events, or
    None.
    """

    def __init__(
        self,
        store: Store,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        resumed: Mapping[str, Resumed] | None = None,
        journals: Path | None = None,
    ) -> None:
        self.store = store
        self.fault: str | None = None
        self._outbox = Outbox(store, journals)
        self._resumed = dict(resumed or {})
        self._local_ids = {name: run.local_id for name, run in self._resumed.items()}
        self._ended: set[str] = set()
        self._with_adapter: set[str] = set()
        self._incomplete: set[str] = set()
        self._active: ActiveRun | None = None
        self._tags = {VERSION_TAG: __version__, **source_tags(store.without_secrets)}
        self._child_tags = dict(tags or {})
        self._parent = parent
        self._group: ParentRun | None = None
        self._base: str | None = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Send the remaining events; afterwards `fault` is the reason if some could not be sent."""
        if (missing := self._outbox.close()) is not None:
            self.fault = self.fault or missing

    def local_id(self, run: RunStart) -> str:
        """Return the local id of a run, which exists before the store has created the run."""
        return self._local_ids.setdefault(run.name, uuid.uuid4().hex)

    def run_id(self, name: str) -> str | None:
        """Return the MLflow id of the run of this name; None if the store has not created it yet."""
        return self._outbox.run_id(self._local_ids.get(name, ""))

    @property
    def parent_id(self) -> str | None:
        """Return the MLflow id of the parent run; None if the store does not have one (yet)."""
        return self._parent or (self._outbox.run_id(self._group.local_id) if self._group else None)

    @property
    def group_id(self) -> str | None:
        """Return the local id of the parent run, if there is one."""
        return self._group.local_id if self._group else None

    def flush(self) -> None:
        """Wait until all events are sent, or until the store fails or makes no progress."""
        self._outbox.flush()

    def find_base(self, fingerprint: str) -> str | None:
        """Return the id of the latest finished base run with these weights; None if the store does not find one."""
        tags = {KIND_TAG: "base", BASE_FINGERPRINT_TAG: fingerprint}
        try:
            runs = search_runs(self.store.client, [self.store.experiment_id], tags=tags, status="FINISHED")
        except Exception as error:  # an error of the store: the base is recorded again
            if (cause := origin(error)) is not error:
                raise cause from error
            return None
        return str(runs[-1].info.run_id) if runs else None

    def record(self, run: RunStart, epochs: Iterable[Epoch], result: RunResult, model: nn.Module) -> None:
        """Record a run that ended earlier, from its epochs and its result."""
        try:
            self.adaptkit_run_started(run, model)
            for epoch in epochs:
                self.adaptkit_epoch_ended(run, epoch)
            self.adaptkit_run_ended(run, result, model)
        except BaseException as error:  # a signal
            self.adaptkit_run_failed(run, error)
            raise

    def open_run(self, run: RunStart) -> None:
        """Create a run, unless it is open: a tuning starts before the first model of its run is known."""
        if run.name in self._ended:  # the bases of a sweep over data settings have one name
            self._ended.discard(run.name)
            self._incomplete.discard(run.name)
            del self._local_ids[run.name]
        if not self._outbox.is_open(self.local_id(run)):
            self._start(run)

    def keep_adapter(self, run: RunStart, files: Mapping[str, Path]) -> Path | None:
        """Upload the adapter of a run and check the uploaded copy; return the folder that is uploaded."""

        def write(folder: Path) -> None:
            for name, path in files.items():
                shutil.copyfile(path, folder / name)

        def upload() -> Path:
            return self._add_files(run, ADAPTER_FOLDER, write, path=ADAPTER_FOLDER, signed=True)

        folder = self._try(run.name, "storing the adapter", upload)
        if folder is not None:
            self._with_adapter.add(run.name)
        return folder

    @contextmanager
    def grouped(self, name: str, params: Mapping[str, Any], resumed: Resumed | None = None) -> Iterator[None]:
        """Group the adaptation runs of a block under a parent run of kind comparison: a new one, or a resumed one."""
        self._group = ParentRun(
            self._outbox,
            self.store,
            name,
            kind="comparison",
            params=params,
            run_id=resumed.run_id if resumed else None,
            local_id=resumed.local_id if resumed else None,
        )
        try:
            yield
        except BaseException as error:
            self._group.end(status_after(error))
            raise

    def end_group(self, findings: Comparisons | None, files: Sequence[Path]) -> None:
        """Add the results of the grouped runs, and these files, to the parent run, and end it."""
        group = self._group
        if group is not None:
            if findings is not None:
                self._try("the comparison", "writing its files", lambda: group.conclude(findings, files))
            group.end("FAILED" if findings is None or self.fault else "FINISHED")

    @hookimpl(tryfirst=True)
    def adaptkit_run_started(self, run: RunStart, model: nn.Module) -> None:
        """Create the run with its params, tags and inputs, and make it MLflow's active run."""
        self.open_run(run)

    @hookimpl(trylast=True)
    def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
        """Log the metrics of the epoch; of a run with folds, those of the means."""
        if epoch.fold is not None:
            return
        if run.name not in self._resumed or epoch.number > self._resumed[run.name].epochs:
            self._add(run, epoch_log(epoch))

    @hookimpl(trylast=True)
    def adaptkit_run_ended(self, run: RunStart, result: RunResult, model: nn.Module) -> None:
        """Log the final metrics and the artifacts, and end the run."""
        logged = self._resumed[run.name].metrics if run.name in self._resumed else frozenset()
        metrics = {key: value for key, value in result.metrics.items() if key not in logged}
        self._add(run, Log(points(metrics), tags=result.tags))
        self._try(run.name, "writing artifacts", lambda: self._add_artifacts(run, result))
        # An incomplete record must not count as a finished run.
        self._end(run, "FAILED" if run.name in self._incomplete else "FINISHED")

    @hookimpl(trylast=True)
    def adaptkit_run_failed(self, run: RunStart, error: BaseException) -> None:
        """End the run as KILLED after a signal, and as FAILED after an error, with the traceback."""
        if run.name in self._ended:  # the error happened after the end of the run
            return
        status = status_after(error)
        if not self._outbox.is_open(self.local_id(run)):  # the error happened before the first batch
            self._start(run)
        if status == "FAILED":
            self._try(run.name, "recording the error", lambda: self._add_error(run, error))
        self._end(run, status)

    def _start(self, run: RunStart) -> None:
        local_id, tags = self.local_id(run), self._tags | dict(run.tags)
        runs: dict[str, str] = {}
        events: list[Event]
        self._outbox.open(local_id, run.name)
        if run.name in self._resumed:
            # The first process may have died before it had sent everything; repeated events have no effect.
            events = [Reopen(self._resumed[run.name].run_id), Log(tags=tags), *begin_run(run, {}, {})[1:]]
        else:
            if run.kind == "base":
                self._base = local_id
            else:
                tags |= self._child_tags | ({PARENT_TAG: self._parent} if self._parent is not None else {})
                others = {PARENT_TAG: self.group_id, BASE_RUN_ID_TAG: self._base}
                runs = {tag: other for tag, other in others.items() if other is not None and tag not in tags}
            events = begin_run(run, tags, runs)
        self._outbox.add(local_id, *events)
        run_id = self._outbox.wait_for_id(local_id)
        if run_id is not None and self._outbox.is_settled:
            # Only with a store that answers: to activate a run, MLflow sends several requests to the store.
            with contextlib.suppress(Exception):
                self._active = ActiveRun(self.store.uri, run_id)

    def _add(self, run: RunStart, event: Event) -> None:
        self._outbox.add(self.local_id(run), event)

    def _add_files(
        self, run: RunStart, name: str, write: Callable[[Path], object], path: str | None = None, signed: bool = False
    ) -> Path:
        return self._outbox.add_files(self.local_id(run), name, write, path=path, signed=signed)

    def _add_artifacts(self, run: RunStart, result: RunResult) -> None:
        if run.name in self._with_adapter:
            files = {name: path for name, path in result.files.items() if not name.startswith(f"{ADAPTER_FOLDER}/")}
            result = dataclasses.replace(result, files=files)
        self._add_files(run, "artifacts", lambda folder: write_artifacts(folder, run, result))

    def _add_error(self, run: RunStart, error: BaseException) -> None:
        text = self.store.without_secrets("".join(traceback.format_exception(error)))
        line = self.store.without_secrets(" ".join(str(error).split()) or type(error).__name__)
        self._add(run, Log(tags={ERROR_TAG: line[:TAG_LENGTH]}))
        self._add_files(run, "error", lambda folder: (folder / ERROR_FILE).write_text(text, encoding="utf-8"))

    def _end(self, run: RunStart, status: str) -> None:
        self._add(run, End(status, now()))
        if self._active is not None:
            with contextlib.suppress(Exception):  # the end of the run is already queued
                self._active.end(status, answers=self._outbox.catch_up())
        # Set last: after a signal before this line, the run must be ended again, as KILLED.
        self._active = None
        self._ended.add(run.name)

    def _try(self, name: str, step: str, action: Callable[[], T]) -> T | None:
        """Call `action`; if it fails, set `fault` and mark the run as incomplete.

        An error of the disk, of a figure or of the store must not discard the results of training.
        """
        try:
            return action()
        except Exception as error:
            if (cause := origin(error)) is not error:
                raise cause from error
            reason = self.store.without_secrets(first_line(error))
            self.fault = self.fault or f"the record of {name} is incomplete: {step} failed: {reason}"
            self._incomplete.add(name)
            return None
