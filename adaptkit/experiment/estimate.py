"""Estimate how long an experiment will take by training a few batches of it."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from adaptkit.data.stored import held
from adaptkit.data.views import views_of
from adaptkit.experiment.base import build_model
from adaptkit.experiment.preparation import Experiment, draw_target
from adaptkit.request import Arm
from adaptkit.seeds import derive_seed
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain
from adaptkit.training.trainable import adapt

STEPS = 3


def estimate_seconds(experiment: Experiment) -> float:
    """Return the seconds that training and evaluation will take, from a few batches of the base and of each arm.

    Start-up, figures and tracking are not in it; a base that is in the cache costs nothing.
    """
    seeds, epochs = len(experiment.request.settings.seed), experiment.request.settings.epochs
    runs = sum(seeds * epochs * epoch_seconds(experiment, arm) for arm in experiment.request.arms)
    return base_seconds(experiment) + runs


def base_seconds(experiment: Experiment) -> float:
    """Return the seconds that training the base will take: none if it is in the cache, or is not trained."""
    request, domains = experiment.request, experiment.domains
    if experiment.plan.base_cached or domains.clean_test is None:
        return 0.0
    settings = request.settings.base
    model = experiment.place(build_model(request, domains))
    groups = [{"params": list(model.parameters())}]
    recipe = Recipe(1, settings.batch_size, settings.lr, 0, precision=request.settings.precision)
    step, test = _measure(experiment, model, groups, recipe)
    steps = math.ceil(len(domains.source) / settings.batch_size)
    return settings.epochs * (steps * step + len(domains.clean_test) * test)


def epoch_seconds(experiment: Experiment, arm: Arm) -> float:
    """Return the seconds that an epoch of adaptation will take, trained and evaluated."""
    request, domains = experiment.request, experiment.domains
    settings = request.settings
    model = build_model(request, domains)
    groups = adapt(model, arm.create(), derive_seed(settings.seed[0], "init"), arm.new_head)
    recipe = Recipe(1, settings.batch_size, arm.lr, 0, settings.optimizer, precision=settings.precision)
    step, test = _measure(experiment, experiment.place(model), groups, recipe)
    tested = len(domains.clean_test or ())
    if settings.evaluate_shifted == "epoch":
        tested += len(domains.shifted_test)
    drawn = len(draw_target(request, domains, settings.seed[0]))
    return math.ceil(drawn / settings.batch_size) * step + tested * test


def _measure(
    experiment: Experiment, model: nn.Module, groups: list[dict[str, Any]], recipe: Recipe
) -> tuple[float, float]:
    """Return the seconds of a training step and of evaluating one image."""
    request = experiment.request
    chosen = draw_target(request, experiment.domains, request.settings.seed[0])[: STEPS * recipe.batch_size]
    pixels = held(experiment.domains.pool.take(chosen)).pixels
    labels = experiment.domains.pool.labels[chosen].to(experiment.device)
    images, truth = experiment.clean or experiment.shifted
    some = images[:500], truth[:500]
    shifts = (*request.shifts, *request.augmentations)
    passes = plain(model, lambda number: views_of(pixels, shifts, number), some)
    for _ in range(2):  # the first pass warms up
        epoch = next(fit(model, groups, passes, labels, recipe))
    steps = math.ceil(len(labels) / recipe.batch_size)
    return (epoch.seconds - epoch.evaluation_seconds) / steps, epoch.evaluation_seconds / len(some[1])
