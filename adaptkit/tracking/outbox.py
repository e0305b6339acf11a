"""The way of a run's record to the store: into its journal, then to the sender."""

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

#: seconds until a store that failed is asked again: first, at most
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: seconds without any progress after which nobody waits any longer for the last events
PATIENCE = 15.0
#: events of one run that are sent together
AT_ONCE = 500


class Sender:
    """A thread that sends events in order and tries again when the store fails.

    `fault` is why the store does not have all of them, while that is so; `told` makes a line of an error. A run of
    which the store will never take an event is `refused`, with the reason; the others go on.
    """

    def __init__(self, delivery: Delivery, told: Callable[[Exception], str], stopped: Callable[[], None]) -> None:
        self.delivery = delivery
        self.fault: str | None = None
        self.refused: dict[str, str] = {}
        self._told, self._stopped = told, stopped
        self._waiting: deque[tuple[Journal, Event]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        #: when something was last sent, or asked of the store
        self._moved = time.monotonic()
        self._thread: threading.Thread | None = None

    def put(self, journal: Journal, event: Event) -> None:
        """Send an event when its turn comes."""
        with self._changed:
            if self._thread is None:
                # A daemon: a process that ends does not wait for a store that hangs.
                self._thread = threading.Thread(target=self._work, name="adaptkit-sender", daemon=True)
                self._thread.start()
            if not self._waiting:
                self._moved = time.monotonic()
            self._waiting.append((journal, event))
            self._changed.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until all is sent, at most so long, and not for a store that fails; tell whether it was."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self.fault is not None, max(0.0, seconds))
            return not self._waiting

    def flush(self, patience: float = PATIENCE) -> None:
        """Wait until all is sent, as long as any is, and not for a store that fails."""
        with self._changed:
            self._progressing(lambda: not self._waiting or self.fault is not None, patience)

    def close(self, patience: float = PATIENCE) -> bool:
        """Wait for the last events as long as any are sent, and stop; tell whether the store has all of them."""
        with self._changed:
            self._closing = True
            if self.fault is not None:  # it is asked once more
                self._moved = time.monotonic()
            self._changed.notify_all()
            self._progressing(lambda: self._thread is None, patience)
            return not self._waiting and not self.refused

    def _progressing(self, is_done: Callable[[], bool], patience: float) -> None:
        """Wait, with the lock, until this is so, but not when the store has said nothing for so long."""
        while not is_done():
            left = self._moved + patience - time.monotonic()
            if left <= 0:
                return
            moved = self._moved
            self._changed.wait_for(lambda: is_done() or self._moved > moved, left)  # noqa: B023

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return self._stop()
                journal, events = self._next()
            before = journal.sent
            try:
                if journal.local_id not in self.refused:
                    self.delivery.send(journal, events)
                    if isinstance(events[-1], End):
                        journal.remove()
                error = None
            except Exception as raised:  # the store's, of many kinds
                error = raised
            with self._changed:
                done = journal.sent - before if error is not None else len(events)
                for _ in range(done):
                    self._waiting.popleft()
                self._moved = time.monotonic()
                if error is not None and not is_final(error):
                    self.fault = self._told(error)
                else:  # a store that refuses answers, too
                    self.fault, pause = None, FIRST_PAUSE
                if error is not None and is_final(error):
                    self.refused[journal.local_id] = self._told(error)
                self._changed.notify_all()
                if self.fault is not None:
                    if self._closing:
                        return self._stop()
                    self._changed.wait_for(lambda: self._closing, pause)
                    pause = min(2 * pause, LONGEST_PAUSE)

    def _stop(self) -> None:
        # Only now, not when nobody waits any longer: until then it may still be sending.
        self._stopped()
        self._thread = None
        self._changed.notify_all()

    def _next(self) -> tuple[Journal, list[Event]]:
        """Return the run whose turn it is, and its next events in a row."""
        journal = self._waiting[0][0]
        events: list[Event] = []
        for other, event in self._waiting:
            if other is not journal or len(events) == AT_ONCE:
                break
            events.append(event)
        return journal, events


#: Those who train wait for the store so many seconds in all, and this share of the time since they began.
GRACE, SHARE = 0.5, 0.04
#: Seconds that the beginning of a run may wait for its id, which plugins need: a file is soon free, a server is slow.
#: Once that was too short, nobody waits until the store has caught up.
BEGINNING, BEGINNING_OF_SERVER = 5.0, 1.0


class Outbox:
    """Take what the store shall be told of runs, by their local ids; nobody waits for long.

    Its journals are where all are kept, or in a folder of their own, where nobody looks for them.
    """

    def __init__(self, store: Store, journals: Path | None = None) -> None:
        self._store, self._folder = store, journals
        self._sender = Sender(Delivery(store.client, store.experiment_id), self._told, self._let_go)
        self._journals: dict[str, Journal] = {}
        self._unkept: str | None = None
        self._temporary: Path | None = None
        self._is_late = False
        self._began, self._waited = time.monotonic(), 0.0

    def open(self, local_id: str, name: str) -> None:
        """Begin the record of a run."""
        about = (local_id, name, self._store.shown, self._store.experiment_name)
        try:
            journal = Journal.begin(*about, parent=self._folder)
        except OSError as error:
            self._note_unkept(error, state_folder())
            journal = Journal.begin(*about, parent=self._elsewhere())
        self._journals[local_id] = journal

    def tell(self, local_id: str, *events: Event) -> None:
        """Keep what the store shall know, and give the store a moment to take it."""
        journal = self._journals[local_id]
        for event in events:
            try:
                journal.append(event)
            except OSError as error:  # the disk is full: what cannot be sent from here is lost
                self._note_unkept(error, journal.folder)
            finally:  # whatever happens here, even a signal, the two count alike
                self._sender.put(journal, event)
        self._settle(GRACE + SHARE * (time.monotonic() - self._began) - self._waited)

    def is_open(self, local_id: str) -> bool:
        """Tell whether there is a record of this run here."""
        return local_id in self._journals

    def wait_for_id(self, local_id: str) -> str | None:
        """Return the store's id of a run that has just begun; None if the store is slow or away."""
        if not self._is_late or self.is_settled:
            self._settle(BEGINNING_OF_SERVER if Address(self._store.uri).is_server else BEGINNING)
            self._is_late = not self.is_settled
        return self.run_id(local_id)

    def run_id(self, local_id: str) -> str | None:
        """Return the store's id of a run, if it has one yet."""
        return self._sender.delivery.ids.get(local_id)

    def put(
        self, local_id: str, name: str, write: Callable[[Path], object], path: str | None = None, signed: bool = False
    ) -> Path:
        """Let `write` fill a folder, the files of which become artifacts below `path`; return it.

        It exists until the store has all of the run. Raises what `write` raises.
        """
        folder = self._journals[local_id].folder / name
        try:
            folder.mkdir()
            write(folder)
        except OSError as error:  # the disk is full: another one may not be
            self._note_unkept(error, folder)
            shutil.rmtree(folder, ignore_errors=True)
            folder = self._elsewhere() / f"{local_id}-{name}"
            folder.mkdir()
            write(folder)
        self.tell(local_id, Put(str(folder) if self._temporary in folder.parents else name, path, signed))
        return folder

    @property
    def is_settled(self) -> bool:
        """Tell whether the store has all that it was sent: it is neither slow nor away."""
        return self._sender.settle(0.0)

    def flush(self) -> None:
        """Send what there is, as long as the store takes it."""
        self._sender.flush()

    def close(self) -> str | None:
        """Send what is left, as long as the store takes it; return why not all is there."""
        if self._sender.close():
            return None
        refused = next(iter(self._sender.refused.values()), None)
        reason = refused or self._sender.fault or "it is slow"
        if self._unkept is not None:
            return f"{reason}; and it cannot be kept for later: {self._unkept}"
        does = "says what can be done" if refused else "sends it"
        return f"{reason}; what is missing is kept: `adaptkit sync{tracking_option(self._store.uri)}` {does}"

    def _note_unkept(self, error: OSError, place: Path) -> None:
        self._unkept = self._unkept or f"{error.filename or place}: {error.strerror or error}"

    def _elsewhere(self) -> Path:
        """Return a folder that exists as long as this outbox does."""
        self._temporary = self._temporary or Path(tempfile.mkdtemp(prefix="adaptkit-"))
        return self._temporary

    def _let_go(self) -> None:
        """Let others have what is left: nothing is being sent from here any more."""
        for journal in self._journals.values():
            journal.release()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _settle(self, seconds: float) -> None:
        begun = time.monotonic()
        self._sender.settle(seconds)
        self._waited += time.monotonic() - begun

    def _told(self, error: Exception) -> str:
        return self._store.without_secrets(first_line(error))
