"""Plan and results of a sweep, as records that Python and `--json` share."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptkit.experiment.outcome import Outcome, Plan

#: states of a trial: finished (now), found (finished earlier), failed (now or earlier), left (for the next start)
STATES = ("finished", "found", "failed", "left")


@dataclass(frozen=True)
class TrialPlan:
    """One trial before it runs. `values` are from the grid; `status` is found, failed or left."""

    number: int
    label: str
    strategy: str
    values: Mapping[str, Any]
    seed: int
    status: str = "left"


@dataclass(frozen=True)
class SweepPlan:
    """Plan of a sweep: its `trials`, and the values of each key in `grid`.

    `experiments` are the plans of the different data sets and bases: their images, classes and metrics. `bases` is the
    number of bases that must be trained first. `seconds` is the estimated time of training and
    evaluation with `jobs` parallel trials.
    """

    trials: tuple[TrialPlan, ...]
    grid: Mapping[str, tuple[Any, ...]]
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    experiments: tuple[Plan, ...]
    bases: int
    jobs: int
    seconds: float | None = None
    notices: tuple[str, ...] = ()

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of trials in each state."""
        return Counter(trial.status for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SweepTrial:
    """Result of one trial of a sweep: its target `accuracy`, or the `error` if it failed.

    `status` is one of STATES. `warnings` are signs that the run has not learned.
    """

    number: int
    label: str
    strategy: str
    values: Mapping[str, Any]
    seed: int
    status: str
    run_id: str | None = None
    accuracy: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepOutcome(Outcome):
    """Results of `adaptkit.sweep`, including a sweep that stopped at a limit.

    Attributes
    ----------
    trials : tuple of SweepTrial
        One record for each combination of values, strategy and seed.

    Examples
    --------
    >>> outcome = adaptkit.sweep("lora", grid={"lora.rank": [1, 2]}, preset="quick")
    >>> dict(outcome.counts)
    {...}
    >>> [(trial.label, trial.accuracy) for trial in outcome.done]
    [...]
    """

    trials: tuple[SweepTrial, ...]

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of trials in each state."""
        return Counter(trial.status for trial in self.trials)

    @property
    def done(self) -> tuple[SweepTrial, ...]:
        """The trials that have finished, now or earlier."""
        return tuple(trial for trial in self.trials if trial.status in ("finished", "found"))

    @property
    def failed(self) -> tuple[SweepTrial, ...]:
        """The trials that failed."""
        return tuple(trial for trial in self.trials if trial.status == "failed")
