"""What a sweep plans and finds, as typed records: the same for Python and for `--json`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptkit.comparison.records import Comparisons

#: states of a trial: done now, done by an earlier start, failed (now or earlier), or left for the next start
STATES = ("finished", "found", "failed", "left")


@dataclass(frozen=True)
class TrialPlan:
    """One trial before it runs: `values` are what the grid gives it; `status` is found, failed or left."""

    number: int
    label: str
    strategy: str
    values: Mapping[str, Any]
    seed: int
    status: str = "left"


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will do; `seconds` is the estimated time of training and evaluation with `jobs` at a time.

    `bases` are trained first; `grid` holds the values of each varied key.
    """

    trials: tuple[TrialPlan, ...]
    grid: Mapping[str, tuple[Any, ...]]
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    bases: int
    jobs: int
    seconds: float | None = None
    notices: tuple[str, ...] = ()

    @property
    def counts(self) -> Mapping[str, int]:
        """Return how many trials are in which state."""
        return Counter(trial.status for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SweepTrial:
    """One trial of a sweep and what became of it; `error` says why it failed, `accuracy` is the shifted test's."""

    number: int
    label: str
    strategy: str
    values: Mapping[str, Any]
    seed: int
    status: str
    run_id: str | None = None
    accuracy: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class SweepOutcome:
    """A sweep that has come to its end, or as far as it was allowed to; `comparison` is None when no trial is done."""

    trials: tuple[SweepTrial, ...]
    parent_run_id: str
    experiment: str
    tracking_uri: str
    ui_command: str | None
    ui_url: str
    notices: tuple[str, ...] = ()
    comparison: Comparisons | None = None
    tracking_error: str | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Return how many trials are in which state."""
        return Counter(trial.status for trial in self.trials)

    @property
    def done(self) -> tuple[SweepTrial, ...]:
        """Return the trials that have finished, now or earlier."""
        return tuple(trial for trial in self.trials if trial.status in ("finished", "found"))

    @property
    def failed(self) -> tuple[SweepTrial, ...]:
        """Return the trials that failed."""
        return tuple(trial for trial in self.trials if trial.status == "failed")

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types."""
        plain = dataclasses.asdict(dataclasses.replace(self, comparison=None))
        return plain | {"comparison": None if self.comparison is None else self.comparison.to_dict()}
