"""The errors that a user can mend or must know of; anything else that is raised is a bug."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdaptkitError(Exception):
    """Stop with one clear line a problem instead of a traceback."""

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BadInput(AdaptkitError):
    """Report input that the user can mend, all problems at once."""

    exit_code = 2


class RunFailed(AdaptkitError):
    """Report a run that could not be finished."""


class TrackingLost(AdaptkitError):
    """Report results that could not be recorded in the tracking store."""


class Interrupted(KeyboardInterrupt):
    """Unwind after a signal that asks the process to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
