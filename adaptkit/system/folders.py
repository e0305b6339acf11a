"""Where adaptkit keeps what can be computed again."""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from pathlib import Path

from adaptkit.errors import BadInput
from adaptkit.system.files import expanded

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
#: how many bytes of bases are kept, and the variable that says otherwise
LIMIT, LIMIT_VARIABLE = 10 * UNITS["GB"], "ADAPTKIT_CACHE_LIMIT"


class CacheWarning(UserWarning):
    """Tell that something that was kept is damaged, and is computed anew."""


def cache_folder() -> Path:
    """Return `ADAPTKIT_CACHE` or this platform's cache folder for adaptkit; it need not exist yet."""
    if named := os.environ.get("ADAPTKIT_CACHE"):
        return expanded(named).absolute()
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent / "adaptkit"


def features_allowed() -> bool:
    """Tell whether `ADAPTKIT_NO_FEATURE_CACHE` leaves the features of frozen layers to be used again."""
    return os.environ.get("ADAPTKIT_NO_FEATURE_CACHE", "") in ("", "0")


def cache_limit() -> int:
    """Return the bytes of bases that are kept: `ADAPTKIT_CACHE_LIMIT`, or 10 GB; raise BadInput for what is no size."""
    named = os.environ.get(LIMIT_VARIABLE)
    return LIMIT if not named else parse_size(LIMIT_VARIABLE, named)


def parse_size(option: str, text: str) -> int:
    """Return the bytes that `500MB` or `2GB` stand for (powers of 1,000); raise BadInput, naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?B)?", text.upper())
    if found is None:
        raise BadInput(f"{option}: {text!r} is no size; write 500MB or 2GB")
    size = float(found[1]) * UNITS[found[2] or "B"]
    if math.isinf(size):
        raise BadInput(f"{option}: must be a size that there is")
    return int(size)


def shown_size(count: int) -> str:
    """Return bytes as people read them: 1.7 MB."""
    for unit in ("TB", "GB", "MB", "KB"):
        if count >= UNITS[unit]:
            return f"{count / UNITS[unit]:.1f} {unit}"
    return f"{count} B"


def warn_of_damage(path: Path) -> None:
    """Warn that a file or folder of the cache does not hold what was written, and is not used."""
    warnings.warn(f"{path} is damaged: it is computed anew", CacheWarning, stacklevel=2)


def state_folder() -> Path:
    """Return `ADAPTKIT_STATE` or this platform's folder for programs' state, for adaptkit; it need not exist yet."""
    if named := os.environ.get("ADAPTKIT_STATE"):
        return expanded(named).absolute()
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
        return parent / "adaptkit" / "state"
    if sys.platform == "darwin":
        parent = Path.home() / "Library" / "Application Support"
    else:
        parent = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return parent / "adaptkit"
