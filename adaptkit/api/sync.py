"""Send to the store what earlier commands could not send: each event once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from adaptkit.errors import BadInput, first_line
from adaptkit.names import ERROR_TAG
from adaptkit.system.signals import origin
from adaptkit.tracking.address import Address, resolve
from adaptkit.tracking.delivery import Delivery, is_final
from adaptkit.tracking.journal import End, Event, Journal, Log, left_journals, now
from adaptkit.tracking.store import Store, open_store


@dataclass(frozen=True)
class Synced:
    """A run of which events were left: how many were sent, and why not the others, if so.

    `store` is the address that it belongs to; `status` is what the run has ended as there, None where it has not.
    """

    name: str
    store: str
    experiment: str
    run_id: str | None
    events: int
    status: str | None = None
    error: str | None = None
    #: it belongs to another store than the one that is meant
    elsewhere: bool = False
    #: the store will never take it
    refused: bool = False


def left() -> list[Synced]:
    """Return the runs of which events are left, those that are being sent by a living process left out."""
    return [_of(journal, len(journal.unsent())) for journal in left_journals()]


def sync(tracking_uri: str | None = None, discard_refused: bool = False) -> Iterator[Synced]:
    """Send what is left for the store that is meant, and yield each run; those of other stores are only named.

    A run whose process died in the middle ends as killed. With `discard_refused`, what the store will never take is
    given up. Raises BadInput when the store cannot be used.
    """
    meant = resolve(tracking_uri)
    opened: dict[str, Store] = {}
    ids: dict[str, str] = {}
    for journal in left_journals():
        if journal.store != meant.shown:
            if not journal.unsent():  # only its end is missing there
                continue
            yield dataclasses.replace(_of(journal, 0), elsewhere=True)
            continue
        store = opened.get(journal.experiment)
        if store is None:
            store = opened[journal.experiment] = open_store(tracking_uri, journal.experiment)
        delivery = Delivery(store.client, store.experiment_id)
        delivery.ids.update(ids)
        sent = _sent(journal, delivery, meant)
        if sent.refused and discard_refused:
            journal.remove()
        yield sent
        ids |= delivery.ids


def require_sent(tracking_uri: str | None) -> None:
    """See that the store has all that dead processes have left for it: what goes on asks the store where it is.

    Raises BadInput.
    """
    failed = [one for one in sync(tracking_uri) if one.error is not None]
    if failed:
        raise BadInput(*(f"{one.name}: what is left of its record cannot be sent: {one.error}" for one in failed))


def _sent(journal: Journal, delivery: Delivery, address: Address) -> Synced:
    events = journal.unsent()
    count = len(events)
    try:
        delivery.send(journal, [*events, *_ending(journal, events)])
    except Exception as error:  # the store's, of many kinds
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
    """Return how a run ends whose process could not write its end; nothing of one that never began."""
    if (events and isinstance(events[-1], End)) or (not events and journal.run_id is None):
        return []
    return [Log(tags={ERROR_TAG: "its process is gone"}), End("KILLED", now())]


def _of(journal: Journal, events: int) -> Synced:
    return Synced(journal.name, journal.store, journal.experiment, journal.run_id, events)
