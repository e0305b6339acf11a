"""The journal of a run: what its tracking store shall be told, on disk first, kept until the store has it."""

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
    """A run begins; `at` is in milliseconds. `runs` are tags that hold the ids of other runs, here by local ids."""

    name: str
    at: int
    tags: Mapping[str, str]
    runs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reopen:
    """A run that the store has goes on."""

    run_id: str


@dataclass(frozen=True)
class Log:
    """Metrics (key, value, time in milliseconds, step), params and tags."""

    metrics: Sequence[tuple[str, float, int, int]] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """A data set that a run reads: `source` is JSON."""

    name: str
    digest: str
    source: str
    context: str


@dataclass(frozen=True)
class Put:
    """Files become artifacts: all in a `folder` of the journal. Where they are `signed`, they are read back."""

    folder: str
    path: str | None = None
    signed: bool = False


@dataclass(frozen=True)
class End:
    """A run has ended; `at` is in milliseconds."""

    status: str
    at: int


Event = Create | Reopen | Log | Input | Put | End
KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in (Create, Reopen, Log, Input, Put, End)}


def now() -> int:
    """Return the time in milliseconds, as MLflow counts it."""
    return int(time.time() * 1000)


def points(metrics: Mapping[str, float], step: int | None = None) -> tuple[tuple[str, float, int, int], ...]:
    """Return metrics as they are logged now."""
    # Without a step of its own (0), MLflow's page draws a bar for each run instead of a curve.
    at = now()
    return tuple((key, float(value), at, step or 0) for key, value in metrics.items())


def written(number: int, event: Event) -> str:
    """Return an event, and which of its run's it is, as one line."""
    return json.dumps({"number": number, "do": type(event).__name__.lower(), **dataclasses.asdict(event)})


def read(line: str) -> tuple[int, Event]:
    """Return the number and the event of a line; raise ValueError where it is none."""
    try:
        given: dict[str, Any] = json.loads(line)
        number = int(given.pop("number"))
        event: Event = KINDS[given.pop("do")](**given)
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no event: {error}") from None
    return number, event


EVENTS, SENT, ABOUT, LOCK = "events.jsonl", "sent.json", "about.json", "lock"
#: what reading JSON raises that somebody else wrote, or half-wrote
DAMAGE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)


def journals_folder() -> Path:
    """Return where journals are kept."""
    return state_folder() / "journals"


@dataclass
class Journal:
    """A run's events in its folder, and how many of them the store has.

    `store` is its address without secrets, `run_id` the store's id of the run, once it has one.
    """

    folder: Path
    local_id: str
    name: str
    store: str
    experiment: str
    count: int = 0
    sent: int = 0
    run_id: str | None = None
    #: the first event was sent before, and nobody knows whether it arrived
    doubtful: bool = False
    _lock: FileLock | None = field(default=None, repr=False)

    @classmethod
    def begin(cls, local_id: str, name: str, store: str, experiment: str, parent: Path | None = None) -> Journal:
        """Make the journal of a new run, where journals are kept or in this folder; raise OSError."""
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.{time.time_ns() % 10**9:09d}"
        folder = (parent or journals_folder()) / f"{stamp}-{local_id[:12]}"
        journal = cls(folder, local_id, name, store, experiment)
        folder.mkdir(parents=True)
        journal._take()
        about = {"local_id": local_id, "name": name, "store": store, "experiment": experiment}
        _write(journal.folder / ABOUT, json.dumps(about, indent=2) + "\n")
        return journal

    def append(self, event: Event) -> None:
        """Write an event, so that it outlives this process and a loss of power; raise OSError."""
        self.count += 1
        # In one piece: a signal comes before or after it. A line that is torn all the same spoils no other.
        line = f"\n{written(self.count, event)}\n".encode()
        handle = os.open(self.folder / EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)

    def unsent(self) -> list[Event]:
        """Return the events that the store does not have; one that a killed process left half-written is not there."""
        found: list[Event] = []
        with contextlib.suppress(OSError):
            for line in (self.folder / EVENTS).read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    number, event = read(line.decode())
                    if number > self.sent:
                        found.append(event)
        return found

    def note_sent(self, count: int) -> None:
        """Note that the store has so many more events."""
        self.sent += count
        # Noted or not, an event that is sent twice counts once.
        with contextlib.suppress(OSError):
            _write(self.folder / SENT, json.dumps({"events": self.sent, "run_id": self.run_id}) + "\n")

    def remove(self) -> None:
        """Remove the journal: the store has all of it."""
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Let others have the journal."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _take(self) -> None:
        lock = FileLock(self.folder / LOCK)
        lock.acquire(timeout=0)
        self._lock = lock


def left_journals() -> Iterator[Journal]:
    """Yield, the oldest first, the journals that no process has in hand; each is locked until the next is asked for."""
    folder = journals_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        journal = _found(path)
        if journal is None:
            continue
        try:
            journal._take()
        except (Timeout, OSError):
            continue
        try:
            yield journal
        finally:
            journal.release()


def forget_sent(local_ids: Collection[str]) -> None:
    """Remove journals of runs, of whatever store, that hold no more than was sent: the runs have ended elsewhere."""
    for journal in left_journals():
        if journal.local_id in local_ids and not journal.unsent():
            journal.remove()


def waiting_for(store: str) -> int:
    """Return how many runs that no process has in hand are not all in the store at this address."""
    with contextlib.suppress(OSError):
        return sum(journal.store == store and bool(journal.unsent()) for journal in left_journals())
    return 0


def _found(path: Path) -> Journal | None:
    """Return the journal in a folder; None where there is none, or none that can be read."""
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        local_id, name, store, experiment = (str(about[key]) for key in ("local_id", "name", "store", "experiment"))
    except (OSError, *DAMAGE):
        return None
    journal = Journal(path, local_id, name, store, experiment, doubtful=True)
    with contextlib.suppress(OSError, *DAMAGE):
        sent = json.loads((path / SENT).read_text(encoding="utf-8"))
        journal.sent, journal.run_id = int(sent["events"]), sent["run_id"]
    return journal


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
