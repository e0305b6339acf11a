"""Tell whether the process that makes a run still lives, from the run's tags."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path

#: seconds by which the system's record of a process's start may be off
TOLERANCE = 2.0


def lives(tags: Mapping[str, str]) -> bool | None:
    """Tell whether the process named by `adaptkit.host` and `adaptkit.pid` is there; None where that cannot be seen.

    One that began after `adaptkit.process_seen` is another process with the same number.
    """
    pid = tags.get("adaptkit.pid", "")
    if tags.get("adaptkit.host") != socket.gethostname() or not pid.isdigit():
        return None
    if os.name != "posix":  # elsewhere, signal 0 is no question
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return None
    seen, began = _number(tags.get("adaptkit.process_seen", "")), _start(int(pid))
    if seen is None or began is None:
        return True
    return began <= seen + TOLERANCE


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _start(pid: int) -> float | None:
    """Return the Unix time at which a process began, where Linux tells it (proc(5): field 22 of stat, in ticks)."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return None
