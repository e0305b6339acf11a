"""What trying a plugin gives: checks that pass, fail with a plain reason, or do not apply."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import dataclass

from adaptkit.errors import AdaptkitError, located


class CheckFailed(AssertionError):
    """Say in plain words what a plugin does not keep."""


class NotTried(unittest.SkipTest):
    """Say why a check does not apply; pytest takes it for a skipped test."""


@dataclass(frozen=True)
class Verdict:
    """What one check said of one subject: `passed`, `failed` or `not tried`, and why."""

    check: str
    subject: str
    word: str
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """One promise of a plugin, to be tried on one subject (a small model, an image size): call it to try.

    Raises CheckFailed or NotTried.
    """

    name: str
    subject: str
    attempt: Callable[[], None]

    def __call__(self) -> None:
        self.attempt()

    def __str__(self) -> str:
        return f"{self.subject}: {self.name}"

    def verdict(self) -> Verdict:
        """Try it, and return what came of it."""
        try:
            self.attempt()
        except CheckFailed as failure:
            return Verdict(self.name, self.subject, "failed", str(failure))
        except NotTried as reason:
            return Verdict(self.name, self.subject, "not tried", str(reason))
        except Exception as error:
            return Verdict(self.name, self.subject, "failed", f"it raises {located(error)}")
        return Verdict(self.name, self.subject, "passed")


def require(condition: bool, reason: str) -> None:
    """Raise CheckFailed with this reason unless the condition holds."""
    if not condition:
        raise CheckFailed(reason)


def told(error: BaseException) -> str:
    """Return an error as one line, with its place unless it is meant for users."""
    return " ".join("; ".join(error.problems).split()) if isinstance(error, AdaptkitError) else located(error)
