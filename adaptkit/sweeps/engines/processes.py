"""Run trials in processes on this machine, each with its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from adaptkit.errors import AdaptkitError, RunFailed
from adaptkit.sweeps.engines.tasks import Ended, Task, Tell
from adaptkit.sweeps.engines.worker import Work, failed
from adaptkit.system.imports import safe_path
from adaptkit.system.signals import require_none
from adaptkit.system.streams import Messages

#: seconds to wait until a worker closes its run and exits, after a request to stop
EXIT_SECONDS = 15.0
#: number of consecutive workers that die before they are ready, after which the sweep stops
MOST_FAILED_STARTS = 3


@dataclass
class _Process:
    """A worker process, the connection to it, and its current task; it is `ready` after its first message."""

    process: BaseProcess
    connection: Connection
    sender: threading.Thread
    task: Task | None = None
    ready: bool = False


class ProcessEngine:
    """Run trials in N spawned processes (`--jobs N`), which inherit no state of this process.

    If a worker dies, its trial counts as failed and a new worker replaces it.
    """

    def __init__(self, work: Work, jobs: int, threads: int) -> None:
        self._parcel = pickle.dumps((threads, work.packed(f"--jobs {jobs}")))
        self._jobs = jobs
        self._workers: list[_Process] = []
        self._failed_starts = 0
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> ProcessEngine:
        self._workers = [self._start() for _ in range(self._jobs)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers; a run in progress ends as killed."""
        for worker in self._workers:
            if worker.task is not None or not worker.ready:
                worker.process.terminate()
            else:
                worker.connection.close()  # idle workers exit on end of file
        for worker in self._workers:
            worker.process.join(EXIT_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.sender.join()  # it ends when the worker stops reading
            worker.connection.close()
        self._workers = []

    def run(self, tasks: Iterable[Task], tell: Tell) -> Iterator[Ended]:
        """Yield each task when it has ended."""
        waiting = iter(tasks)
        is_over = False
        returned: list[Task] = []
        while True:
            require_none()
            for worker in self._workers:
                if not worker.ready or worker.task is not None or (is_over and not returned):
                    continue
                task = returned.pop() if returned else next(waiting, None)
                is_over = is_over or task is None
                if task is None:
                    continue
                try:
                    worker.connection.send(task)
                    worker.task = task
                except OSError:  # the worker died while it was idle
                    returned.append(task)
            if is_over and not returned and all(worker.task is None for worker in self._workers):
                return
            for worker in self._wait():
                ended = self._receive(worker, tell)
                if ended is not None:
                    yield ended

    def _start(self) -> _Process:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs,), name="adaptkit worker")
        with safe_path():  # the worker imports modules before it has the path of this process
            process.start()
        theirs.close()
        # A thread sends the inputs, because the new process reads only after it has imported its modules.
        sender = threading.Thread(target=_send, args=(ours, self._parcel), daemon=True)
        sender.start()
        return _Process(process, ours, sender)

    def _wait(self) -> list[_Process]:
        """Wait for messages, and return the workers that sent a message or died."""
        by_connection: dict[Any, _Process] = {worker.connection: worker for worker in self._workers}
        by_sentinel: dict[Any, _Process] = {worker.process.sentinel: worker for worker in self._workers}
        # A message that a worker sent before it died is still received.
        workers = [by_connection.get(source) or by_sentinel[source] for source in wait([*by_connection, *by_sentinel])]
        return list({id(worker): worker for worker in workers}.values())

    def _receive(self, worker: _Process, tell: Tell) -> Ended | None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        if message == "ready":
            worker.ready, self._failed_starts = True, 0
        elif isinstance(message, Ended):
            worker.task = None
            return message
        elif isinstance(message, AdaptkitError):
            raise message
        else:
            tell(message)
        return None

    def _replace(self, worker: _Process) -> Ended | None:
        """Start a new worker in place of a dead one; return the task of the dead one as failed."""
        worker.process.join()
        self._failed_starts += not worker.ready
        # If memory is short, the system may also kill new workers, until memory is free again.
        if self._failed_starts == (MOST_FAILED_STARTS if any(other.ready for other in self._workers) else 1):
            raise RunFailed(f"a worker process ended before it was ready ({_cause(worker.process.exitcode)})")
        self._workers[self._workers.index(worker)] = self._start()
        if worker.task is None:
            return None
        reason = f"its process died: {_cause(worker.process.exitcode)}"
        return Ended(worker.task, failed(worker.task, reason))


def _send(connection: Connection, parcel: bytes) -> None:
    try:
        connection.send_bytes(parcel)
    except OSError:
        return  # the worker died; `_receive` handles that


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    hint = "; memory may be too small; try a smaller --batch-size or fewer --jobs" if name == "SIGKILL" else ""
    return f"{name}{hint}"


def serve(connection: Connection) -> None:
    """Run as a worker process: read the shared inputs, then run tasks until the connection is closed."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends Ctrl-C to all its processes, but the main process stops the workers
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    sys.stderr = Messages(sys.stderr)
    warnings.showwarning = lambda message, *rest, **options: print(f"Warning: {message}", file=sys.stderr)
    try:
        parcel = connection.recv_bytes()
        _work(connection, parcel)
    except EOFError:
        return  # the sweep has ended
    except KeyboardInterrupt:
        sys.exit(143)
    except AdaptkitError as error:
        connection.send(error)


def _work(connection: Connection, parcel: bytes) -> None:
    from adaptkit.sweeps.engines.worker import open_worker
    from adaptkit.system.core_sharing import Seat
    from adaptkit.system.signals import interruptible

    threads, packed = pickle.loads(parcel)
    with interruptible(), Seat() as seat:
        worker = open_worker(packed, seat, threads)
        connection.send("ready")
        while True:
            require_none()
            task = connection.recv()
            connection.send(Ended(task, worker.perform(task, connection.send)))


def _end_with(sentinel: int) -> None:
    """End this process as soon as the main process has died, because the result would be lost."""
    wait([sentinel])
    os._exit(1)
