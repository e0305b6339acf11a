"""Forward journals to the store while runs go on: whoever trains does not wait for a store that is slow or away."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from adaptkit.tracking.delivery import Delivery, is_final
from adaptkit.tracking.events import End, Event
from adaptkit.tracking.journal import Journal

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
