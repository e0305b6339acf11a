"""Estimate how long an experiment will take by training a few batches of it."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from adaptkit.data.views import shifted_views
from adaptkit.experiment.base import build_model
from adaptkit.experiment.preparation import Experiment, draw_target
from adaptkit.seeds import derive_seed
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain
from adaptkit.training.trainable import adapt

STEPS = 3


def estimate_seconds(experiment: Experiment) -> float:
    """Return the seconds that training and evaluation will take, from a few batches of the base and of each arm.

    Start-up, figures and tracking are not in it; a base that is in the cache costs nothing.
    """
    request, domains = experiment.request, experiment.domains
    settings = request.settings
    seconds = 0.0
    if not experiment.plan.base_cached:
        model = experiment.place(build_model(request, domains))
        groups = [{"params": list(model.parameters())}]
        recipe = Recipe(1, settings.base.batch_size, settings.base.lr, 0, precision=settings.precision)
        step, test = _measure(experiment, model, groups, recipe)
        steps = math.ceil(len(domains.source) / settings.base.batch_size)
        seconds += settings.base.epochs * (steps * step + len(domains.clean_test.labels) * test)
    drawn = len(draw_target(request, domains, settings.seed[0]))
    for arm in request.arms:
        model = build_model(request, domains)
        groups = adapt(model, arm.create(), derive_seed(settings.seed[0], "init"))
        recipe = Recipe(1, settings.batch_size, arm.lr, 0, settings.optimizer, precision=settings.precision)
        step, test = _measure(experiment, experiment.place(model), groups, recipe)
        tested = len(domains.clean_test.labels)
        if settings.evaluate_shifted == "epoch":
            tested += len(domains.shifted_test.labels)
        epoch = math.ceil(drawn / settings.batch_size) * step + tested * test
        seconds += len(settings.seed) * settings.epochs * epoch
    return seconds


def _measure(
    experiment: Experiment, model: nn.Module, groups: list[dict[str, Any]], recipe: Recipe
) -> tuple[float, float]:
    """Return the seconds of a training step and of evaluating one image."""
    request = experiment.request
    chosen = draw_target(request, experiment.domains, request.settings.seed[0])[: STEPS * recipe.batch_size]
    pixels = experiment.domains.pool.pixels[chosen]
    labels = experiment.domains.pool.labels[chosen].to(experiment.device)
    clean = experiment.clean[0][:500], experiment.clean[1][:500]
    passes = plain(model, lambda number: shifted_views(pixels, request.shifts, number), clean)
    for _ in range(2):  # the first pass warms up
        epoch = next(fit(model, groups, passes, labels, recipe))
    steps = math.ceil(len(labels) / recipe.batch_size)
    return (epoch.seconds - epoch.evaluation_seconds) / steps, epoch.evaluation_seconds / len(clean[1])
