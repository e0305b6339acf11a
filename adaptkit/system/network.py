"""Ask servers for an answer and wait for them, but not for ever: a silent firewall must not cost minutes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

#: seconds that a server may take to answer at all, and to go on once it sends
ANSWER_WITHIN = 5.0
STALL_WITHIN = 20.0


def answering(addresses: Sequence[str], within: float = ANSWER_WITHIN) -> set[str]:
    """Return those of these addresses from which there is any answer within so many seconds."""
    answered: list[str] = []

    def ask(address: str) -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=within).close()
        except urllib.error.HTTPError as error:
            error.close()  # an answer all the same: some servers refuse HEAD
        except Exception:
            return
        answered.append(address)

    # In threads, because looking up a name and trying its many addresses is not bounded by the timeout.
    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    deadline = time.monotonic() + within
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return set(answered)


@contextlib.contextmanager
def bounded_waits(seconds: float = STALL_WITHIN) -> Iterator[None]:
    """Bound each wait for the network during a block, of libraries too that set no time limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
