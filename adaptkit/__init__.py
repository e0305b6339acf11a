"""Decide how to fine-tune a vision model on little, shifted data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adaptkit.errors import AdaptkitError, BadInput, RunFailed
from adaptkit.hookspecs import hookimpl
from adaptkit.version import __version__

if TYPE_CHECKING:
    from adaptkit.api.compare import compare, draw
    from adaptkit.api.reproduce import reproduce
    from adaptkit.api.resume import resume
    from adaptkit.api.run import run
    from adaptkit.api.sweep import sweep
    from adaptkit.api.tune import tune
    from adaptkit.comparison.records import Comparisons
    from adaptkit.experiment.outcome import Outcome
    from adaptkit.models.trained import load
    from adaptkit.reproduction.agreement import Reproduction
    from adaptkit.sweeps.outcome import SweepOutcome
    from adaptkit.tuning.outcome import TuneOutcome

__all__ = [
    "AdaptkitError", "BadInput", "Comparisons", "Outcome", "Reproduction", "RunFailed", "SweepOutcome", "TuneOutcome",
    "__version__", "compare", "draw", "hookimpl", "load", "reproduce", "resume", "run", "sweep", "tune",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line and plugin modules import this package, and must stay light.
    modules = {
        "run": "api.run",
        "compare": "api.compare",
        "draw": "api.compare",
        "load": "models.trained",
        "resume": "api.resume",
        "sweep": "api.sweep",
        "SweepOutcome": "sweeps.outcome",
        "tune": "api.tune",
        "TuneOutcome": "tuning.outcome",
        "Outcome": "experiment.outcome",
        "Comparisons": "comparison.records",
        "reproduce": "api.reproduce",
        "Reproduction": "reproduction.agreement",
    }
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{modules[name]}", __name__), name)
