"""Who runs the trials of a sweep: this process, several, or a Ray cluster, behind one interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """Which engine runs the trials, and how many at a time: by default one, or as many as a Ray cluster has room for.

    The rest is Ray's: what each trial asks for, and the address of a cluster; without one, Ray is started here.
    """

    name: str = "local"
    jobs: int | None = None
    cpus_per_trial: int = 1
    gpus_per_trial: float = 0
    ray_address: str | None = None

    def check(self, plugins: Plugins, device: str = "auto") -> None:
        """Raise BadInput for an engine that there is not, or that cannot run what these plugins offer, or there."""
        if self.name not in ENGINES:
            raise BadInput(f"--engine: unknown engine {self.name!r}{suggestion(self.name, ENGINES)}")
        if self.jobs is not None and self.jobs < 1:
            raise BadInput(f"--jobs: must be at least 1, not {self.jobs}")
        if self.name == "local" and (self.cpus_per_trial, self.gpus_per_trial, self.ray_address) != (1, 0, None):
            raise BadInput("--cpus-per-trial, --gpus-per-trial and --ray-address are for --engine ray")
        objects = [source.origin for source in plugins.sources if source.kind == "object"]
        if objects and (self.name != "local" or (self.jobs or 1) > 1):
            who = "--engine ray" if self.name != "local" else f"--jobs {self.jobs}"
            listed = ", ".join(objects)
            raise BadInput(f"{who}: {listed} is an object of this process: use one job, or a plugin file")
        if self.name == "ray":
            from adaptkit.sweeps.ray_cluster import check_request

            check_request(self, device)


def joined(setting: Setting) -> AbstractContextManager[None]:
    """Be connected to the cluster of an engine that has one during a block; raise BadInput if that cannot be."""
    if setting.name != "ray":
        return nullcontext()
    from adaptkit.sweeps import ray_cluster

    return ray_cluster.joined(setting)


def engine_notices(setting: Setting, store: Store) -> tuple[str, ...]:
    """Return what the user must know, before training, of workers on other machines; the cluster must be joined."""
    if setting.name != "ray" or not store.uri.startswith("sqlite"):
        return ()
    from adaptkit.sweeps.ray_cluster import foreign_hosts

    hosts = foreign_hosts()
    if not hosts:
        return ()
    return (
        f"the tracking store is a file of this machine, and trials run on {', '.join(hosts)} too: its folder has to be "
        "shared with them, or use an MLflow server (--tracking-uri http://HOST:PORT)",
    )


def open_engine(
    setting: Setting, place: Place, materials: Sequence[Material], plugins: Plugins, store: Store, seat: Seat
) -> Engine:
    """Return the engine that is asked for, with what its workers need."""
    from adaptkit.experiment.hardware import usable_cores
    from adaptkit.sweeps.inline import InlineEngine
    from adaptkit.sweeps.processes import ProcessEngine
    from adaptkit.sweeps.worker import Worker

    if setting.name == "ray":
        from adaptkit.sweeps.ray_engine import RayEngine

        return RayEngine(place, materials, setting, store)
    jobs = setting.jobs or 1
    if jobs == 1:
        return InlineEngine(Worker(place, materials, plugins, store, seat))
    return ProcessEngine(place, materials, jobs, max(1, usable_cores() // jobs))
