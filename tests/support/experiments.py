"""Small experiments that tests share, and the settings of a test process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BITFIT = Path(__file__).parents[2] / "plugins" / "bitfit" / "adaptkit_bitfit.py"

#: the smallest experiment with training
TINY = (
    *("--set", "split.source=200", "--set", "split.pool=100", "--set", "split.test=100"),
    *("--set", "shots=5", "--set", "base.epochs=2", "--epochs", "2"),
)

#: environment variables of a developer that must not influence tests
KEPT = ("ADAPTKIT_NO_FEATURE_CACHE",)

FOREIGN = ("ADAPTKIT_", "MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "MLFLOW_BACKEND", "MLFLOW_RUN")

TINY_SETTINGS = {
    "split.source": 200,
    "split.pool": 100,
    "split.test": 100,
    "shots": 5,
    "base.epochs": 2,
    "epochs": 2,
}


def own_cache(shared: Path) -> Path:
    """Return the cache folder of this test process; with a common one, experiments would count each other."""
    return shared / f"cache-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"


@dataclass(frozen=True)
class Tracked:
    """A folder with a tracked experiment, and the experiment's `--json` output."""

    folder: Path
    outcome: dict[str, Any]

    @property
    def uri(self) -> str:
        """Return the address of the store."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"
