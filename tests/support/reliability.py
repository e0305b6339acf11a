"""The faults that tests inject, and what adaptkit promises then; tests note what came of each.

`python benchmarks/reliability.py` runs the tests and writes the table in docs/reliability.md from what they noted.
"""

from __future__ import annotations

import csv
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

#: the environment variable that names the folder in which tests note what they did
FOLDER = "RELIABILITY_OUT"


@dataclass(frozen=True)
class Fault:
    """A fault: what goes wrong, how the tests bring it about, and what is promised."""

    what: str
    produced: str
    promised: str


def _read() -> dict[str, Fault]:
    with Path(__file__).with_name("faults.csv").open(newline="", encoding="utf-8") as stream:
        return {row["name"]: Fault(row["fault"], row["produced"], row["promised"]) for row in csv.DictReader(stream)}


FAULTS = _read()


def note(fault: str, injected: int = 1, survived: int | None = None) -> None:
    """Note how often a fault was injected, and how often what is promised was kept: always, where it is not said."""
    assert fault in FAULTS, fault
    folder = os.environ.get(FOLDER)
    if folder:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        kept = injected if survived is None else survived
        told = {"fault": fault, "injected": injected, "survived": kept, "test": test.partition("[")[0]}
        Path(folder, f"{uuid.uuid4().hex}.json").write_text(json.dumps(told) + "\n", encoding="utf-8")
