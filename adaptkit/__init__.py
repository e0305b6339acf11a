"""Decide how to fine-tune a vision model on little, shifted data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adaptkit.errors import AdaptkitError, BadInput, RunFailed
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.api import run
    from adaptkit.comparing import compare, draw
    from adaptkit.findings import Findings
    from adaptkit.outcome import Outcome
    from adaptkit.reproducing import reproduce
    from adaptkit.reproduction import Reproduction
    from adaptkit.resuming import resume
    from adaptkit.sweep_outcome import SweepOutcome
    from adaptkit.sweeping import sweep
    from adaptkit.trained import load
    from adaptkit.tune_outcome import TuneOutcome
    from adaptkit.tuning import tune

__version__ = "0.1.0"
__all__ = [
    "AdaptkitError", "BadInput", "Findings", "Outcome", "Reproduction", "RunFailed", "SweepOutcome", "TuneOutcome",
    "__version__", "compare", "draw", "hookimpl", "load", "reproduce", "resume", "run", "sweep", "tune",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line and plugin modules import this package, and must stay light.
    modules = {
        "run": "api",
        "compare": "comparing",
        "draw": "comparing",
        "load": "trained",
        "resume": "resuming",
        "sweep": "sweeping",
        "SweepOutcome": "sweep_outcome",
        "tune": "tuning",
        "TuneOutcome": "tune_outcome",
        "Outcome": "outcome",
        "Findings": "findings",
        "reproduce": "reproducing",
        "Reproduction": "reproduction",
    }
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"adaptkit.{modules[name]}"), name)
