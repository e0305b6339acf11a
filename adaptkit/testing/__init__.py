"""Conformance checks for plugins: strategies, backbones, data sets, readers, shifts, metrics and engines."""

from adaptkit.testing.kit import checks, try_all
from adaptkit.testing.outcomes import Check, CheckFailed, NotTried, Verdict

__all__ = ["Check", "CheckFailed", "NotTried", "Verdict", "checks", "try_all"]
