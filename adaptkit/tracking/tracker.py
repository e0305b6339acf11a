"""Write runs to MLflow: a plugin that watches run events."""

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

from adaptkit.comparison.records import Comparisons
from adaptkit.errors import first_line
from adaptkit.events import Epoch, RunInput, RunResult, RunStart
from adaptkit.hookspecs import hookimpl
from adaptkit.names import (
    ARMS_FILE,
    BASE_RUN_ID_TAG,
    ERROR_FILE,
    ERROR_TAG,
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
from adaptkit.tracking.journal import Create, End, Event, Input, Log, Reopen, now, points
from adaptkit.tracking.outbox import Outbox
from adaptkit.tracking.recorder import TAG_LENGTH, begin_comparison, findings_log, write_arms
from adaptkit.tracking.store import Store
from adaptkit.version import __version__

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Resumed:
    """A run that goes on in its own record: how many epochs the store has of it, and which metrics without a step."""

    run_id: str
    local_id: str
    epochs: int
    metrics: frozenset[str]


def begin_run(run: RunStart, tags: Mapping[str, str], runs: Mapping[str, str]) -> list[Event]:
    """Return the beginning of a run with its params, tags and inputs; `runs` are tags that name others by local ids."""
    told = {"mlflow.note.content": run.description} if run.description else {}
    params = {key: str(value) for key, value in run.params.items()}
    return [Create(run.name, now(), {**tags, **told}, runs), Log(params=params), *map(_input, run.inputs)]


def epoch_log(epoch: Epoch) -> Log:
    """Return an epoch's metrics by their MLflow names."""
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


def status_after(error: BaseException) -> str:
    """Return what a run ends as that an error stops."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    return "FINISHED" if isinstance(error, SystemExit) and error.code in (None, 0) else "FAILED"


def _input(given: RunInput) -> Input:
    source = json.dumps({"tags": {"mlflow.source.name": given.source}})
    return Input(given.name, given.digest, source, given.context)


class Group:
    """Record what a command's runs say together."""

    def __init__(
        self, outbox: Outbox, store: Store, name: str, params: Mapping[str, Any], resumed: Resumed | None = None
    ) -> None:
        self.local_id = resumed.local_id if resumed else uuid.uuid4().hex
        self._outbox, self._store, self._is_ended = outbox, store, False
        outbox.open(self.local_id, name)
        create, log = begin_comparison(store, name, params)
        beginning = (Reopen(resumed.run_id), Log(tags=create.tags), log) if resumed else (create, log)
        outbox.tell(self.local_id, *beginning)
        outbox.wait_for_id(self.local_id)

    def conclude(self, findings: Comparisons, files: Sequence[Path]) -> None:
        """Record what the runs say, with these files."""

        def write(folder: Path) -> None:
            write_arms(folder / ARMS_FILE, findings.comparisons)
            for path in files:
                shutil.copyfile(path, folder / path.name)

        self._outbox.tell(self.local_id, findings_log(findings, self._store.experiment_id))
        self._outbox.put(self.local_id, "artifacts", write)

    def end(self, status: str) -> None:
        """Record the end, once."""
        if not self._is_ended:
            self._is_ended = True
            self._outbox.tell(self.local_id, End(status, now()))


T = TypeVar("T")

#: the folder of a run's artifacts that holds its adapter
ADAPTER = "adapter"
COMPARISON = "the comparison"

__all__ = ["ADAPTER", "ERROR_TAG", "Resumed", "Tracker"]


class Tracker:
    """Record each run in a journal, which is forwarded to an MLflow store; training does not wait for the store.

    Once it is closed, `fault` says why the store does not have all of it. Adaptation and tuning runs are grouped under
    the run `parent`, if there is one, and have these `tags` too. Runs `resumed`, by name, go on in their own records,
    and nothing is logged twice. What is to be thrown away has its `journals` in a folder of their own.
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
        self._kept: set[str] = set()
        self._incomplete: set[str] = set()
        self._active: ActiveRun | None = None
        self._tags = {VERSION_TAG: __version__, **source_tags(store.without_secrets)}
        self._own_tags = dict(tags or {})
        self._parent = parent
        self._group: Group | None = None
        self._base: str | None = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Send what is left, as long as the store takes it; afterwards `fault` tells why it does not have all."""
        if (missing := self._outbox.close()) is not None:
            self.fault = self.fault or missing

    def local_id(self, run: RunStart) -> str:
        """Return what a run is called here, whether or not the store has given it an id yet."""
        return self._local_ids.setdefault(run.name, uuid.uuid4().hex)

    def run_id(self, name: str) -> str | None:
        """Return the MLflow id of the run of this name that was recorded here, if the store has it yet."""
        return self._outbox.run_id(self._local_ids.get(name, ""))

    @property
    def parent_id(self) -> str | None:
        """Return the MLflow id of the run that groups the adaptation runs, if there is one that the store has."""
        return self._parent or (self._outbox.run_id(self._group.local_id) if self._group else None)

    @property
    def group_id(self) -> str | None:
        """Return what the run that groups the others is called here, if there is one."""
        return self._group.local_id if self._group else None

    def flush(self) -> None:
        """Send what there is, as long as the store takes it."""
        self._outbox.flush()

    def find_base(self, fingerprint: str) -> str | None:
        """Return the id of a finished base run with these weights in this experiment, if the store tells of one."""
        condition = (
            f"tags.`adaptkit.kind` = 'base' and tags.`adaptkit.base_fingerprint` = '{fingerprint}' "
            "and attributes.status = 'FINISHED'"
        )
        try:
            found = self.store.client.search_runs([self.store.experiment_id], condition, max_results=1)
        except Exception as error:  # the store's: then the base is recorded once more
            if (cause := origin(error)) is not error:
                raise cause from error
            return None
        return found[0].info.run_id if found else None

    def record(self, run: RunStart, epochs: Iterable[Epoch], result: RunResult, model: nn.Module) -> None:
        """Record a run that took place earlier from the history kept of it."""
        try:
            self.adaptkit_run_started(run, model)
            for epoch in epochs:
                self.adaptkit_epoch_ended(run, epoch)
            self.adaptkit_run_ended(run, result, model)
        except BaseException as error:  # a signal
            self.adaptkit_run_failed(run, error)
            raise

    def keep_adapter(self, run: RunStart, files: Mapping[str, Path]) -> Path | None:
        """Send a run's adapter to the store, which must give the same back, and return the folder that is sent."""

        def write(folder: Path) -> None:
            for name, path in files.items():
                shutil.copyfile(path, folder / name)

        kept = self._try(run.name, "keeping the adapter", self._put, run, ADAPTER, write, ADAPTER, True)
        if kept is not None:
            self._kept.add(run.name)
        return kept

    @contextmanager
    def grouped(self, name: str, params: Mapping[str, Any], resumed: Resumed | None = None) -> Iterator[None]:
        """Group the adaptation runs of this block under a run of kind comparison: a new one, or one that goes on."""
        self._group = Group(self._outbox, self.store, name, params, resumed)
        try:
            yield
        except BaseException as error:
            self._group.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise

    def end_group(self, findings: Comparisons | None, files: Sequence[Path]) -> None:
        """Record what the group's runs say, with these files, and end the run that groups them."""
        if self._group is not None:
            if findings is not None:
                self._try(COMPARISON, "writing its files", self._group.conclude, findings, files)
            self._group.end("FAILED" if findings is None or self.fault else "FINISHED")

    @hookimpl(tryfirst=True)
    def adaptkit_run_started(self, run: RunStart, model: nn.Module) -> None:
        """Begin the run's record with its params, tags and inputs, and make it MLflow's active run."""
        self._start(run)

    @hookimpl(trylast=True)
    def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
        """Record the epoch's metrics."""
        if run.name not in self._resumed or epoch.number > self._resumed[run.name].epochs:
            self._tell(run, epoch_log(epoch))

    @hookimpl(trylast=True)
    def adaptkit_run_ended(self, run: RunStart, result: RunResult, model: nn.Module) -> None:
        """Record the final metrics and the artifacts, and the run's end."""
        there = self._resumed[run.name].metrics if run.name in self._resumed else frozenset()
        metrics = {key: value for key, value in result.metrics.items() if key not in there}
        self._tell(run, Log(points(metrics), tags=result.tags))
        self._try(run.name, "writing artifacts", self._put_artifacts, run, result)
        # A record with a gap is not that of a finished run, whatever became of the run.
        self._end(run, "FAILED" if run.name in self._incomplete else "FINISHED")

    @hookimpl(trylast=True)
    def adaptkit_run_failed(self, run: RunStart, error: BaseException) -> None:
        """End the run as what it is: KILLED after a signal, FAILED after an error, with its traceback."""
        if run.name in self._ended:  # what failed came after the run
            return
        status = status_after(error)
        if not self._outbox.is_open(self.local_id(run)):  # it failed before its first batch
            self._start(run)
        if status == "FAILED":
            self._try(run.name, "recording the error", self._put_error, run, error)
        self._end(run, status)

    def _start(self, run: RunStart) -> None:
        local_id, tags = self.local_id(run), self._tags | dict(run.tags)
        runs: dict[str, str] = {}
        events: list[Event]
        self._outbox.open(local_id, run.name)
        if run.name in self._resumed:
            # Its process may have died before it had written all of its beginning; where it is there, nothing changes.
            events = [Reopen(self._resumed[run.name].run_id), Log(tags=tags), *begin_run(run, {}, {})[1:]]
        else:
            if run.kind == "base":
                self._base = local_id
            else:
                tags |= self._own_tags | ({PARENT_TAG: self._parent} if self._parent is not None else {})
                others = {PARENT_TAG: self.group_id, BASE_RUN_ID_TAG: self._base}
                runs = {tag: other for tag, other in others.items() if other is not None and tag not in tags}
            events = begin_run(run, tags, runs)
        self._outbox.tell(local_id, *events)
        run_id = self._outbox.wait_for_id(local_id)
        if run_id is not None and self._outbox.is_settled:
            # Where the store is slow or away, MLflow would ask it, again and again, before it took the run for active.
            with contextlib.suppress(Exception):
                self._active = ActiveRun(self.store.uri, run_id)

    def _tell(self, run: RunStart, event: Event) -> None:
        self._outbox.tell(self.local_id(run), event)

    def _put(
        self, run: RunStart, name: str, write: Callable[[Path], object], path: str | None = None, signed: bool = False
    ) -> Path:
        return self._outbox.put(self.local_id(run), name, write, path, signed)

    def _put_artifacts(self, run: RunStart, result: RunResult) -> None:
        if run.name in self._kept:
            files = {name: path for name, path in result.files.items() if not name.startswith(f"{ADAPTER}/")}
            result = dataclasses.replace(result, files=files)
        self._put(run, "artifacts", lambda folder: write_artifacts(folder, run, result))

    def _put_error(self, run: RunStart, error: BaseException) -> None:
        text = self.store.without_secrets("".join(traceback.format_exception(error)))
        line = self.store.without_secrets(" ".join(str(error).split()) or type(error).__name__)
        self._tell(run, Log(tags={ERROR_TAG: line[:TAG_LENGTH]}))
        self._put(run, "error", lambda folder: (folder / ERROR_FILE).write_text(text, encoding="utf-8"))

    def _end(self, run: RunStart, status: str) -> None:
        self._tell(run, End(status, now()))
        if self._active is not None:
            with contextlib.suppress(Exception):  # the record has its end
                self._active.end(status, self._outbox.is_settled)
        # Only now: a signal until here ends the run once more, as KILLED.
        self._active = None
        self._ended.add(run.name)

    def _try(self, name: str, doing: str, action: Callable[..., T], *arguments: Any) -> T | None:
        """Do this; note it when it fails."""
        try:
            return action(*arguments)
        except Exception as error:  # a disk's, a figure's or the store's: the training's results are not lost for it
            if (cause := origin(error)) is not error:
                raise cause from error
            reason = self.store.without_secrets(first_line(error))
            self.fault = self.fault or f"the record of {name} is incomplete: {doing} failed: {reason}"
            self._incomplete.add(name)
            return None
