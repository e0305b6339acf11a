"""Read and write lengths of time as people do."""

from __future__ import annotations

import math
import re

from adaptkit.errors import BadInput

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(option: str, text: str) -> float:
    """Return the seconds that `90`, `45s`, `30m`, `2h` or `1h30m` stand for; raise BadInput, naming the option."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text:
        raise BadInput(f"{option}: {text!r} is no length of time; write 90s, 30m, 2h or 1h30m")
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise BadInput(f"{option}: must be more than no time, and less than for ever")
    return seconds


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        whole = round(max(seconds, 1))
        return f"{whole} second{'s' * (whole > 1)}"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
