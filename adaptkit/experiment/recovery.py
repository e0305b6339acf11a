"""Keep checkpoints of an experiment's runs while they are made, and start from those that are there."""

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
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from adaptkit.events import Epoch, RunStart
from adaptkit.experiment.prepare import Experiment
from adaptkit.system.files import write_bytes
from adaptkit.system.folders import state_folder
from adaptkit.training.checkpoints import Checkpoint, Keep, read_checkpoint, unseen, write_checkpoint

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Resumed, Tracker

RECORD, CHECKPOINT, LOCK = "record.json", "checkpoint.safetensors", "lock"
#: seconds after which a folder without a record is taken for abandoned
ABANDONED = 3600.0
#: what a record's fields may hold, by what they are declared as
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
    """What it takes to go on with a run, or with the runs that a run of kind comparison groups.

    `config` are the settings that repeat it; relative paths in them start in `folder`. `reuse` tells whether features
    of frozen layers are computed once; `no_checkpoint`, if anything, why a checkpoint would not hold all of it.
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
    started: float = field(default_factory=time.time)


class Claim:
    """The folder of one run, which this process alone may write while it holds the claim."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @property
    def checkpoint(self) -> Path:
        """Return the file of the run's latest checkpoint; it need not exist."""
        return self.path / CHECKPOINT

    def write(self, record: RecoveryRecord) -> None:
        """Write what the run is; raises OSError."""
        text = json.dumps(dataclasses.asdict(record), indent=2)
        write_bytes(self.path / RECORD, f"{text}\n".encode())

    def release(self) -> None:
        """Let others go on with the run."""
        self._lock.release()

    def discard(self) -> None:
        """Remove all that is kept of the run: it has ended."""
        for path in self.path.glob("*"):
            if path.name != LOCK:
                path.unlink(missing_ok=True)
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)


def folder_of(local_id: str) -> Path:
    """Return the folder of a run by its local id; it need not exist."""
    return state_folder() / "runs" / local_id


def claim(local_id: str) -> Claim | None:
    """Hold the folder of a run, made if need be; None if another process holds it. Raises OSError."""
    path = folder_of(local_id)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return Claim(path, lock)


def is_held(local_id: str) -> bool:
    """Tell whether a process, on any machine that shares the folder, is making a run."""
    if not (folder_of(local_id) / LOCK).exists():
        return False
    held = claim(local_id)
    if held is None:
        return True
    held.release()
    return False


def read_record(local_id: str) -> RecoveryRecord | None:
    """Return what is kept of a run; None if nothing is, or it is damaged."""
    try:
        content = json.loads((folder_of(local_id) / RECORD).read_bytes())
        record = RecoveryRecord(**content)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    sound = all(
        isinstance(getattr(record, one.name), TYPES[str(one.type)]) for one in dataclasses.fields(RecoveryRecord)
    )
    return record if sound and record.local_id == local_id else None


def records() -> Iterator[RecoveryRecord]:
    """Yield what is kept of all runs, those that began first before the others."""
    folder = state_folder() / "runs"
    found = (read_record(path.name) for path in folder.glob("*")) if folder.is_dir() else ()
    yield from sorted((record for record in found if record is not None), key=lambda record: record.started)


def is_damaged(local_id: str) -> bool:
    """Tell whether what is kept of a run says what it is, but not so that it can go on. Raises OSError."""
    path = folder_of(local_id) / RECORD
    # Looked for once more at the end: whoever held it may just have removed it.
    return path.exists() and read_record(local_id) is None and not is_held(local_id) and path.exists()


def damaged_records() -> list[Path]:
    """Return the folders of runs that cannot go on since what is kept of them is damaged; none that is in use."""
    folder, found = state_folder() / "runs", []
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if is_damaged(path.name):
                found.append(path)
    return found


def remove_leftovers() -> None:
    """Remove folders of runs whose process died before it had written what they are, or while it removed them."""
    folder = state_folder() / "runs"
    for path in folder.glob("*") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            is_old = time.time() - path.stat().st_mtime > ABANDONED
            if is_old and not (path / RECORD).exists() and (held := claim(path.name)) is not None:
                held.discard()


def file_digest(path: str) -> str:
    """Return the sha256 of a plugin's file; raises OSError."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


#: what decides the last digits of results
DISTRIBUTIONS = ("adaptkit-vision", "torch", "torchvision", "numpy")


class RunRecovery:
    """What is kept of one run: nothing, where runs are not kept. The store has its first `logged` epochs."""

    def __init__(
        self, keeping: Recovery | None = None, held: Claim | None = None, record: RecoveryRecord | None = None
    ) -> None:
        self._keeping, self._claim, self._record = keeping, held, record
        self._resumed = keeping.resumed.get(record.name) if keeping and record else None
        self._told = False

    def start(self, model: nn.Module, acts: bool = False) -> Checkpoint | None:
        """Return the checkpoint from which a model, as it is before it is trained, goes on; None: from the beginning.

        Of a strategy that `acts` between steps none is kept: what it remembers is nobody else's to know.
        """
        if self._claim is None or self._record is None:
            return None
        reason = "its strategy acts between steps" if acts else unseen(model)
        found = None
        if reason is not None:
            self._give_up(reason)
        else:
            try:
                found = read_checkpoint(self._claim.checkpoint, self._record.local_id)
                if (misfit := found.misfit(model)) is not None:
                    raise ValueError(misfit)
            except FileNotFoundError:
                reason = self._record.no_checkpoint or "no epoch of it had ended"
            except ValueError as error:
                found, reason = None, f"its checkpoint cannot be used ({error})"
        if self._resumed is not None and self._keeping is not None:
            if found is None:
                self._keeping.notice(f"{self._record.name}: trained again from its first epoch: {reason}")
            else:
                self._keeping.notice(f"{self._record.name}: goes on after epoch {len(found.epochs)}")
        return found

    def lacks(self, epoch: Epoch) -> bool:
        """Tell whether watchers have not been told of an epoch."""
        return self._resumed is None or epoch.number > self._resumed.epochs

    @property
    def keep(self) -> Keep | None:
        """Return what is done with each epoch's checkpoint; None if there is to be none."""
        return self._keep if self._record is not None and self._record.no_checkpoint is None else None

    def _keep(self, found: Checkpoint | str) -> None:
        assert self._claim is not None and self._record is not None and self._keeping is not None
        try:
            if isinstance(found, str):
                self._give_up(found)
            elif self._record.no_checkpoint is None:
                write_checkpoint(self._claim.checkpoint, found, self._record.local_id)
        except OSError as error:
            self._tell(error)

    def _give_up(self, reason: str) -> None:
        assert self._claim is not None and self._record is not None
        if self._record.no_checkpoint is not None:
            return
        self._record = dataclasses.replace(self._record, no_checkpoint=reason)
        try:
            # First: an earlier checkpoint holds all there was then, but not what was kept outside since.
            self._claim.checkpoint.unlink(missing_ok=True)
            self._claim.write(self._record)
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        assert self._keeping is not None and self._claim is not None
        if not self._told:
            self._keeping.notice(_unwritten(self._claim.path, error))
        self._told = True


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Keep the runs of one tracked experiment; `resumed` are those, by name, that go on, `claims` their folders.

    `left` are the runs that a signal has stopped; `parent` is the local id of what groups a run that goes on alone.
    """

    experiment: Experiment
    tracker: Tracker
    reuse: bool
    notice: Callable[[str], None]
    report: Path | None = None
    resumed: Mapping[str, Resumed] = dataclasses.field(default_factory=dict)
    claims: dict[str, Claim] = dataclasses.field(default_factory=dict)
    left: list[str] = dataclasses.field(default_factory=list)
    parent: str | None = None

    @contextmanager
    def run(self, run: RunStart, config: str, base_fingerprint: str | None = None) -> Iterator[RunRecovery]:
        """Keep a run while it is made; forget it when it has ended, but not when a signal stopped it."""
        record = self._record(
            self.tracker.local_id(run),
            run.kind,
            run.name,
            config,
            parent=(self.parent or self.tracker.group_id) if run.kind == "adaptation" else None,
            base_fingerprint=base_fingerprint,
            params={key: str(value) for key, value in run.params.items()},
        )
        with self._kept(record, lambda: self.tracker.run_id(run.name)) as kept:
            yield kept

    @contextmanager
    def group(self) -> Iterator[None]:
        """Keep what the run that groups this experiment's runs is made of, while they are made."""
        group, request = self.tracker.group_id, self.experiment.request
        if group is None:
            yield
            return
        record = self._record(group, "comparison", request.group_name, request.command_text())
        with self._kept(record, lambda: self.tracker.parent_id):
            yield

    def _record(self, local_id: str, kind: str, name: str, config: str, **known: Any) -> RecoveryRecord:
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
            **known,
        )

    @contextmanager
    def _kept(self, record: RecoveryRecord, run_id: Callable[[], str | None]) -> Iterator[RunRecovery]:
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
            self.notice(_unwritten(folder_of(record.local_id), error))
        if held is None:
            yield RunRecovery()
            return
        try:
            yield RunRecovery(self, held, record)
        except KeyboardInterrupt:
            held.release()
            self.left.append(run_id() or "--all")  # a store that is slow or away has no id for it yet
            raise
        except BaseException:
            held.discard()
            raise
        held.discard()

    def hint(self, tracking_uri: str | None) -> str | None:
        """Return the command that goes on with what a signal has stopped; None if nothing was kept of it."""
        if not self.left:
            return None
        words = ["adaptkit", "resume", self.left[-1]]
        if tracking_uri is not None:
            words += ["--tracking-uri", self.tracker.store.without_secrets(tracking_uri)]
        return shlex.join(words)


@contextmanager
def kept_while(
    keeping: Recovery | None, run: RunStart, config: str, base_fingerprint: str | None = None
) -> Iterator[RunRecovery]:
    """Keep a run while it is made, if runs are kept."""
    if keeping is None:
        yield RunRecovery()
        return
    with keeping.run(run, config, base_fingerprint) as kept:
        yield kept


def versions() -> dict[str, str]:
    """Return the versions of what decides the last digits of results."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _command() -> str:
    """Return what was typed, or which script calls."""
    name = Path(sys.argv[0]).name
    return shlex.join(["adaptkit" if name == "__main__.py" else name, *sys.argv[1:]])


def _unwritten(path: Path, error: OSError) -> str:
    return f"no checkpoints are kept: cannot write to {path} ({error.strerror or error}); the run cannot be resumed"
