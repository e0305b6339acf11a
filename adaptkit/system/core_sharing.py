"""Count the experiments that run on this machine: each one locks a file in the cache folder, its seat."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from adaptkit.system.folders import cache_folder

#: maximum time to wait for the lock of the folder; normally it is held for milliseconds
LOCK_SECONDS = 5.0
#: maximum number of experiments on one machine
MAX_SEATS = 1000


@dataclass(frozen=True)
class Occupancy:
    """The number of `others`, experiments that run now, and of `arrivals`, all experiments started so far."""

    others: int
    arrivals: int


class Seat:
    """Mark this process as running an experiment; the operating system removes the mark when the process ends.

    Experiments are counted if they use the same cache folder. If the folder cannot be written, an experiment counts as
    the only one.
    """

    def __init__(self) -> None:
        # Several machines may share a home folder.
        self._folder = cache_folder() / "running" / socket.gethostname()
        self._lock: FileLock | None = None

    def __enter__(self) -> Seat:
        with suppress(OSError, Timeout):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._folder_lock():
                seats = (self._folder / f"{number}.lock" for number in range(MAX_SEATS))
                self._lock = next(filter(None, map(_locked, seats)), None)
                with self._arrivals.open("ab") as stream:
                    stream.write(b".")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def occupancy(self) -> Occupancy:
        """Count the other experiments that are running now, and all experiments that have started so far."""
        if self._lock is None:
            return Occupancy(0, 0)
        try:
            with self._folder_lock(), ExitStack() as free:
                others = 0
                for path in self._folder.glob("*.lock"):
                    if path == Path(self._lock.lock_file):
                        continue
                    lock = _locked(path)
                    if lock is None:
                        others += 1
                    else:
                        free.callback(lock.release)
                return Occupancy(others, self._arrivals.stat().st_size)
        except (OSError, Timeout):
            return Occupancy(0, 0)

    def timing_since(self, before: Occupancy) -> str:
        """Return `alone`, or `shared` if another experiment ran at any time since `before`."""
        return "shared" if before.others or self.occupancy().arrivals != before.arrivals else "alone"

    @property
    def _arrivals(self) -> Path:
        return self._folder / "arrivals"

    def _folder_lock(self) -> FileLock:
        """Return the lock for taking and counting seats: counting locks free seats for a short time."""
        return FileLock(self._folder / "door", timeout=LOCK_SECONDS)


def _locked(path: Path) -> FileLock | None:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
