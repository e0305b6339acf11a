"""Record unfinished runs with their checkpoints in the state folder, so that they can be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import nn

from adaptkit.events import Epoch, RunStart
from adaptkit.experiment.prepare import Experiment
from adaptkit.system.files import write_bytes
from adaptkit.system.folders import state_folder
from adaptkit.training.checkpoints import DAMAGE, Checkpoint, Keep, read_checkpoint, uncaptured, write_checkpoint

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Resumed, Tracker

T = TypeVar("T")

RECORD, CHECKPOINT, LOCK = "record.json", "checkpoint.safetensors", "lock"
#: seconds after which a folder without a record counts as abandoned
ABANDONED = 3600.0
#: types of valid values, by the declared type of a record's field
TYPES: Mapping[str, Any] = {
    "str": str,
    "str | None": str | None,
    "int": int,
    "bool": bool,
    "float": int | float,
    "Mapping[str, str]": dict,
}


@dataclass(frozen=True)
class RecoveryRecord:
    """Everything needed to resume a run, or the runs of a parent run (kind comparison).

    `config` holds the settings; relative paths in it start in `folder`. `reuse` is true if features of frozen layers
    are cached. `no_checkpoint` is the reason if the run cannot be checkpointed. With `refit`, the command trains the
    best strategy on all labels after its runs, and the record stays until that is done; `calibrate` belongs to it.
    """

    local_id: str
    kind: str
    name: str
    config: str
    folder: str
    store: str
    experiment: str
    base_key: str
    data_fingerprint: str
    threads: int
    reuse: bool
    versions: Mapping[str, str]
    command: str
    parent: str | None = None
    base_fingerprint: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    plugin_files: Mapping[str, str] = field(default_factory=dict)
    report: str | None = None
    no_checkpoint: str | None = None
    refit: bool = False
    calibrate: bool = False
    started: float = field(default_factory=time.time)


class Claim:
    """Exclusive write access of this process to the folder of one run."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @property
    def checkpoint(self) -> Path:
        """Return the path of the run's latest checkpoint; the file may not exist."""
        return self.path / CHECKPOINT

    def fold(self, number: int) -> Path:
        """Return the path of the result of a finished fold; the file may not exist."""
        return self.path / f"fold-{number}.safetensors"

    def write(self, record: RecoveryRecord) -> None:
        """Write the record of the run; raises OSError."""
        text = json.dumps(dataclasses.asdict(record), indent=2)
        write_bytes(self.path / RECORD, f"{text}\n".encode())

    def release(self) -> None:
        """Release the claim, so that other processes can resume the run."""
        self._lock.release()

    def discard(self) -> None:
        """Remove the folder of a run that has ended, and release the claim."""
        for path in self.path.glob("*"):
            if path.name != LOCK:
                path.unlink(missing_ok=True)
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)


def folder_of(local_id: str) -> Path:
    """Return the folder of a run by its local id; the folder may not exist."""
    return state_folder() / "runs" / local_id


def claim(local_id: str) -> Claim | None:
    """Claim the folder of a run, creating it if needed; None if another process holds it. Raises OSError."""
    path = folder_of(local_id)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return Claim(path, lock)


def is_held(local_id: str) -> bool:
    """Check whether a process, on any machine that shares the folder, is making this run."""
    if not (folder_of(local_id) / LOCK).exists():
        return False
    held = claim(local_id)
    if held is None:
        return True
    held.release()
    return False


def read_record(local_id: str) -> RecoveryRecord | None:
    """Return the record of a run, or None if it is missing or damaged."""
    try:
        content = json.loads((folder_of(local_id) / RECORD).read_bytes())
        record = RecoveryRecord(**content)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    is_valid = all(
        isinstance(getattr(record, entry.name), TYPES[str(entry.type)]) for entry in dataclasses.fields(RecoveryRecord)
    )
    return record if is_valid and record.local_id == local_id else None


def records() -> Iterator[RecoveryRecord]:
    """Yield the records of all unfinished runs, the oldest first."""
    folder = state_folder() / "runs"
    readable = (read_record(path.name) for path in folder.glob("*")) if folder.is_dir() else ()
    yield from sorted((record for record in readable if record is not None), key=lambda record: record.started)


def is_damaged(local_id: str) -> bool:
    """Check whether the record of a run exists but cannot be read. Raises OSError."""
    path = folder_of(local_id) / RECORD
    # Checked again at the end: the process that held the folder may just have removed it.
    return path.exists() and read_record(local_id) is None and not is_held(local_id) and path.exists()


def damaged_records() -> list[Path]:
    """Return the folders of runs whose record is damaged, without folders that are in use."""
    folder, damaged = state_folder() / "runs", []
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if is_damaged(path.name):
                damaged.append(path)
    return damaged


def remove_leftovers() -> None:
    """Remove folders of runs whose process died before it wrote the record, or while it removed the folder."""
    folder = state_folder() / "runs"
    for path in folder.glob("*") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            is_old = time.time() - path.stat().st_mtime > ABANDONED
            if is_old and not (path / RECORD).exists() and (held := claim(path.name)) is not None:
                held.discard()


def file_digest(path: str) -> str:
    """Return the sha256 of a plugin's file; raises OSError."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


#: distributions whose versions can change the last digits of results
DISTRIBUTIONS = ("adaptkit-vision", "torch", "torchvision", "numpy")


def _run_of(local_id: str, fold: int) -> str:
    """Return the name of a fold of a run in its checkpoint; that of the first one is the id of the run."""
    return f"{local_id}/{fold}" if fold else local_id


class RunRecovery:
    """The checkpoint of one run. Without arguments, the run is not recorded and no checkpoint is kept."""

    def __init__(
        self, recovery: Recovery | None = None, held: Claim | None = None, record: RecoveryRecord | None = None
    ) -> None:
        self._recovery, self._claim, self._record = recovery, held, record
        self._resumed = recovery.resumed.get(record.name) if recovery and record else None
        self._has_warned = False
        self._fold = 0

    def finished_folds(self, read: Callable[[Path, int], T], count: int) -> list[T]:
        """Return the results of the folds that an interrupted run had finished; `read(path, number)` reads one."""
        results: list[T] = []
        if self._claim is None:
            return results
        for number in range(count):
            try:
                results.append(read(self._claim.fold(number), number))
            except FileNotFoundError:
                break
            except DAMAGE as error:
                if self._recovery is not None:
                    self._recovery.notice(f"fold {number + 1} is trained again: its result is damaged ({error})")
                break
        if results and self._recovery is not None and self._record is not None:
            self._recovery.notice(f"{self._record.name}: {len(results)} of {count} folds were finished")
        return results

    def keep_fold(self, number: int, write: Callable[[Path], None]) -> None:
        """Keep the result of a finished fold, and remove its checkpoint."""
        if self._claim is None:
            return
        try:
            write(self._claim.fold(number))
            self._claim.checkpoint.unlink(missing_ok=True)
        except OSError as error:
            self._warn(error)

    def start(self, model: nn.Module, has_step_hook: bool = False, fold: int = 0) -> Checkpoint | None:
        """Return the checkpoint from which training resumes; None if training starts at its first epoch.

        The checkpoint of another fold is not used. `model` is ready to be trained. Strategies with a `step_ended` hook
        and without `state_dict` are not checkpointed: their internal state is unknown.
        """
        if self._claim is None or self._record is None:
            return None
        reason = "its strategy has step_ended without state_dict" if has_step_hook else uncaptured(model)
        checkpoint = None
        if reason is not None:
            self._disable(reason)
        else:
            try:
                self._fold = fold
                checkpoint = read_checkpoint(self._claim.checkpoint, _run_of(self._record.local_id, fold))
                if (misfit := checkpoint.misfit(model)) is not None:
                    raise ValueError(misfit)
            except FileNotFoundError:
                reason = self._record.no_checkpoint or "none of its epochs had ended"
            except ValueError as error:
                checkpoint, reason = None, f"its checkpoint cannot be used ({error})"
        if self._resumed is not None and self._recovery is not None:
            if checkpoint is None:
                self._recovery.notice(f"{self._record.name}: trained again from the first epoch: {reason}")
            else:
                self._recovery.notice(f"{self._record.name}: resumed after epoch {len(checkpoint.epochs)}")
        return checkpoint

    def is_unreported(self, epoch: Epoch) -> bool:
        """Check whether an epoch of the checkpoint is missing in the tracking store: the process died in between."""
        return self._resumed is None or epoch.number > self._resumed.epochs

    @property
    def keep(self) -> Keep | None:
        """Return the function that receives each epoch's checkpoint; None if no checkpoint is kept."""
        return self._keep if self._record is not None and self._record.no_checkpoint is None else None

    def _keep(self, checkpoint: Checkpoint | str) -> None:
        assert self._claim is not None and self._record is not None and self._recovery is not None
        try:
            if isinstance(checkpoint, str):
                self._disable(checkpoint)
            elif self._record.no_checkpoint is None:
                write_checkpoint(self._claim.checkpoint, checkpoint, _run_of(self._record.local_id, self._fold))
        except OSError as error:
            self._warn(error)

    def _disable(self, reason: str) -> None:
        """Remove the checkpoint, and record why the run has none."""
        assert self._claim is not None and self._record is not None
        if self._record.no_checkpoint is not None:
            return
        self._record = dataclasses.replace(self._record, no_checkpoint=reason)
        try:
            # Remove the file first: an earlier checkpoint lacks state that the model now keeps outside its tensors.
            self._claim.checkpoint.unlink(missing_ok=True)
            self._claim.write(self._record)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        assert self._recovery is not None and self._claim is not None
        if not self._has_warned:
            self._recovery.notice(_cannot_write(self._claim.path, error))
        self._has_warned = True


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Record the unfinished runs of one tracked experiment.

    `resumed` holds the runs to resume by name, and `claims` holds their folders. `stopped` holds the ids of runs that a
    signal has stopped. `parent` is the local id of the parent run of a run that is resumed alone. With `refit`, a
    strategy is trained on all labels after the runs; until then, `kept` has the folder and the id of the ended runs.
    """

    experiment: Experiment
    tracker: Tracker
    reuse: bool
    notice: Callable[[str], None]
    report: Path | None = None
    resumed: Mapping[str, Resumed] = dataclasses.field(default_factory=dict)
    claims: dict[str, Claim] = dataclasses.field(default_factory=dict)
    stopped: list[str] = dataclasses.field(default_factory=list)
    parent: str | None = None
    refit: bool = False
    calibrate: bool = False
    kept: list[tuple[Claim, Callable[[], str | None]]] = dataclasses.field(default_factory=list)

    @contextmanager
    def run(self, run: RunStart, config: str, *, base_fingerprint: str | None = None) -> Iterator[RunRecovery]:
        """Record a run while the context is open; the record stays only if a signal stops the run."""
        record = self._record(
            self.tracker.local_id(run),
            kind=run.kind,
            name=run.name,
            config=config,
            parent=(self.parent or self.tracker.group_id) if run.kind == "adaptation" else None,
            base_fingerprint=base_fingerprint,
            params={key: str(value) for key, value in run.params.items()},
            refit=self.refit and run.kind == "adaptation" and self.parent is None and self.tracker.group_id is None,
            calibrate=self.calibrate,
        )
        with self._recorded(record, lambda: self.tracker.run_id(run.name)) as recovery:
            yield recovery

    @contextmanager
    def group(self) -> Iterator[None]:
        """Record the parent run of this experiment's runs, if there is one, while the context is open."""
        group, request = self.tracker.group_id, self.experiment.request
        if group is None:
            with self._kept_if_stopped():
                yield
            return
        record = self._record(
            group,
            kind="comparison",
            name=request.group_name,
            config=request.command_text(),
            refit=self.refit,
            calibrate=self.calibrate,
        )
        with self._recorded(record, lambda: self.tracker.parent_id):
            yield

    @contextmanager
    def refitting(self) -> Iterator[None]:
        """Remove the record of the ended runs after the context, which refits one of them, unless a signal stops it."""
        try:
            with self._kept_if_stopped():
                yield
        finally:
            for held, _ in self.kept:
                held.discard()

    @contextmanager
    def _kept_if_stopped(self) -> Iterator[None]:
        """Keep the record of the ended runs if a signal stops the context before they are refitted."""
        try:
            yield
        except KeyboardInterrupt:
            while self.kept:
                held, run_id = self.kept.pop()
                held.release()
                self.stopped.append(run_id() or "--all")
            raise

    def _record(self, local_id: str, *, kind: str, name: str, config: str, **fields: Any) -> RecoveryRecord:
        store = self.tracker.store
        return RecoveryRecord(
            local_id=local_id,
            kind=kind,
            name=name,
            config=config,
            folder=str(Path.cwd()),
            store=store.without_secrets(store.uri),
            experiment=store.experiment_name,
            base_key=self.experiment.base_key,
            data_fingerprint=self.experiment.domains.fingerprint,
            threads=torch.get_num_threads(),
            reuse=self.reuse,
            versions=versions(),
            command=store.without_secrets(_command()),
            report=None if self.report is None else str(self.report.absolute()),
            **fields,
        )

    @contextmanager
    def _recorded(self, record: RecoveryRecord, run_id: Callable[[], str | None]) -> Iterator[RunRecovery]:
        held = self.claims.pop(record.name, None)
        try:
            held = held or claim(record.local_id)
            if held is not None:
                files = {path: file_digest(path) for path in self.experiment.request.plugin_files}
                record = dataclasses.replace(record, plugin_files=files)
                held.write(record)
        except OSError as error:
            if held is not None:
                held.release()
                held = None
            self.notice(_cannot_write(folder_of(record.local_id), error))
        if held is None:
            yield RunRecovery()
            return
        try:
            yield RunRecovery(self, held, record)
        except KeyboardInterrupt:
            held.release()
            self.stopped.append(run_id() or "--all")  # a slow or unreachable store has not assigned an id yet
            raise
        except BaseException:
            held.discard()
            raise
        if record.refit:
            self.kept.append((held, run_id))
        else:
            held.discard()

    def hint(self, tracking_uri: str | None) -> str | None:
        """Return the command that resumes the run that a signal has stopped, or None if there is no such run."""
        if not self.stopped:
            return None
        words = ["adaptkit", "resume", self.stopped[-1]]
        if tracking_uri is not None:
            words += ["--tracking-uri", self.tracker.store.without_secrets(tracking_uri)]
        return shlex.join(words)


@contextmanager
def recoverable(
    recovery: Recovery | None, run: RunStart, config: str, *, base_fingerprint: str | None = None
) -> Iterator[RunRecovery]:
    """Record a run while the context is open, if the experiment has a `recovery`."""
    if recovery is None:
        yield RunRecovery()
        return
    with recovery.run(run, config, base_fingerprint=base_fingerprint) as run_recovery:
        yield run_recovery


def versions() -> dict[str, str]:
    """Return the versions of Python and of the distributions that can change the last digits of results."""
    installed = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _command() -> str:
    """Return the command line, or the name of the script that runs."""
    name = Path(sys.argv[0]).name
    return shlex.join(["adaptkit" if name == "__main__.py" else name, *sys.argv[1:]])


def _cannot_write(path: Path, error: OSError) -> str:
    return f"no checkpoints are kept: cannot write to {path} ({error.strerror or error}); the run cannot be resumed"
