"""Try plugins: whether a strategy, backbone, data set, shift or engine keeps what adaptkit relies on."""

from adaptkit.testing.kit import checks, try_all
from adaptkit.testing.outcomes import Check, CheckFailed, NotTried, Verdict

__all__ = ["Check", "CheckFailed", "NotTried", "Verdict", "checks", "try_all"]
