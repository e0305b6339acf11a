"""Decide how to fine-tune a vision model on little, shifted data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptkit.errors import AdaptkitError, BadInput, RunFailed
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.api import run
    from adaptkit.outcome import Outcome

__version__ = "0.1.0"
__all__ = ["AdaptkitError", "BadInput", "Outcome", "RunFailed", "__version__", "hookimpl", "run"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line and plugin modules import this package, and must stay light.
    if name == "run":
        from adaptkit.api import run

        return run
    if name == "Outcome":
        from adaptkit.outcome import Outcome

        return Outcome
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
