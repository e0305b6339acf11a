"""Who runs the trials of a sweep: this process, several, or a Ray cluster, behind one interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from adaptkit.errors import BadInput, suggestion
from adaptkit.sweeps.tasks import Ended, Task, Tell

if TYPE_CHECKING:
    from adaptkit.experiment.sharing import Seat
    from adaptkit.plugins import Plugins
    from adaptkit.sweeps.materials import Material
    from adaptkit.sweeps.worker import Place
    from adaptkit.tracking.store import Store

ENGINES = ("local", "ray")


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


@dataclass(frozen=True)
class Setting:
    """Which engine runs the trials, and how many at a time."""

    name: str = "local"
    jobs: int = 1

    def check(self, plugins: Plugins) -> None:
        """Raise BadInput for an engine that there is not, or that cannot run what these plugins offer."""
        if self.name not in ENGINES:
            raise BadInput(f"--engine: unknown engine {self.name!r}{suggestion(self.name, ENGINES)}")
        if self.jobs < 1:
            raise BadInput(f"--jobs: must be at least 1, not {self.jobs}")
        objects = [source.origin for source in plugins.sources if source.kind == "object"]
        if objects and (self.jobs > 1 or self.name != "local"):
            listed = ", ".join(objects)
            raise BadInput(f"--jobs {self.jobs}: {listed} is an object of this process: use one job, or a plugin file")


def open_engine(
    setting: Setting, place: Place, materials: Sequence[Material], plugins: Plugins, store: Store, seat: Seat
) -> Engine:
    """Return the engine that is asked for, with what its workers need."""
    from adaptkit.experiment.hardware import usable_cores
    from adaptkit.sweeps.inline import InlineEngine
    from adaptkit.sweeps.processes import ProcessEngine
    from adaptkit.sweeps.worker import Worker

    if setting.jobs == 1:
        return InlineEngine(Worker(place, materials, plugins, store, seat))
    return ProcessEngine(place, materials, setting.jobs, max(1, usable_cores() // setting.jobs))
