"""Try plugins: whether a strategy, backbone, data set or shift keeps what adaptkit relies on."""

from adaptkit.testing.kit import checks, try_all
from adaptkit.testing.verdicts import Check, CheckFailed, NotTried, Verdict

__all__ = ["Check", "CheckFailed", "NotTried", "Verdict", "checks", "try_all"]
