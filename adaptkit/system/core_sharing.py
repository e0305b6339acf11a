"""Who else computes on this machine: every experiment holds a seat, a locked file in the cache, while it runs."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from adaptkit.system.folders import cache_folder

#: Looking round takes milliseconds; whoever holds the door for longer hangs, and is not waited for.
DOOR_SECONDS = 5.0
#: more experiments than any machine runs at once
MOST_SEATS = 1000


@dataclass(frozen=True)
class Company:
    """Who was there at one moment: how many other experiments ran, and how many had ever begun."""

    others: int
    arrivals: int


class Seat:
    """A place among the experiments that run on this machine; the system frees it when its process dies.

    They see each other if they use the same cache folder. Where that cannot be written, an experiment counts as alone.
    """

    def __init__(self) -> None:
        # A home folder may be shared by several machines.
        self._folder = cache_folder() / "running" / socket.gethostname()
        self._lock: FileLock | None = None

    def __enter__(self) -> Seat:
        with suppress(OSError, Timeout):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._door():
                seats = (self._folder / f"{number}.lock" for number in range(MOST_SEATS))
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

    def company(self) -> Company:
        """Return how many other experiments run now, and how many have begun so far."""
        if self._lock is None:
            return Company(0, 0)
        try:
            with self._door(), ExitStack() as free:
                others = 0
                for path in self._folder.glob("*.lock"):
                    if path == Path(self._lock.lock_file):
                        continue
                    lock = _locked(path)
                    if lock is None:
                        others += 1
                    else:
                        free.callback(lock.release)
                return Company(others, self._arrivals.stat().st_size)
        except (OSError, Timeout):
            return Company(0, 0)

    def timing_since(self, before: Company) -> str:
        """Return `alone`, or `shared` if another experiment ran at any time since `before`."""
        return "shared" if before.others or self.company().arrivals != before.arrivals else "alone"

    @property
    def _arrivals(self) -> Path:
        return self._folder / "arrivals"

    def _door(self) -> FileLock:
        """Return the lock under which seats are taken and counted, so that nobody counts a seat that is only tried."""
        return FileLock(self._folder / "door", timeout=DOOR_SECONDS)


def _locked(path: Path) -> FileLock | None:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
