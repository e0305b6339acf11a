"""Choose how to adapt a pretrained vision model to a few labelled images, and use the result.

`run` adapts a base with several strategies and compares them, `compare` judges tracked runs, `sweep` and `tune` vary
settings, `load`, `predict` and `export` use the model of a run. Every function has the name, the options and the
defaults of its command: `adaptkit run --batch-size 16` is `adaptkit.run(batch_size=16)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adaptkit.errors import AdaptkitError, BadInput, RunFailed
from adaptkit.hookspecs import hookimpl
from adaptkit.version import __version__

if TYPE_CHECKING:
    from adaptkit.api.compare import compare, draw
    from adaptkit.api.export import ExportRecord, export
    from adaptkit.api.import_peft import ImportRecord, import_peft
    from adaptkit.api.predict import predict
    from adaptkit.api.refit import refit
    from adaptkit.api.reproduce import reproduce
    from adaptkit.api.resume import resume
    from adaptkit.api.run import run
    from adaptkit.api.sweep import sweep
    from adaptkit.api.tune import tune
    from adaptkit.comparison.findings import Comparison, Comparisons
    from adaptkit.experiment.outcome import RefitSummary, RunOutcome
    from adaptkit.models.preprocessing import Prediction, Preprocessing
    from adaptkit.models.trained import load
    from adaptkit.reproduction.agreement import Reproduction
    from adaptkit.sweeps.outcome import SweepOutcome
    from adaptkit.tuning.outcome import TuneOutcome

__all__ = [
    "AdaptkitError", "BadInput", "Comparison", "Comparisons", "ExportRecord", "ImportRecord", "Phase", "Prediction",
    "Preprocessing", "RefitSummary", "Reproduction", "RunFailed", "RunOutcome", "SweepOutcome", "TuneOutcome",
    "__version__", "compare", "draw", "export", "hookimpl", "import_peft", "load", "predict", "refit", "reproduce",
    "resume", "run", "sweep", "tune",
]  # fmt: skip

#: names that are imported on first use, so that the command line and plugins start without torch and MLflow
LAZY = {
    "Comparison": "comparison.findings",
    "Comparisons": "comparison.findings",
    "ExportRecord": "api.export",
    "ImportRecord": "api.import_peft",
    "Phase": "contracts",
    "Prediction": "models.preprocessing",
    "Preprocessing": "models.preprocessing",
    "RefitSummary": "experiment.outcome",
    "Reproduction": "reproduction.agreement",
    "RunOutcome": "experiment.outcome",
    "SweepOutcome": "sweeps.outcome",
    "TuneOutcome": "tuning.outcome",
    "compare": "api.compare",
    "draw": "api.compare",
    "export": "api.export",
    "import_peft": "api.import_peft",
    "load": "models.trained",
    "predict": "api.predict",
    "refit": "api.refit",
    "reproduce": "api.reproduce",
    "resume": "api.resume",
    "run": "api.run",
    "sweep": "api.sweep",
    "tune": "api.tune",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{LAZY[name]}", __name__), name)
