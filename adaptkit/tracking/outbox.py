"""Queue the events of runs for a tracking store: write them to a journal on disk, then send them from a thread."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from adaptkit.errors import first_line
from adaptkit.system.folders import state_folder
from adaptkit.tracking.address import Address, tracking_option
from adaptkit.tracking.delivery import Delivery, is_final
from adaptkit.tracking.journal import End, Event, Journal, Put
from adaptkit.tracking.store import Store

#: seconds before the next attempt after the store failed: the first pause, and the longest
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: seconds without progress after which callers stop waiting for the last events
PATIENCE = 15.0
#: maximum number of events of one run that are sent together
BATCH = 500


class Sender:
    """A thread that sends events in order and retries failed attempts.

    `fault` is the reason why the store is not up to date; None if it is. If the store rejects
    an event of a run permanently, `refused` maps the local id of the run to the reason; events of other runs are still
    sent. `describe` converts an error to one line, and `on_stop` is called when the thread ends.
    """

    def __init__(self, delivery: Delivery, describe: Callable[[Exception], str], on_stop: Callable[[], None]) -> None:
        self.delivery = delivery
        self.fault: str | None = None
        self.refused: dict[str, str] = {}
        self._describe, self._on_stop = describe, on_stop
        self._waiting: deque[tuple[Journal, Event]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        #: time of the last attempt to send events, or at which an empty queue received an event
        self._last_attempt = time.monotonic()
        self._thread: threading.Thread | None = None

    def add(self, journal: Journal, event: Event) -> None:
        """Queue an event."""
        with self._changed:
            if self._thread is None:
                # A daemon thread: a store that does not answer must not keep the process from exiting.
                self._thread = threading.Thread(target=self._work, name="adaptkit-sender", daemon=True)
                self._thread.start()
            if not self._waiting:
                self._last_attempt = time.monotonic()
            self._waiting.append((journal, event))
            self._changed.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until all events are sent, the time is over or the store fails; return whether all are sent."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self.fault is not None, max(0.0, seconds))
            return not self._waiting

    def flush(self, patience: float = PATIENCE) -> None:
        """Wait until all events are sent, the store fails, or no event was sent for `patience` seconds."""
        with self._changed:
            self._wait_while_progressing(lambda: not self._waiting or self.fault is not None, patience)

    def close(self, patience: float = PATIENCE) -> bool:
        """Send the last events and stop the thread; return whether the store has all events.

        Gives up when no event was sent for `patience` seconds.
        """
        with self._changed:
            self._closing = True
            if self.fault is not None:  # one more attempt follows
                self._last_attempt = time.monotonic()
            self._changed.notify_all()
            self._wait_while_progressing(lambda: self._thread is None, patience)
            return not self._waiting and not self.refused

    def _wait_while_progressing(self, is_done: Callable[[], bool], patience: float) -> None:
        """Wait until `is_done()`, or until nothing was sent for `patience` seconds. The caller holds the lock."""
        while not is_done():
            seconds_left = self._last_attempt + patience - time.monotonic()
            if seconds_left <= 0:
                return
            attempt = self._last_attempt
            self._changed.wait_for(lambda: is_done() or self._last_attempt > attempt, seconds_left)  # noqa: B023

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return self._stop()
                journal, events = self._next_batch()
            before = journal.sent
            try:
                if journal.local_id not in self.refused:
                    self.delivery.send(journal, events)
                    if isinstance(events[-1], End):
                        journal.remove()
                error = None
            except Exception as raised:  # each kind of store raises its own errors
                error = raised
            with self._changed:
                done = journal.sent - before if error is not None else len(events)
                for _ in range(done):
                    self._waiting.popleft()
                self._last_attempt = time.monotonic()
                if error is not None and not is_final(error):
                    self.fault = self._describe(error)
                else:  # also after a rejected event: the store has answered
                    self.fault, pause = None, FIRST_PAUSE
                if error is not None and is_final(error):
                    self.refused[journal.local_id] = self._describe(error)
                self._changed.notify_all()
                if self.fault is not None:
                    if self._closing:
                        return self._stop()
                    self._changed.wait_for(lambda: self._closing, pause)
                    pause = min(2 * pause, LONGEST_PAUSE)

    def _stop(self) -> None:
        # Not in `close`: the thread may still send events after `close` has given up.
        self._on_stop()
        self._thread = None
        self._changed.notify_all()

    def _next_batch(self) -> tuple[Journal, list[Event]]:
        """Return the first events of the queue that belong to the same run, and its journal."""
        journal = self._waiting[0][0]
        events: list[Event] = []
        for other, event in self._waiting:
            if other is not journal or len(events) == BATCH:
                break
            events.append(event)
        return journal, events


#: total time that training may wait for the store: seconds, and a fraction of the time since the outbox was created
GRACE, SHARE = 0.5, 0.04
#: maximum time in seconds that a run may wait for the store at its start and at its end: with a file, with a server
CATCH_UP_SECONDS, CATCH_UP_SECONDS_OF_SERVER = 5.0, 1.0


class Outbox:
    """Queue events for the tracking store by the local ids of runs; callers never block for long.

    With `journals`, the journals are written to that folder instead of the state folder, and `adaptkit sync` does not
    find them.
    """

    def __init__(self, store: Store, journals: Path | None = None) -> None:
        self._store, self._folder = store, journals
        self._sender = Sender(Delivery(store.client, store.experiment_id), self._describe, self._release)
        self._journals: dict[str, Journal] = {}
        self._write_error: str | None = None
        self._temporary: Path | None = None
        self._is_late = False
        self._started, self._waited = time.monotonic(), 0.0

    def open(self, local_id: str, name: str) -> None:
        """Create the journal of a run."""
        about = (local_id, name, self._store.shown, self._store.experiment_name)
        try:
            journal = Journal.create(*about, parent=self._folder)
        except OSError as error:
            self._note_write_error(error, state_folder())
            journal = Journal.create(*about, parent=self._temporary_folder())
        self._journals[local_id] = journal

    def add(self, local_id: str, *events: Event) -> None:
        """Queue events of a run, and wait a moment so that the store can receive them."""
        journal = self._journals[local_id]
        for event in events:
            try:
                journal.append(event)
            except OSError as error:  # the disk is full: events that this process cannot send are lost
                self._note_write_error(error, journal.folder)
            finally:  # even after a signal, so that journal and sender count the same events
                self._sender.add(journal, event)
        self._settle(GRACE + SHARE * (time.monotonic() - self._started) - self._waited)

    def is_open(self, local_id: str) -> bool:
        """Return whether this outbox has a journal of the run."""
        return local_id in self._journals

    def wait_for_id(self, local_id: str) -> str | None:
        """Return the store's id of a run that was just created; None if the store is slow or unreachable."""
        self.catch_up()
        return self.run_id(local_id)

    def catch_up(self) -> bool:
        """Wait a limited time until all events are sent; return whether they are.

        After a wait that was too short, this does not wait again until the store is up to date.
        """
        if not self._is_late or self.is_settled:
            self._settle(CATCH_UP_SECONDS_OF_SERVER if Address(self._store.uri).is_server else CATCH_UP_SECONDS)
            self._is_late = not self.is_settled
        return not self._is_late

    def run_id(self, local_id: str) -> str | None:
        """Return the store's id of a run; None if the store has not created it yet."""
        return self._sender.delivery.ids.get(local_id)

    def add_files(
        self, local_id: str, name: str, write: Callable[[Path], object], path: str | None = None, signed: bool = False
    ) -> Path:
        """Call `write` with a new folder and queue the files in it, which become artifacts in the folder `path`.

        Returns the folder, which exists until the store has all events of the run. `signed` files are downloaded and
        compared after the upload. Raises any error that `write` raises.
        """
        folder = self._journals[local_id].folder / name
        try:
            folder.mkdir()
            write(folder)
        except OSError as error:  # the disk is full: the folder for temporary files may be on another one
            self._note_write_error(error, folder)
            shutil.rmtree(folder, ignore_errors=True)
            folder = self._temporary_folder() / f"{local_id}-{name}"
            folder.mkdir()
            write(folder)
        self.add(local_id, Put(str(folder) if self._temporary in folder.parents else name, path, signed))
        return folder

    @property
    def is_settled(self) -> bool:
        """Return whether the store has all events: it is neither slow nor unreachable."""
        return self._sender.settle(0.0)

    def flush(self) -> None:
        """Wait until all events are sent, or until the store fails or makes no progress."""
        self._sender.flush()

    @property
    def fault(self) -> str | None:
        """Return why the store does not have all events; None while no attempt has failed."""
        return next(iter(self._sender.refused.values()), self._sender.fault)

    def close(self) -> str | None:
        """Send the remaining events; return the reason, and what the user can do, if some could not be sent."""
        if self._sender.close():
            return None
        reason = self.fault or "it is slow"
        if self._write_error is not None:
            return f"{reason}; the missing records cannot be saved for later either: {self._write_error}"
        if self._folder is not None:
            return reason
        effect = "explains what to do" if self._sender.refused else "sends them"
        return f"{reason}; the missing records are kept: `adaptkit sync{tracking_option(self._store.uri)}` {effect}"

    def _note_write_error(self, error: OSError, place: Path) -> None:
        self._write_error = self._write_error or f"{error.filename or place}: {error.strerror or error}"

    def _temporary_folder(self) -> Path:
        """Return a temporary folder that exists as long as this outbox does."""
        self._temporary = self._temporary or Path(tempfile.mkdtemp(prefix="adaptkit-"))
        return self._temporary

    def _release(self) -> None:
        """Unlock the journals, so that `adaptkit sync` can send them: this outbox no longer sends events."""
        for journal in self._journals.values():
            journal.release()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _settle(self, seconds: float) -> None:
        start = time.monotonic()
        self._sender.settle(seconds)
        self._waited += time.monotonic() - start

    def _describe(self, error: Exception) -> str:
        return self._store.without_secrets(first_line(error))
