"""What is kept on this machine of each run under way, so that it can go on after its process is gone."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adaptkit.adapters.weights import write_bytes
from adaptkit.state import state_folder

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
class Record:
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

    def write(self, record: Record) -> None:
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


def read_record(local_id: str) -> Record | None:
    """Return what is kept of a run; None if nothing is, or it is damaged."""
    try:
        content = json.loads((folder_of(local_id) / RECORD).read_bytes())
        record = Record(**content)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    sound = all(isinstance(getattr(record, one.name), TYPES[str(one.type)]) for one in dataclasses.fields(Record))
    return record if sound and record.local_id == local_id else None


def records() -> Iterator[Record]:
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
