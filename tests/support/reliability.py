"""List the faults that tests inject and the expected behaviour; tests record their results.

`python benchmarks/reliability.py` runs the tests and writes the table in docs/reliability.md from what they noted.
"""

from __future__ import annotations

import csv
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

#: the environment variable with the folder for the results of tests
FOLDER = "RELIABILITY_OUT"


@dataclass(frozen=True)
class Fault:
    """A fault: its description, how the tests inject it, and the expected behaviour."""

    what: str
    produced: str
    promised: str


def _read() -> dict[str, Fault]:
    with Path(__file__).with_name("faults.csv").open(newline="", encoding="utf-8") as stream:
        return {row["name"]: Fault(row["fault"], row["produced"], row["promised"]) for row in csv.DictReader(stream)}


FAULTS = _read()


def note(fault: str, injected: int = 1, survived: int | None = None) -> None:
    """Record how often a fault was injected, and how often adaptkit behaved as expected (by default, always)."""
    assert fault in FAULTS, fault
    folder = os.environ.get(FOLDER)
    if folder:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        kept = injected if survived is None else survived
        result = {"fault": fault, "injected": injected, "survived": kept, "test": test.partition("[")[0]}
        Path(folder, f"{uuid.uuid4().hex}.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
