"""Upload events that were queued while the tracking server was unreachable; each event counts once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from adaptkit.errors import BadInput, first_line
from adaptkit.names import ERROR_TAG
from adaptkit.system.signals import origin
from adaptkit.tracking.address import Address, resolve
from adaptkit.tracking.delivery import Delivery, is_final
from adaptkit.tracking.journal import End, Event, Journal, Log, now, unused_journals
from adaptkit.tracking.store import Store, open_store


@dataclass(frozen=True)
class Synced:
    """Result of uploading the queued events of one run: their number, and the error that stopped the upload.

    `store` is the address that the run belongs to. `status` is its final status there, or None if it has none yet.
    """

    name: str
    store: str
    experiment: str
    run_id: str | None
    events: int
    status: str | None = None
    error: str | None = None
    #: whether the run belongs to another store
    elsewhere: bool = False
    #: whether the store refuses the events permanently
    refused: bool = False


def queued_runs() -> list[Synced]:
    """Return the runs with queued events, except runs whose events a running process uploads."""
    return [_of(journal, len(journal.unsent())) for journal in unused_journals()]


def sync(tracking_uri: str | None = None, discard_refused: bool = False) -> Iterator[Synced]:
    """Upload the queued events of one store and yield each run; runs of other stores are only reported.

    A run whose process ended early becomes KILLED. `discard_refused` removes events that the store refuses permanently.
    Raises BadInput if the store cannot be used.
    """
    chosen = resolve(tracking_uri)
    opened: dict[str, Store] = {}
    ids: dict[str, str] = {}
    for journal in unused_journals():
        if journal.store != chosen.shown:
            if not journal.unsent():  # only the end of the run is missing
                continue
            yield dataclasses.replace(_of(journal, 0), elsewhere=True)
            continue
        store = opened.get(journal.experiment)
        if store is None:
            store = opened[journal.experiment] = open_store(tracking_uri, journal.experiment)
        delivery = Delivery(store.client, store.experiment_id)
        delivery.ids.update(ids)
        sent = _sent(journal, delivery, chosen)
        if sent.refused and discard_refused:
            journal.remove()
        yield sent
        ids |= delivery.ids


def require_sent(tracking_uri: str | None) -> None:
    """Upload all queued events of ended processes, because resuming reads the state of a run from the store.

    Raises BadInput if that fails.
    """
    failed = [result for result in sync(tracking_uri) if result.error is not None]
    if failed:
        raise BadInput(*(f"{result.name}: its queued events cannot be uploaded: {result.error}" for result in failed))


def _sent(journal: Journal, delivery: Delivery, address: Address) -> Synced:
    events = journal.unsent()
    count = len(events)
    try:
        delivery.send(journal, [*events, *_ending(journal, events)])
    except Exception as error:  # any error of the store
        if (cause := origin(error)) is not error:
            raise cause from error
        reason = address.without_secrets(first_line(error))
        sent = count - len(journal.unsent())
        return dataclasses.replace(_of(journal, sent), error=reason, refused=is_final(error))
    last = events[-1] if events else None
    done = dataclasses.replace(_of(journal, count), status=last.status if isinstance(last, End) else "KILLED")
    journal.remove()
    return done


def _ending(journal: Journal, events: list[Event]) -> list[Event]:
    """Return the events that end a run if its process did not; empty for a run that never started."""
    if (events and isinstance(events[-1], End)) or (not events and journal.run_id is None):
        return []
    return [Log(tags={ERROR_TAG: "its process has ended"}), End("KILLED", now())]


def _of(journal: Journal, events: int) -> Synced:
    return Synced(
        name=journal.name, store=journal.store, experiment=journal.experiment, run_id=journal.run_id, events=events
    )
