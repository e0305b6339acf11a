"""Keep the events of a run in a journal on disk until the tracking store has received them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adaptkit.system.folders import state_folder


@dataclass(frozen=True)
class Create:
    """Create the run; `at` is in milliseconds. `runs` are tags whose values are ids of other runs, here local ids."""

    name: str
    at: int
    tags: Mapping[str, str]
    runs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reopen:
    """Continue a run that exists in the store."""

    run_id: str


@dataclass(frozen=True)
class Log:
    """Log metrics (key, value, time in milliseconds, step), params and tags."""

    metrics: Sequence[tuple[str, float, int, int]] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """Log a data set that the run reads; `source` is JSON."""

    name: str
    digest: str
    source: str
    context: str


@dataclass(frozen=True)
class Put:
    """Upload the files in a `folder` of the journal as artifacts below `path`.

    `signed` files are downloaded after the upload and compared with the originals.
    """

    folder: str
    path: str | None = None
    signed: bool = False


@dataclass(frozen=True)
class End:
    """End the run; `at` is in milliseconds."""

    status: str
    at: int


Event = Create | Reopen | Log | Input | Put | End
KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in (Create, Reopen, Log, Input, Put, End)}


def now() -> int:
    """Return the time as MLflow stores it, in milliseconds."""
    return int(time.time() * 1000)


def points(metrics: Mapping[str, float], step: int | None = None) -> tuple[tuple[str, float, int, int], ...]:
    """Return metrics with the current time, for `Log`."""
    # For a metric that has only the step 0, MLflow's page draws a bar for each run instead of a curve.
    at = now()
    return tuple((key, float(value), at, step or 0) for key, value in metrics.items())


def to_line(number: int, event: Event) -> str:
    """Return an event and its number within its run as one line of JSON."""
    return json.dumps({"number": number, "do": type(event).__name__.lower(), **dataclasses.asdict(event)})


def from_line(line: str) -> tuple[int, Event]:
    """Return the number and the event of a line; raise ValueError if it does not hold an event."""
    try:
        fields: dict[str, Any] = json.loads(line)
        number = int(fields.pop("number"))
        event: Event = KINDS[fields.pop("do")](**fields)
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not an event: {error}") from None
    return number, event


EVENTS, SENT, ABOUT, LOCK = "events.jsonl", "sent.json", "about.json", "lock"
#: errors of reading a damaged JSON file
DAMAGE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)


def journals_folder() -> Path:
    """Return the folder of all journals."""
    return state_folder() / "journals"


@dataclass
class Journal:
    """The events of one run in a folder, and the number of events that the store has received.

    `store` is the address of the store without secrets. `run_id` is the store's id of the run, None before the run is
    created there.
    """

    folder: Path
    local_id: str
    name: str
    store: str
    experiment: str
    count: int = 0
    sent: int = 0
    run_id: str | None = None
    #: whether `Create` may have been sent before, so that the store may already contain the run
    doubtful: bool = False
    _lock: FileLock | None = field(default=None, repr=False)

    @classmethod
    def create(cls, local_id: str, name: str, store: str, experiment: str, parent: Path | None = None) -> Journal:
        """Create the journal of a new run in `parent`, by default in `journals_folder()`; raise OSError."""
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.{time.time_ns() % 10**9:09d}"
        folder = (parent or journals_folder()) / f"{stamp}-{local_id[:12]}"
        journal = cls(folder=folder, local_id=local_id, name=name, store=store, experiment=experiment)
        folder.mkdir(parents=True)
        journal._acquire()
        about = {"local_id": local_id, "name": name, "store": store, "experiment": experiment}
        _write(journal.folder / ABOUT, json.dumps(about, indent=2) + "\n")
        return journal

    def append(self, event: Event) -> None:
        """Write an event so that it survives the end of this process and a power failure; raise OSError."""
        self.count += 1
        # One write, so that a signal cannot interrupt it. The leading line break separates an incomplete line.
        line = f"\n{to_line(self.count, event)}\n".encode()
        handle = os.open(self.folder / EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)

    def unsent(self) -> list[Event]:
        """Return the events that the store does not have, without incomplete lines of a killed process."""
        events: list[Event] = []
        with contextlib.suppress(OSError):
            for line in (self.folder / EVENTS).read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    number, event = from_line(line.decode())
                    if number > self.sent:
                        events.append(event)
        return events

    def note_sent(self, count: int) -> None:
        """Record that the store has received `count` more events."""
        self.sent += count
        # If this fails, events are sent again, which has no effect.
        with contextlib.suppress(OSError):
            _write(self.folder / SENT, json.dumps({"events": self.sent, "run_id": self.run_id}) + "\n")

    def remove(self) -> None:
        """Delete the journal."""
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Unlock the journal for other processes."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _acquire(self) -> None:
        lock = FileLock(self.folder / LOCK)
        lock.acquire(timeout=0)
        self._lock = lock


def unused_journals() -> Iterator[Journal]:
    """Yield the journals that no process uses, the oldest first; each is locked until the next one is requested."""
    folder = journals_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        journal = _load(path)
        if journal is None:
            continue
        try:
            journal._acquire()
        except (Timeout, OSError):
            continue
        try:
            yield journal
        finally:
            journal.release()


def forget_sent(local_ids: Collection[str]) -> None:
    """Delete the journals of these runs if all their events are sent: other journals contain the end events."""
    for journal in unused_journals():
        if journal.local_id in local_ids and not journal.unsent():
            journal.remove()


def count_unsent(store: str) -> int:
    """Return the number of runs with unsent events for this store that no process is sending."""
    with contextlib.suppress(OSError):
        return sum(journal.store == store and bool(journal.unsent()) for journal in unused_journals())
    return 0


def _load(path: Path) -> Journal | None:
    """Return the journal in a folder; None if the folder does not hold a readable journal."""
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        local_id, name, store, experiment = (str(about[key]) for key in ("local_id", "name", "store", "experiment"))
    except (OSError, *DAMAGE):
        return None
    journal = Journal(folder=path, local_id=local_id, name=name, store=store, experiment=experiment, doubtful=True)
    with contextlib.suppress(OSError, *DAMAGE):
        sent = json.loads((path / SENT).read_text(encoding="utf-8"))
        journal.sent, journal.run_id = int(sent["events"]), sent["run_id"]
    return journal


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
