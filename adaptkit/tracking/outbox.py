"""The way of a run's record to the store: into its journal, then to the sender."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from adaptkit.errors import first_line
from adaptkit.state import state_folder
from adaptkit.tracking.address import Address, tracking_option
from adaptkit.tracking.delivery import Delivery
from adaptkit.tracking.events import Event, Put
from adaptkit.tracking.journal import Journal
from adaptkit.tracking.sender import Sender
from adaptkit.tracking.store import Store

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
