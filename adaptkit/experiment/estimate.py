"""Estimate how long an experiment takes, from a few training steps of each strategy."""

from __future__ import annotations

import math
import time
from typing import Any

from torch import nn

from adaptkit.data.pixels import held
from adaptkit.data.protocols import HELD_BACK
from adaptkit.data.views import views_of
from adaptkit.experiment.base_cache import build_model
from adaptkit.experiment.prepare import Experiment, draw_target, find_fits
from adaptkit.plugins.components import is_fitted
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm
from adaptkit.training.evaluation import forward_seconds
from adaptkit.training.fitted import stand_in
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain_passes
from adaptkit.training.trainable import adapt

#: number of training steps to measure, and number of test images
STEPS, TESTED = 3, 500


def estimate_seconds(experiment: Experiment) -> float:
    """Return the seconds that training and evaluation will take: the base, and every strategy with every seed.

    Start-up, figures and tracking are not included.
    """
    settings = experiment.request.settings
    trials = settings.tuning.trials
    runs = sum(run_seconds(experiment, arm, settings.epochs, trials) for arm in experiment.request.arms)
    return base_seconds(experiment) + len(settings.seed) * runs


def base_seconds(experiment: Experiment) -> float:
    """Return the seconds that training the base will take; 0 if it is in the cache or is not trained."""
    request, domains = experiment.request, experiment.domains
    if experiment.plan.base_cached or domains.clean_test is None:
        return 0.0
    settings = request.settings.base
    model = experiment.place(build_model(request, domains))
    groups = [{"params": list(model.parameters())}]
    assert settings.lr is not None  # prepare() has chosen it
    recipe = Recipe(
        epochs=1, batch_size=settings.batch_size, lr=settings.lr, order_seed=0, precision=request.settings.precision
    )
    step, test = _measure(experiment, model, groups, recipe=recipe)
    steps = math.ceil(len(domains.source) / settings.batch_size)
    return settings.epochs * (steps * step + len(domains.clean_test) * test)


def run_seconds(experiment: Experiment, arm: Arm, epochs: int, trials: int) -> float:
    """Return the seconds that one adaptation run will take, with this number of trials in each fit."""
    request, domains = experiment.request, experiment.domains
    settings = request.settings
    if is_fitted(arm.checked):
        return _fitted_seconds(experiment, arm, trials if arm.searched else 0)
    model = build_model(request, domains)
    groups = adapt(model, arm.create(), init_seed=derive_seed(settings.seed[0], "init"), new_head=arm.new_head)
    recipe = Recipe(
        epochs=1,
        batch_size=settings.batch_size,
        lr=arm.lr or 0.0,
        order_seed=0,
        optimizer=settings.optimizer,
        precision=settings.precision,
    )
    step, test = _measure(experiment, experiment.place(model), groups, recipe=recipe)
    tested = len(domains.clean_test or ())
    seconds = 0.0
    for training in find_fits(request, domains, settings.seed[0]):
        evaluated = len(domains.shifted_test) if training.evaluated is None else len(training.evaluated)
        shifted = evaluated if settings.evaluate_shifted == "epoch" else 0
        epoch = math.ceil(len(training.train) / settings.batch_size) * step + (tested + shifted) * test
        seconds += epochs * epoch + len(request.severities) * evaluated * test
        held_back = HELD_BACK * len(training.train)
        trial = math.ceil((len(training.train) - held_back) / settings.batch_size) * step + held_back * test
        seconds += trials * epochs * trial
    return seconds


def _fitted_seconds(experiment: Experiment, arm: Arm, trials: int) -> float:
    """Return the seconds of one run that fits heads to features; the first of several strategies computes these."""
    request, domains = experiment.request, experiment.domains
    model, images = experiment.place(build_model(request, domains)), experiment.shifted[0][:TESTED]
    (passed,) = forward_seconds([model], images, repeats=1)
    tests = len(domains.clean_test or ()) + len(domains.shifted_test) * (1 + len(request.severities))
    seconds = (len(domains.pool) + tests) * passed / len(images)
    for training in find_fits(request, domains, request.settings.seed[0]):
        copied = build_model(request, domains)
        examples = stand_in(copied, len(training.train))
        start = time.perf_counter()
        adapt(copied, arm.create(), init_seed=0, examples=examples)
        seconds += (1 + trials) * (time.perf_counter() - start)
    return seconds


def _measure(
    experiment: Experiment, model: nn.Module, groups: list[dict[str, Any]], *, recipe: Recipe
) -> tuple[float, float]:
    """Return the seconds of a training step and of evaluating one image."""
    request = experiment.request
    chosen = draw_target(request, experiment.domains, request.settings.seed[0])[: STEPS * recipe.batch_size]
    pixels = held(experiment.domains.pool.take(chosen)).pixels
    labels = experiment.domains.pool.labels[chosen].to(experiment.device)
    images, truth = experiment.clean or experiment.shifted
    shifts = (*request.shifts, *request.augmentations)
    passes = plain_passes(
        model,
        lambda epoch: views_of(pixels, shifts, epoch),
        labels=labels,
        test=(images[:TESTED], truth[:TESTED]),
    )
    for _ in range(2):  # the first pass warms up
        epoch = next(fit(model, groups, passes, recipe=recipe))
    steps = math.ceil(len(labels) / recipe.batch_size)
    return (epoch.seconds - epoch.evaluation_seconds) / steps, epoch.evaluation_seconds / len(truth[:TESTED])
