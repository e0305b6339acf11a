"""Run trials in this process, one after the other, on all its cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType

from adaptkit.sweeps.engines.tasks import Ended, Task, Tell
from adaptkit.sweeps.engines.worker import Worker


class InlineEngine:
    """Run trials in this process, without copies of the inputs; plugins may be Python objects."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __enter__(self) -> InlineEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing, because a run that is interrupted by a signal ends itself."""

    def run(self, tasks: Iterable[Task], tell: Tell) -> Iterator[Ended]:
        """Yield each task when it has ended."""
        for task in tasks:
            yield Ended(task, self._worker.perform(task, tell))
