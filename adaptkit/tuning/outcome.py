"""Plan and results of a tuning, as records that Python, `--json` and tuning.json share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.comparison.numbers import counted
from adaptkit.comparison.records import Metric
from adaptkit.experiment.outcome import Outcome, Plan
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.trial_scores import ACCURACY
from adaptkit.experiment.tuning_run import require_validation
from adaptkit.plugins.ranges import shown_range
from adaptkit.settings.spaces import Space, changed
from adaptkit.sweeps.outcome import SweepTrial
from adaptkit.tuning.search import SearchResult


@dataclass(frozen=True)
class Budget:
    """Budget of each strategy: the number of `trials` of the search `method`.

    `given` also counts the trials that were added after ranges were extended. A trial is one run of `epochs` epochs for
    each of the `tuning_seeds`. It trains on `training` images and is scored by `metric` on `held_back` other images.
    `seeds` are the seeds of the runs with the best values.
    """

    trials: int
    epochs: int
    method: str
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    training: int
    held_back: int
    metric: Metric
    given: int = 0


@dataclass(frozen=True)
class TunePlan:
    """Plan of a tuning: its budget, and the searched range as text for each strategy and key in `spaces`.

    `experiment` is the plan of the runs with the best values: their images, classes and metrics.
    """

    budget: Budget
    experiment: Plan
    spaces: Mapping[str, Mapping[str, str]]
    jobs: int
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TuningTrial:
    """Result of one trial: its values, and its accuracy and its `score` by the deciding metric on the held-out images.

    A failed trial has an `error`, the accuracy 0 and no score. The best trial has the best score; if scores are equal,
    the smallest loss.
    """

    number: int
    values: Mapping[str, Any]
    accuracy: float
    loss: float | None = None
    score: float | None = None
    error: str | None = None
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class TunedStrategy:
    """Result of tuning one strategy.

    `first` and `space` are the ranges by key before and after they were extended. `chosen` holds the values of the best
    trial. `options` and `lr` are the complete settings of the strategy with these values. `edges` holds the keys whose
    best value is at the end of its range, with the reason why the range was not extended further. `accuracy` and
    `score` are those of the best trial.
    """

    strategy: str
    label: str
    first: Mapping[str, str]
    space: Mapping[str, str]
    trials: tuple[TuningTrial, ...]
    chosen: Mapping[str, Any]
    options: Mapping[str, Any]
    lr: float | None
    accuracy: float
    score: float
    best_trial: int
    edges: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TuneOutcome(Outcome):
    """Results of `adaptkit.tune`.

    Attributes
    ----------
    budget : Budget
        The budget of each strategy: trials, epochs and images.
    strategies : tuple of TunedStrategy
        The trials and the best values of each strategy.
    runs : tuple of SweepTrial
        The runs with the best values, on all labelled images and with seeds that the search did not use. `comparison`
        compares these runs.

    Examples
    --------
    >>> outcome = adaptkit.tune("head", trials=2, seeds=1, preset="quick")
    >>> outcome.strategies[0].lr
    0...
    """

    budget: Budget
    strategies: tuple[TunedStrategy, ...]
    runs: tuple[SweepTrial, ...]

    @property
    def failed(self) -> tuple[SweepTrial, ...]:
        """The runs that failed."""
        return tuple(run for run in self.runs if run.status == "failed")

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types."""
        plain = super().to_dict()
        del plain["tracking_error"]  # always None: a tuning needs its store, and stops when the store fails
        return plain


def budget_of(
    experiment: Experiment, *, trials: int, method: str, tuning_seeds: tuple[int, ...], metric: Metric
) -> Budget:
    """Return the budget of each strategy; raise BadInput if no image can be held out for validation."""
    parts = [require_validation(experiment, seed) for seed in tuning_seeds]
    training, held_back = parts[0]
    settings = experiment.request.settings
    return Budget(
        trials=trials,
        epochs=settings.epochs,
        method=method,
        tuning_seeds=tuning_seeds,
        seeds=settings.seed,
        training=training,
        held_back=held_back,
        metric=metric,
    )


def plan_of(budget: Budget, spaces: Sequence[Space], jobs: int, experiment: Experiment) -> TunePlan:
    """Return the plan of a tuning."""
    searched = {
        space.strategy: {key: dimension.text for key, dimension in space.dimensions.items()} for space in spaces
    }
    notices = experiment.plan.notices
    if experiment.domains.is_pool_tested:
        notices += (
            "the runs with the best values are evaluated on labels that the tuning sees: they give no better or worse; "
            "`adaptkit run --tune TRIALS` tunes inside each fit",
        )
    return TunePlan(budget, experiment.plan, searched, jobs=jobs, notices=notices)


def tuned_of(result: SearchResult) -> TunedStrategy:
    """Return the result of the search of one strategy as a record of the outcome."""
    space, best = result.space, result.best
    arm = changed(space.arm, best.values)
    return TunedStrategy(
        strategy=space.strategy,
        label=arm.label,
        first={key: dimension.text for key, dimension in space.first.items()},
        space={key: dimension.text for key, dimension in space.dimensions.items()},
        trials=tuple(
            TuningTrial(
                number=trial.number + 1,
                values=dict(trial.values),
                accuracy=trial.accuracy,
                loss=trial.loss if math.isfinite(trial.loss) else None,
                score=trial.score,
                error=trial.reason,
                run_ids=trial.runs,
            )
            for trial in result.trials
        ),
        chosen=dict(best.values),
        options=dict(arm.options),
        lr=arm.lr,
        accuracy=best.accuracy,
        score=best.score or 0.0,
        best_trial=best.number + 1,
        edges={key: f"{side} end; {space.stuck.get(key, 'not extended')}" for key, side in result.edges.items()},
    )


def line_of(budget: Budget, tuned: TunedStrategy) -> str:
    """Return one line about the tuning of a strategy: the budget, the searched ranges, and the chosen values."""
    seeds = f" x {len(budget.tuning_seeds)} seeds" if len(budget.tuning_seeds) > 1 else ""
    space = ", ".join(f"{key} {shown_range(text)}" for key, text in tuned.space.items())
    chosen = ", ".join(f"{key} {shown_value(value)}" for key, value in tuned.chosen.items())
    edges = "".join(f"; {key} is on the edge of its range" for key in tuned.edges)
    # Runs of earlier versions have this line too; all of them were tuned by accuracy.
    by = "" if budget.metric.key == ACCURACY else f" by {budget.metric.label}"
    epochs = counted(budget.epochs, "epoch")
    return f"{budget.given} trials of {epochs}{seeds}; searched {space}; chosen {chosen}{by}{edges}"


def shown_value(value: object) -> str:
    """Return a chosen value for display: numbers in at most six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)
