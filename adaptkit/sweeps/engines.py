"""Who runs the trials of a sweep: this process, several, or a Ray cluster, behind one interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol

from adaptkit.sweeps.tasks import Ended, Task, Tell


class Engine(Protocol):
    """Run tasks, as many at a time as it has workers; they live as long as the block in which it is entered."""

    def __enter__(self) -> Engine:
        """Get ready."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs, its runs as killed, and the workers."""

    def run(self, tasks: Iterable[Task], tell: Tell) -> Iterator[Ended]:
        """Yield each task when it has ended; `tell` hears in between what goes on.

        A task is taken only when there is somebody to run it: who hands them out can stop at any time.
        """
