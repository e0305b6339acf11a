"""Send requests to servers with short time limits: without them, a firewall can block a request for minutes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

#: maximum time in seconds until a server answers, and between two parts of its answer
ANSWER_WITHIN = 5.0
STALL_WITHIN = 20.0


def answering(addresses: Sequence[str], within: float = ANSWER_WITHIN) -> set[str]:
    """Return the addresses from which an answer arrives within this number of seconds."""
    answered: list[str] = []

    def ask(address: str) -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=within).close()
        except urllib.error.HTTPError as error:
            error.close()  # the server has answered: some do not support HEAD
        except Exception:
            return
        answered.append(address)

    # In threads: the time limit does not apply to looking up a name and trying all its addresses.
    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    deadline = time.monotonic() + within
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return set(answered)


@contextlib.contextmanager
def bounded_waits(seconds: float = STALL_WITHIN) -> Iterator[None]:
    """Limit each wait for the network during a block, also in libraries that set no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
