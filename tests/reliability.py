"""Write down which faults a test has injected and what came of them, for what writes docs/reliability.md."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path


def note(fault: str, injected: int, survived: int | None = None) -> None:
    """Note how often a fault was injected, and how often what was promised was kept: always, where not said."""
    folder = os.environ.get("RELIABILITY_OUT")
    if folder:
        told = {"fault": fault, "injected": injected, "survived": injected if survived is None else survived}
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        path = Path(folder) / f"{uuid.uuid4().hex}.json"
        path.write_text(json.dumps({**told, "test": test}) + "\n", encoding="utf-8")
