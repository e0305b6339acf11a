"""What a tuning plans and finds, as typed records: the same for Python, `--json` and tuning.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.comparison.records import Comparisons
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.tuning_run import require_validation
from adaptkit.sweeps.outcome import SweepTrial
from adaptkit.tuning.search import SearchResult
from adaptkit.tuning.spaces import Space, changed


@dataclass(frozen=True)
class Budget:
    """What every strategy is given alike: `trials` before any range grows, `given` with what followed, by `method`.

    A trial is a run of so many epochs for each of the `tuning_seeds`, on `training` images; `held_back` ones judge it.
    """

    trials: int
    epochs: int
    method: str
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    training: int
    held_back: int
    given: int = 0


@dataclass(frozen=True)
class TunePlan:
    """What a tuning will do: `spaces` are what is searched, by strategy and key, as it is written."""

    budget: Budget
    spaces: Mapping[str, Mapping[str, str]]
    jobs: int
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TuningTrial:
    """One trial: its values, and the accuracy on the images held back; 0 for one that failed, with the reason.

    Of trials of equal accuracy, that with the smallest loss is chosen.
    """

    number: int
    values: Mapping[str, Any]
    accuracy: float
    loss: float | None = None
    error: str | None = None
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class TunedStrategy:
    """What was found of one strategy.

    `first` and `space` are what was searched before and after ranges grew, by key. `chosen` are the values of the best
    trial, `options` and `lr` all that the strategy is then run with. `edges` are the keys whose value lies on the edge
    of what was searched all the same, with the reason why it did not grow further.
    """

    strategy: str
    label: str
    first: Mapping[str, str]
    space: Mapping[str, str]
    trials: tuple[TuningTrial, ...]
    chosen: Mapping[str, Any]
    options: Mapping[str, Any]
    lr: float
    accuracy: float
    best_trial: int
    edges: Mapping[str, str]


@dataclass(frozen=True)
class TuneOutcome:
    """A finished tuning: the budget, what was chosen, and the runs on all labelled images with fresh seeds.

    `comparison` judges these; it is None when none has finished.
    """

    budget: Budget
    strategies: tuple[TunedStrategy, ...]
    runs: tuple[SweepTrial, ...]
    parent_run_id: str
    experiment: str
    tracking_uri: str
    ui_command: str | None
    ui_url: str
    notices: tuple[str, ...] = ()
    comparison: Comparisons | None = None

    @property
    def failed(self) -> tuple[SweepTrial, ...]:
        """Return the runs that failed."""
        return tuple(run for run in self.runs if run.status == "failed")

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types."""
        plain = dataclasses.asdict(dataclasses.replace(self, comparison=None))
        return plain | {"comparison": None if self.comparison is None else self.comparison.to_dict()}


def budget_of(experiment: Experiment, trials: int, method: str, tuning_seeds: tuple[int, ...]) -> Budget:
    """Return the budget of every strategy; raise BadInput if no image can be held out for validation."""
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
    )


def plan_of(budget: Budget, spaces: Sequence[Space], jobs: int, experiment: Experiment) -> TunePlan:
    """Return the plan of a tuning."""
    searched = {
        space.strategy: {key: dimension.text for key, dimension in space.dimensions.items()} for space in spaces
    }
    return TunePlan(budget, searched, jobs=jobs, notices=experiment.plan.notices)


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
                accuracy=trial.value or 0.0,
                loss=trial.loss if math.isfinite(trial.loss) else None,
                error=trial.reason,
                run_ids=trial.runs,
            )
            for trial in result.trials
        ),
        chosen=dict(best.values),
        options=dict(arm.options),
        lr=arm.lr,
        accuracy=best.value or 0.0,
        best_trial=best.number + 1,
        edges={key: f"{side} end; {space.stuck.get(key, 'not extended')}" for key, side in result.edges.items()},
    )


def line_of(budget: Budget, tuned: TunedStrategy) -> str:
    """Return one line about the tuning of a strategy: the budget, the searched ranges, and the chosen values."""
    seeds = f" x {len(budget.tuning_seeds)} seeds" if len(budget.tuning_seeds) > 1 else ""
    space = ", ".join(f"{key} {shown_space(text)}" for key, text in tuned.space.items())
    chosen = ", ".join(f"{key} {shown_value(value)}" for key, value in tuned.chosen.items())
    edges = "".join(f"; {key} is on the edge of its range" for key in tuned.edges)
    return f"{budget.given} trials of {budget.epochs} epochs{seeds}; searched {space}; chosen {chosen}{edges}"


def shown_space(text: str) -> str:
    """Return a range or list for display: `0.0001..0.1 (log)`."""
    return f"{text.removesuffix('/log')} (log)" if text.endswith("/log") else text


def shown_value(value: object) -> str:
    """Return a chosen value for display: numbers in at most six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)
