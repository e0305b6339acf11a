"""Tune inside a fit: try configurations on a part of its own training images, and choose the best one.

The images that the fit evaluates are not used. Every strategy gets the same number of trials, all fits of one seed the
same division for all strategies, and all random numbers follow from the seed of the run, the fit and the trial.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adaptkit.data.protocols import Labels, inner_division
from adaptkit.errors import HINT, AdaptkitError, RunFailed, lacks_memory
from adaptkit.experiment.inputs import Route
from adaptkit.experiment.preflight import can_be_adapted
from adaptkit.experiment.recovery import RunRecovery
from adaptkit.experiment.stage import Stage
from adaptkit.experiment.training import MakePasses, Training, Watcher, train
from adaptkit.experiment.trial_scores import deciding_metric, preference, score_trial
from adaptkit.plugins.ranges import Choice
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm
from adaptkit.settings.spaces import Space, changed, first_points
from adaptkit.training.loop import VALIDATION
from adaptkit.training.passes import FoldPasses, Passes


@dataclass(frozen=True)
class Trial:
    """One configuration that a fit has tried: its values, and its scores on the held-back images.

    `score` is that of the deciding metric; None if it is not defined. A failed trial has an `error` and the accuracy 0;
    its loss is None.
    """

    number: int
    values: Mapping[str, Any]
    accuracy: float = 0.0
    loss: float | None = None
    score: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class FitTuning:
    """The tuning of one fit: its trials, the number of the best one, and the seconds that all of them took.

    A trial trains on `training` of the fit's training images and is evaluated on the `held_back` other ones.
    """

    training: int
    held_back: int
    trials: tuple[Trial, ...]
    best: int
    seconds: float

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> FitTuning:
        """Return a tuning from the dictionary that `dataclasses.asdict` makes of it."""
        return cls(**{**content, "trials": tuple(Trial(**trial) for trial in content["trials"])})

    @property
    def chosen(self) -> Mapping[str, Any]:
        """Return the values of the best trial."""
        return self.trials[self.best - 1].values

    def arm(self, arm: Arm) -> Arm:
        """Return the arm with the chosen values."""
        return changed(arm, self.chosen)


def tune_fit(stage: Stage, arm: Arm, *, seed: int, labels: Labels, rows: Tensor, passes: MakePasses) -> FitTuning:
    """Try configurations of a strategy on the training images of one fit, and return the trials.

    `labels` are those of the fit's training images, and `rows` their positions among the images of `passes`, whose test
    set `validation` has the same images as the training, in the same order. Raises RunFailed if every trial fails.
    """
    count = stage.experiment.request.settings.tuning.trials
    training, held = inner_division(labels, seed)
    groups = labels.at(held).groups
    space = _space(stage, arm)
    points = [space.defaults, *first_points(space, count - 1, derive_seed(seed, f"tuning {arm.strategy}"))]

    def part(model: nn.Module, route: Route) -> Passes:
        return FoldPasses(passes(model, route), rows[training], {VALIDATION: rows[held]})

    trials, seconds = [], 0.0
    for number, values in enumerate(points, start=1):
        try:
            trial, took = _train(stage, changed(arm, values), derive_seed(seed, f"trial {number}"), part, groups)
        except Exception as error:
            if not (isinstance(error, AdaptkitError) or lacks_memory(error)):
                raise
            reason = str(error) if isinstance(error, AdaptkitError) else HINT
            trials.append(Trial(number, values, error=reason))
            continue
        seconds += took
        trials.append(dataclasses.replace(trial, number=number, values=values))
    good = [trial for trial in trials if trial.error is None]
    if not good:
        raise RunFailed(f"every trial of its tuning failed: {trials[0].error}")
    metric = deciding_metric(stage.experiment, stage.plugins)
    best = min(good, key=lambda trial: (*preference(metric, trial.score, trial.loss), trial.number))
    return FitTuning(len(training), len(held), trials=tuple(trials), best=best.number, seconds=seconds)


def _space(stage: Stage, arm: Arm) -> Space:
    """Return the space of a strategy, without values of lists that this model does not allow."""
    request = stage.experiment.request
    fits = functools.partial(can_be_adapted, stage.base.build(request, stage.experiment.domains))
    dimensions = dict(arm.searched)
    for key, dimension in arm.searched.items():
        if isinstance(dimension, Choice) and key in arm.options:
            values = tuple(value for value in dimension.values if fits(changed(arm, {key: value})))
            dimensions[key] = Choice(values or (arm.options[key],))
    return Space(arm, dimensions, dimensions)


def _train(
    stage: Stage, arm: Arm, seed: int, passes: MakePasses, groups: tuple[str, ...] | None
) -> tuple[Trial, float]:
    """Train once; return a trial with the scores on the held-back images, and the seconds."""
    trained = train(stage, Training(arm, seed, passes), Watcher(), RunRecovery())
    inputs, last = trained.passes, trained.epochs[-1]
    loss = last.validation_loss
    finite = loss if loss is not None and math.isfinite(loss) else None
    score = score_trial(stage.experiment, stage.plugins, last, passes=inputs, groups=groups)
    return Trial(0, {}, accuracy=last.validation_accuracy or 0.0, loss=finite, score=score), last.cumulative_seconds


def tuning_text(arm: Arm, tunings: Sequence[FitTuning]) -> str:
    """Return the content of a run's tuning.json: the searched ranges, and the trials and the choice of each fit."""
    fits = []
    for number, tuning in enumerate(tunings):
        plain = dataclasses.asdict(tuning)
        del plain["seconds"]  # so that a repetition of the run has the same file
        fits.append({"fit": number, **plain, "chosen": dict(tuning.chosen)})
    content = {
        "strategy": arm.strategy,
        "trials": len(tunings[0].trials),
        "space": {key: dimension.text for key, dimension in arm.searched.items()},
        "fits": fits,
    }
    return json.dumps(content, indent=2, default=str) + "\n"
