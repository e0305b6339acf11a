"""Where adaptkit keeps what can be computed again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from adaptkit.plain_files import expanded


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
