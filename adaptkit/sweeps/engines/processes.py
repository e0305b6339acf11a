"""Run trials in processes of this machine, each with its share of the cores."""

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

#: seconds in which a worker closes its run when it is asked to end
GRACE = 15.0
#: workers that die one after the other before they were ready, after which a sweep gives up
PATIENCE = 3


@dataclass
class _Hand:
    """A worker process with its end of the line, and what it is doing; `ready` when it has said so."""

    process: BaseProcess
    line: Connection
    post: threading.Thread
    task: Task | None = None
    ready: bool = False


class ProcessEngine:
    """The workers of `--jobs N`: they are spawned, so that nothing of this process leaks into them.

    A worker that dies takes its trial with it, as a failed one, and another takes its place.
    """

    def __init__(self, work: Work, jobs: int, threads: int) -> None:
        self._parcel = pickle.dumps((threads, work.packed(f"--jobs {jobs}")))
        self._jobs = jobs
        self._hands: list[_Hand] = []
        self._unready = 0
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> ProcessEngine:
        self._hands = [self._start() for _ in range(self._jobs)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers; a run that is under way ends as killed."""
        for hand in self._hands:
            if hand.task is not None or not hand.ready:
                hand.process.terminate()
            else:
                hand.line.close()  # whoever is idle goes home
        for hand in self._hands:
            hand.process.join(GRACE)
            if hand.process.is_alive():
                hand.process.kill()
                hand.process.join()
            hand.post.join()  # it ends when nobody reads any more
            hand.line.close()
        self._hands = []

    def run(self, tasks: Iterable[Task], tell: Tell) -> Iterator[Ended]:
        """Yield each task when it has ended."""
        waiting = iter(tasks)
        is_over = False
        returned: list[Task] = []
        while True:
            require_none()
            for hand in self._hands:
                if not hand.ready or hand.task is not None or (is_over and not returned):
                    continue
                task = returned.pop() if returned else next(waiting, None)
                is_over = is_over or task is None
                if task is None:
                    continue
                try:
                    hand.line.send(task)
                    hand.task = task
                except OSError:  # it died while it had nothing to do
                    returned.append(task)
            if is_over and not returned and all(hand.task is None for hand in self._hands):
                return
            for hand in self._heard():
                ended = self._hear(hand, tell)
                if ended is not None:
                    yield ended

    def _start(self) -> _Hand:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs,), name="adaptkit worker")
        with safe_path():  # what a worker imports before it has this process's path
            process.start()
        theirs.close()
        # In a thread: whoever is being started reads only when it has imported all it needs.
        post = threading.Thread(target=_post, args=(ours, self._parcel), daemon=True)
        post.start()
        return _Hand(process, ours, post)

    def _heard(self) -> list[_Hand]:
        """Wait until a worker says something, or dies."""
        lines: dict[Any, _Hand] = {hand.line: hand for hand in self._hands}
        ends: dict[Any, _Hand] = {hand.process.sentinel: hand for hand in self._hands}
        found = wait([*lines, *ends])
        # What a worker said before it died counts.
        return list({id(hand): hand for thing in found for hand in [lines.get(thing) or ends[thing]]}.values())

    def _hear(self, hand: _Hand, tell: Tell) -> Ended | None:
        try:
            message = hand.line.recv()
        except (EOFError, OSError):
            return self._bury(hand)
        if message == "ready":
            hand.ready, self._unready = True, 0
        elif isinstance(message, Ended):
            hand.task = None
            return message
        elif isinstance(message, AdaptkitError):
            raise message
        else:
            tell(message)
        return None

    def _bury(self, hand: _Hand) -> Ended | None:
        """Put another in a dead worker's place; return its task as failed."""
        hand.process.join()
        self._unready += not hand.ready
        # Where memory is short, one that takes another's place may be killed too: until there is room again.
        if self._unready == (PATIENCE if any(other.ready for other in self._hands) else 1):
            raise RunFailed(f"a worker process ended before it was ready ({_cause(hand.process.exitcode)})")
        self._hands[self._hands.index(hand)] = self._start()
        if hand.task is None:
            return None
        reason = f"its process died: {_cause(hand.process.exitcode)}"
        return Ended(hand.task, failed(hand.task, reason))


def _post(line: Connection, parcel: bytes) -> None:
    try:
        line.send_bytes(parcel)
    except OSError:
        return  # whoever it was for has died, which is seen elsewhere


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    hint = "; was memory short? try a smaller --batch-size or fewer --jobs" if name == "SIGKILL" else ""
    return f"{name}{hint}"


def serve(line: Connection) -> None:
    """Be a worker: read what is shared, then run each task that comes, until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the sweep decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    sys.stderr = Messages(sys.stderr)
    warnings.showwarning = lambda message, *rest, **options: print(f"Warning: {message}", file=sys.stderr)
    try:
        parcel = line.recv_bytes()
        _work(line, parcel)
    except EOFError:
        return  # the sweep is over
    except KeyboardInterrupt:
        sys.exit(143)
    except AdaptkitError as error:
        line.send(error)


def _work(line: Connection, parcel: bytes) -> None:
    from adaptkit.sweeps.engines.worker import open_worker
    from adaptkit.system.core_sharing import Seat
    from adaptkit.system.signals import interruptible

    threads, packed = pickle.loads(parcel)
    with interruptible(), Seat() as seat:
        worker = open_worker(packed, seat, threads)
        line.send("ready")
        while True:
            require_none()
            task = line.recv()
            line.send(Ended(task, worker.perform(task, line.send)))


def _end_with(sentinel: int) -> None:
    """End this process at once when the sweep's has died: nobody would hear of its trial."""
    wait([sentinel])
    os._exit(1)
