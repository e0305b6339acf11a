"""Where adaptkit keeps what cannot be computed again: checkpoints of runs under way, results not yet in a store."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from adaptkit.plain_files import expanded


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
