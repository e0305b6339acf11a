"""Put what a search plans and finds into the records that people and other programs read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adaptkit.experiment.preparation import Experiment
from adaptkit.experiment.validation import require_validation
from adaptkit.sweeps.search import Searched
from adaptkit.sweeps.spaces import Space, changed
from adaptkit.tune_outcome import Budget, Tuned, TunePlan, TuningTrial


def budget_of(experiment: Experiment, trials: int, method: str, tuning_seeds: tuple[int, ...]) -> Budget:
    """Return the budget of every strategy; raise BadInput where no image can be held back."""
    parts = [require_validation(experiment, seed) for seed in tuning_seeds]
    training, held_back = parts[0]
    settings = experiment.request.settings
    return Budget(trials, settings.epochs, method, tuning_seeds, settings.seed, training, held_back)


def plan_of(budget: Budget, spaces: Sequence[Space], jobs: int, experiment: Experiment) -> TunePlan:
    """Return what a tuning will do."""
    searched = {
        space.strategy: {key: dimension.text for key, dimension in space.dimensions.items()} for space in spaces
    }
    return TunePlan(budget, searched, jobs, experiment.plan.notices)


def tuned_of(found: Searched) -> Tuned:
    """Return what was found of one strategy."""
    space, best = found.space, found.best
    arm = changed(space.arm, best.values)
    return Tuned(
        strategy=space.strategy,
        label=arm.label,
        first={key: dimension.text for key, dimension in space.first.items()},
        space={key: dimension.text for key, dimension in space.dimensions.items()},
        trials=tuple(
            TuningTrial(
                trial.number + 1,
                dict(trial.values),
                trial.value or 0.0,
                trial.loss if math.isfinite(trial.loss) else None,
                trial.reason,
                trial.runs,
            )
            for trial in found.trials
        ),
        chosen=dict(best.values),
        options=dict(arm.options),
        lr=arm.lr,
        accuracy=best.value or 0.0,
        best_trial=best.number + 1,
        edges={key: f"{side} end; {space.stuck.get(key, 'not grown')}" for key, side in found.edges.items()},
    )


def line_of(budget: Budget, tuned: Tuned) -> str:
    """Return how a strategy was tuned, in one line: the budget, then what was searched, then what was chosen."""
    seeds = f" x {len(budget.tuning_seeds)} seeds" if len(budget.tuning_seeds) > 1 else ""
    space = ", ".join(f"{key} {shown_space(text)}" for key, text in tuned.space.items())
    chosen = ", ".join(f"{key} {shown_value(value)}" for key, value in tuned.chosen.items())
    edges = "".join(f"; {key} lies on the edge of its range" for key in tuned.edges)
    return f"{budget.given} trials of {budget.epochs} epochs{seeds}; searched {space}; chosen {chosen}{edges}"


def shown_space(text: str) -> str:
    """Return what is searched of a key as people read it: `0.0001..0.1 (log)`."""
    return f"{text.removesuffix('/log')} (log)" if text.endswith("/log") else text


def shown_value(value: object) -> str:
    """Return a chosen value as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
