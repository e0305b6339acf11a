"""The way of a run's record to the store: into its journal, then to the sender."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from adaptkit.tracking.address import Address
from adaptkit.tracking.delivery import Delivery
from adaptkit.tracking.events import Event
from adaptkit.tracking.journal import Journal
from adaptkit.tracking.sender import Sender
from adaptkit.tracking.store import Store

#: Those who train wait for the store so many seconds in all, and this share of the time since they began.
GRACE, SHARE = 0.3, 0.02
#: seconds that the beginning of a run may wait for its id, which plugins need: a file is soon free, a server is slow
BEGINNING, BEGINNING_OF_SERVER = 5.0, 1.0


class Outbox:
    """Take what the store shall be told of runs, by their local ids; nobody waits for long."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sender = Sender(Delivery(store.client, store.experiment_id), self._told)
        self._journals: dict[str, Journal] = {}
        self._unkept: str | None = None
        self._temporary: Path | None = None
        self._began, self._waited = time.monotonic(), 0.0

    def open(self, local_id: str, name: str) -> None:
        """Begin the record of a run."""
        about = (local_id, name, Address(self._store.uri).shown, self._store.experiment_name)
        try:
            journal = Journal.begin(*about)
        except OSError as error:
            self._unkept = self._unkept or f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
            self._temporary = self._temporary or Path(tempfile.mkdtemp(prefix="adaptkit-"))
            journal = Journal.begin(*about, parent=self._temporary)
        self._journals[local_id] = journal

    def tell(self, local_id: str, *events: Event) -> None:
        """Keep what the store shall know, and give the store a moment to take it."""
        journal = self._journals[local_id]
        for event in events:
            try:
                journal.append(event)
            except OSError as error:  # the disk is full: what cannot be sent from here is lost
                self._unkept = self._unkept or f"{journal.folder}: {error.strerror or error}"
            finally:  # whatever happens here, even a signal, the two count alike
                self._sender.put(journal, event)
        self._settle(GRACE + SHARE * (time.monotonic() - self._began) - self._waited)

    def is_open(self, local_id: str) -> bool:
        """Tell whether there is a record of this run here."""
        return local_id in self._journals

    def wait_for_id(self, local_id: str) -> str | None:
        """Return the store's id of a run that has just begun; None if the store is slow or away."""
        if self.run_id(local_id) is None:
            self._settle(BEGINNING_OF_SERVER if Address(self._store.uri).is_server else BEGINNING)
        return self.run_id(local_id)

    def run_id(self, local_id: str) -> str | None:
        """Return the store's id of a run, if it has one yet."""
        return self._sender.delivery.ids.get(local_id)

    def folder(self, local_id: str, name: str) -> Path:
        """Make a folder for files of a run, which exists until the store has all of the run."""
        folder = self._journals[local_id].folder / name
        folder.mkdir()
        return folder

    @property
    def answers(self) -> bool:
        """Tell whether the store, for all that is known, takes what it is sent."""
        return self._sender.fault is None

    def flush(self) -> None:
        """Send what there is, as long as the store takes it."""
        self._sender.flush()

    def close(self) -> str | None:
        """Send what is left, as long as the store takes it; return why not all is there."""
        complete = self._sender.close()
        for journal in self._journals.values():
            journal.release()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if complete:
            return None
        refused = next(iter(self._sender.refused.values()), None)
        reason = refused or self._sender.fault or "it is slow"
        if self._unkept is not None:
            return f"{reason}; and it cannot be kept for later: {self._unkept}"
        return f"{reason}; what is missing is kept: `adaptkit sync` sends it"

    def _settle(self, seconds: float) -> None:
        begun = time.monotonic()
        self._sender.settle(seconds)
        self._waited += time.monotonic() - begun

    def _told(self, error: Exception) -> str:
        return self._store.without_secrets(str(error).strip().split("\n")[0] or type(error).__name__)
