"""Sum up the runs of an experiment: a row a strategy, seeds as replicates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from adaptkit.outcome import Outcome


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with the half-width of its 95 % t-interval; None with one seed."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate the mean of independent values."""
        if len(values) < 2:
            return cls(values[0], None)
        from scipy.stats import t

        spread = statistics.stdev(values) / math.sqrt(len(values))
        return cls(statistics.fmean(values), float(t.ppf(0.975, len(values) - 1)) * spread)


@dataclass(frozen=True)
class Row:
    """A strategy's figures: accuracies, gain and retention as fractions, `seconds` of training a run."""

    label: str
    runs: int
    shifted: Estimate
    gain: Estimate
    clean: Estimate
    retention: Estimate
    trainable: int
    trainable_fraction: float
    seconds: Estimate


def summarise(outcome: Outcome) -> list[Row]:
    """Return a row for each strategy that has finished runs, in the order asked for."""
    rows = []
    for arm in outcome.plan.arms:
        runs = [run.metrics for run in outcome.runs if run.label == arm.label and run.status == "finished"]
        if not runs:
            continue

        def over_seeds(metric: str, runs: Sequence[object] = runs) -> Estimate:
            return Estimate.of([run[metric] for run in runs])  # type: ignore[index]

        rows.append(
            Row(
                label=arm.label,
                runs=len(runs),
                shifted=over_seeds("final/shifted_accuracy"),
                gain=over_seeds("final/gain"),
                clean=over_seeds("final/test_accuracy"),
                retention=over_seeds("final/retention"),
                trainable=int(runs[0]["params/trainable"]),
                trainable_fraction=runs[0]["params/trainable_fraction"],
                seconds=over_seeds("time/train_seconds"),
            )
        )
    return rows
