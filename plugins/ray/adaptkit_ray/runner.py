"""Run trials in actors of a Ray cluster, each with its share of a machine, and replace lost workers."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from adaptkit.errors import AdaptkitError, BadInput, RunFailed, located
from adaptkit.sweeps.engines.tasks import Ended, Started, Task, Tell, ignore
from adaptkit.system.signals import require_none
from adaptkit.version import __version__

if TYPE_CHECKING:
    from adaptkit.experiment.outcome import RunSummary
    from adaptkit.sweeps.engines.worker import Work, Worker
    from adaptkit_ray import Ray

#: Maximum number of times that a trial is run again after its worker was lost.
RETRIES = 3
#: Seconds between two queries of the size of the cluster.
POLL_SECONDS = 2.0
#: Seconds to wait for a machine that can run a trial, before the sweep stops.
WAIT_SECONDS = 60.0
#: Prefixes of environment variables that are copied to the workers.
SENT = ("ADAPTKIT_", "MLFLOW_TRACKING_", "MLFLOW_HTTP_", "MLFLOW_S3_")

#: The versions that must be the same on all machines.
Version = tuple[str, str]
VERSION: Version = (__version__, ".".join(map(str, sys.version_info[:2])))


class RayRunner:
    """The workers of the engine `ray`. The cluster or `--jobs` limits their number.

    If a worker or its machine is lost, another worker runs its trial again.
    """

    def __init__(self, options: Ray, work: Work) -> None:
        self._packed = work.packed(f"--engine {options.name}")
        self._options = options
        self._work = work
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task, int]] = {}
        self._returned: list[tuple[Task, int]] = []

    def __enter__(self) -> RayRunner:
        import ray

        self._parcel = ray.put(self._packed)
        self._packed = b""
        self._kind = ray.remote(
            num_cpus=self._options.cpus_per_trial, num_gpus=self._options.gpus_per_trial, max_restarts=0
        )(Actor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers, and end their unfinished runs as killed."""
        import ray

        busy = list(self._busy)
        for actor in [*self._idle, *(actor for actor, _, _ in self._busy.values())]:
            ray.kill(actor)
        self._idle, self._busy, self._returned = [], {}, []
        if busy:
            ray.wait(busy, num_returns=len(busy), timeout=5)  # so that no worker writes to its run after it was ended
        self._work.end_lost_runs()

    def run(self, tasks: Iterable[Task], tell: Tell) -> Iterator[Ended]:
        """Yield each task when it has ended."""
        import ray

        waiting = iter(tasks)
        is_over = False
        last_seen = time.monotonic()
        while True:
            require_none()
            room = self._room()
            while len(self._busy) < room and not (is_over and not self._returned):
                task, attempt = self._returned.pop() if self._returned else (next(waiting, None), 0)
                if task is None:
                    is_over = True
                else:
                    self._submit(task, attempt, tell)
            # These workers have no trials, or the cluster has become smaller. Free their share of a machine.
            while self._idle:
                ray.kill(self._idle.pop())
            if not self._busy:
                if is_over and not self._returned:
                    return
                if time.monotonic() - last_seen > WAIT_SECONDS:
                    raise RunFailed(
                        "the Ray cluster has no machine left for a trial; run the same command again to continue"
                    )
                time.sleep(POLL_SECONDS)
                continue
            last_seen = time.monotonic()
            for answer in ray.wait(list(self._busy), timeout=POLL_SECONDS)[0]:
                ended = self._ended(answer)
                if ended is not None:
                    yield ended

    def _room(self) -> int:
        from adaptkit_ray.cluster import slots

        available, jobs = slots(self._options), self._work.jobs
        return available if jobs is None else min(jobs, available)

    def _submit(self, task: Task, attempt: int, tell: Tell) -> None:
        if self._idle:
            actor = self._idle.pop()
        else:
            sent = {name: value for name, value in os.environ.items() if name.startswith(SENT)}
            device = "cuda" if self._options.gpus_per_trial else None
            actor = self._kind.remote(
                version=VERSION,
                sender=socket.gethostname(),
                environment=sent,
                threads=self._options.cpus_per_trial,
                device=device,
                parcel=self._parcel,
            )
        self._busy[actor.perform.remote(task, attempt)] = (actor, task, attempt)
        tell(Started(task))

    def _ended(self, answer: Any) -> Ended | None:
        """Return the result of a task; None if its worker was lost and the task must run again."""
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
            ray.kill(actor)  # it may be unreachable but still running
            return self._lost(task, attempt, _reason(error))
        if isinstance(record, AdaptkitError):
            raise record
        self._idle.append(actor)
        return Ended(task, record)

    def _lost(self, task: Task, attempt: int, reason: str) -> Ended | None:
        from adaptkit.sweeps.engines.worker import failed

        if attempt < RETRIES:
            self._returned.append((task, attempt + 1))
            return None
        return Ended(task, failed(task, f"its worker was lost {attempt + 1} times, the last time because: {reason}"))


class Actor:
    """A worker on a machine of the cluster, which is opened for its first task and reused."""

    def __init__(
        self,
        *,
        version: Version,
        sender: str,
        environment: Mapping[str, str],
        threads: int,
        device: str | None,
        parcel: bytes,
    ) -> None:
        here = socket.gethostname()
        # The cache folder of the machine of the sweep may not exist on this machine.
        os.environ.update(
            {name: value for name, value in environment.items() if name != "ADAPTKIT_CACHE" or here == sender}
        )
        self._sweep_version = version
        self._threads = threads
        self._device = device
        self._parcel = parcel
        self._worker: Worker | None = None

    def perform(self, task: Task, attempt: int) -> RunSummary | AdaptkitError:
        """Run a task on the device of this machine; return the error if this machine cannot run any task."""
        try:
            worker = self._worker = self._worker or self._open()
        except AdaptkitError as error:
            return type(error)(*(f"{socket.gethostname()}: {line}" for line in error.problems))
        device = self._device or ("cpu" if task.params["device"] == "cuda" else task.params["device"])
        return worker.perform(dataclasses.replace(task, params={**task.params, "device": device}), ignore, attempt)

    def _open(self) -> Worker:
        if self._sweep_version != VERSION:
            raise BadInput(
                f"adaptkit {VERSION[0]} on Python {VERSION[1]} is installed here, but the sweep uses "
                f"{self._sweep_version[0]} on {self._sweep_version[1]}"
            )
        from adaptkit.sweeps.engines.worker import open_worker
        from adaptkit.system.core_sharing import Seat

        worker = open_worker(self._parcel, Seat().__enter__(), self._threads)  # the seat exists until this process ends
        self._parcel = b""
        worker.require_parent()
        return worker


def _reason(error: Exception) -> str:
    """Return the line of Ray's message with the reason why a worker was lost."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(("The actor died because", "The actor is dead because"))]
    return (reasons or lines or [type(error).__name__])[0]


def _last_line(error: Exception) -> str:
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
