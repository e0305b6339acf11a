"""What torchrun tells a process that it starts, and how such a process ends; nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: seconds in which the first process says what went wrong before another one's end makes torchrun stop it
PATIENCE = 10


@dataclass(frozen=True)
class Place:
    """A process's place: its number among all, its number on this machine, and how many there are."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1


def place() -> Place:
    """Return the place that torchrun gave this process; without torchrun it is alone."""
    given = [os.environ.get(name, "") for name in VARIABLES]
    if not all(given) or not all(number.isdigit() for number in given[:3]):
        return Place()
    return Place(*map(int, given[:3]))


def leave_after_first(code: int) -> None:
    """Let the first process print what all know before this one ends with the code: torchrun then stops the others."""
    if place().rank > 0:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(code))
        time.sleep(PATIENCE)
