"""Find the folders for cache and state, and read their settings from the environment."""

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
#: default size limit of cached bases in bytes, and the environment variable that overrides it
LIMIT, LIMIT_VARIABLE = 10 * UNITS["GB"], "ADAPTKIT_CACHE_LIMIT"


class CacheWarning(UserWarning):
    """A cached file is damaged and is computed again."""


def cache_folder() -> Path:
    """Return the cache folder, which may not exist yet: `ADAPTKIT_CACHE`, or a folder in the user's cache folder."""
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
    """Return whether features of frozen layers may be cached: false if `ADAPTKIT_NO_FEATURE_CACHE` is set."""
    return os.environ.get("ADAPTKIT_NO_FEATURE_CACHE", "") in ("", "0")


def cache_limit() -> int:
    """Return the size limit of cached bases in bytes: `ADAPTKIT_CACHE_LIMIT`, or 10 GB; raise BadInput if invalid."""
    named = os.environ.get(LIMIT_VARIABLE)
    return LIMIT if not named else parse_size(LIMIT_VARIABLE, named)


def parse_size(option: str, text: str) -> int:
    """Convert a size such as `500MB` or `2GB` to bytes (powers of 1,000); raise BadInput if it is invalid."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?B)?", text.upper())
    if match is None:
        raise BadInput(f"{option}: {text!r} is not a size; write 500MB or 2GB")
    size = float(match[1]) * UNITS[match[2] or "B"]
    if math.isinf(size):
        raise BadInput(f"{option}: is too large")
    return int(size)


def shown_size(count: int) -> str:
    """Return a number of bytes as text, such as 1.7 MB."""
    for unit in ("TB", "GB", "MB", "KB"):
        if count >= UNITS[unit]:
            return f"{count / UNITS[unit]:.1f} {unit}"
    return f"{count} B"


def warn_of_damage(path: Path) -> None:
    """Warn that a file or folder of the cache is damaged and not used."""
    warnings.warn(f"{path} is damaged and is computed again", CacheWarning, stacklevel=2)


def state_folder() -> Path:
    """Return the state folder, which may not exist yet: `ADAPTKIT_STATE`, or a folder in the user's state folder."""
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
