"""Run trials on a Ray cluster: workers are actors, each with its share of a machine; lost ones are replaced."""

from __future__ import annotations

import dataclasses
import os
import pickle
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from adaptkit import __version__
from adaptkit.errors import AdaptkitError, BadInput, RunFailed, located
from adaptkit.signals import require_none
from adaptkit.sweeps.tasks import Ended, Started, Task, Tell, ignore

if TYPE_CHECKING:
    from adaptkit.outcome import RunRecord
    from adaptkit.sweeps.engines import Setting
    from adaptkit.sweeps.materials import Material
    from adaptkit.sweeps.worker import Place, Worker
    from adaptkit.tracking.store import Store

#: how often a trial whose worker was lost is tried again
RETRIES = 3
#: seconds after which one looks whether the cluster has grown or shrunk
LOOK = 2.0
#: seconds without any machine that could run a trial after which a sweep gives up
PATIENCE = 60.0
#: variables that workers on other machines need as they are here
SENT = ("ADAPTKIT_", "MLFLOW_TRACKING_", "MLFLOW_HTTP_", "MLFLOW_S3_")

#: what has to be the same on all machines
Version = tuple[str, str]
VERSION: Version = (__version__, ".".join(map(str, sys.version_info[:2])))


class RayEngine:
    """The engine `ray`: as many trials at a time as the cluster, or `--jobs`, allows.

    A trial whose worker was lost, alone or with its machine, is run again by another.
    """

    def __init__(self, place: Place, materials: Sequence[Material], setting: Setting, store: Store) -> None:
        try:
            # In a parcel of their own: plugins must be there before what they have made is unpacked.
            self._packed: bytes = pickle.dumps(tuple(materials))
        except Exception as error:
            raise BadInput(f"--engine ray: these things cannot be sent to other processes: {error}") from None
        self._place = place
        self._setting = setting
        self._store = store
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task, int]] = {}
        self._returned: list[tuple[Task, int]] = []
        self._left = ExitStack()

    def __enter__(self) -> RayEngine:
        import ray

        from adaptkit.sweeps.ray_cluster import joined

        self._left.enter_context(joined(self._setting))
        self._parcel = ray.put(self._packed)
        self._packed = b""
        self._kind = ray.remote(
            num_cpus=self._setting.cpus_per_trial, num_gpus=self._setting.gpus_per_trial, max_restarts=0
        )(Hand)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers; runs that were under way end as killed."""
        import ray

        from adaptkit.tracking.sweeps import end_dead

        with self._left:
            busy = list(self._busy)
            for actor in [*self._idle, *(actor for actor, _, _ in self._busy.values())]:
                ray.kill(actor)
            self._idle, self._busy, self._returned = [], {}, []
            if busy:
                ray.wait(busy, num_returns=len(busy), timeout=5)  # until they are dead: nobody writes after us
            # Also those that lost workers have left behind.
            end_dead(self._store, self._place.parent)

    def run(self, tasks: Iterable[Task], tell: Tell) -> Iterator[Ended]:
        """Yield each task when it has ended."""
        import ray

        waiting = iter(tasks)
        is_over = False
        seen = time.monotonic()
        while True:
            require_none()
            room = self._room()
            while len(self._busy) < room and not (is_over and not self._returned):
                given = (
                    self._returned.pop() if self._returned else ((task, 0) if (task := next(waiting, None)) else None)
                )
                if given is None:
                    is_over = True
                else:
                    self._submit(*given, tell)
            # Nothing is left for them, or the cluster has shrunk: others may be waiting for their share of a machine.
            while self._idle:
                ray.kill(self._idle.pop())
            if not self._busy:
                if is_over and not self._returned:
                    return
                if time.monotonic() - seen > PATIENCE:
                    raise RunFailed(
                        "the Ray cluster has no machine left that could run a trial; the same command goes on"
                    )
                time.sleep(LOOK)
                continue
            seen = time.monotonic()
            for answer in ray.wait(list(self._busy), timeout=LOOK)[0]:
                ended = self._hear(answer)
                if ended is not None:
                    yield ended

    def _room(self) -> int:
        from adaptkit.sweeps.ray_cluster import slots

        found = slots(self._setting)
        return found if self._setting.jobs is None else min(self._setting.jobs, found)

    def _submit(self, task: Task, attempt: int, tell: Tell) -> None:
        if self._idle:
            actor = self._idle.pop()
        else:
            sent = {name: value for name, value in os.environ.items() if name.startswith(SENT)}
            setting = self._setting
            device = "cuda" if setting.gpus_per_trial else None
            actor = self._kind.remote(
                VERSION, socket.gethostname(), sent, self._place, setting.cpus_per_trial, device, self._parcel
            )
        self._busy[actor.perform.remote(task, attempt)] = (actor, task, attempt)
        tell(Started(task))

    def _hear(self, answer: Any) -> Ended | None:
        """Return how a task has ended; None if its worker was lost, and it is to be run again."""
        import ray
        from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

        actor, task, attempt = self._busy.pop(answer)
        try:
            record = ray.get(answer)
        except RayTaskError as error:
            ray.kill(actor)
            raise RunFailed(f"a worker failed: {located(error.cause)}") from error
        except RayActorError as error:
            if isinstance(error, ActorDiedError) and error.actor_init_failed:
                raise RunFailed(f"a worker cannot be started: {_last_line(error)}") from None
            ray.kill(actor)  # if it is only out of reach: nobody would hear of what it does
            return self._lost(task, attempt, _reason(error))
        if isinstance(record, AdaptkitError):
            raise record
        self._idle.append(actor)
        return Ended(task, record)

    def _lost(self, task: Task, attempt: int, reason: str) -> Ended | None:
        from adaptkit.sweeps.worker import failed

        if attempt < RETRIES:
            self._returned.append((task, attempt + 1))
            return None
        return Ended(task, failed(task, f"its worker was lost {attempt + 1} times; at last: {reason}"))


class Hand:
    """A worker on some machine of the cluster; what it needs is opened with its first task, and kept."""

    def __init__(
        self,
        version: Version,
        sender: str,
        environment: Mapping[str, str],
        place: Place,
        threads: int,
        device: str | None,
        parcel: bytes,
    ) -> None:
        here = socket.gethostname()
        # A folder of the sender's machine says nothing on another.
        os.environ.update(
            {name: value for name, value in environment.items() if name != "ADAPTKIT_CACHE" or here == sender}
        )
        self._there = version
        self._place = place
        self._threads = threads
        self._device = device
        self._parcel = parcel
        self._worker: Worker | None = None

    def perform(self, task: Task, attempt: int) -> RunRecord | AdaptkitError:
        """Make a task's run, on the device that there is here; return what is wrong if this machine cannot run any."""
        try:
            worker = self._worker = self._worker or self._open()
        except AdaptkitError as error:
            return type(error)(*(f"{socket.gethostname()}: {line}" for line in error.problems))
        device = self._device or ("cpu" if task.params["device"] == "cuda" else task.params["device"])
        return worker.perform(dataclasses.replace(task, params={**task.params, "device": device}), ignore, attempt)

    def _open(self) -> Worker:
        if self._there != VERSION:
            raise BadInput(
                f"adaptkit {VERSION[0]} on Python {VERSION[1]} is installed here, but the sweep's is "
                f"{self._there[0]} on {self._there[1]}"
            )
        from adaptkit.experiment.hardware import keep_freed_memory
        from adaptkit.experiment.sharing import Seat
        from adaptkit.loading import load_plugins
        from adaptkit.sweeps.materials import use_threads
        from adaptkit.sweeps.worker import Worker
        from adaptkit.tracking.store import open_store
        from adaptkit.tracking.sweeps import require_parent

        keep_freed_memory()
        use_threads(self._threads)
        plugins = load_plugins(self._place.plugin_files)
        materials = pickle.loads(self._parcel)
        self._parcel = b""
        store = open_store(self._place.tracking_uri, self._place.experiment)
        require_parent(store, self._place.parent)
        return Worker(self._place, materials, plugins, store, Seat().__enter__())  # it dies with this process


def _reason(error: Exception) -> str:
    """Return why a worker was lost, in one line: Ray says it in many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("The actor died because", "The actor is dead because"))]
    return (told or lines or [type(error).__name__])[0]


def _last_line(error: Exception) -> str:
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
