"""One tuning run: train on most of the labelled target images, and judge by those held back. No test set is touched."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

from adaptkit.data.domains import Domains, TestSet
from adaptkit.errors import BadInput
from adaptkit.events import Epoch, RunResult, RunStart
from adaptkit.experiment.adaptation import Stage
from adaptkit.experiment.description import describe_run
from adaptkit.experiment.inputs import TRIED
from adaptkit.experiment.outcome import RunSummary
from adaptkit.experiment.prepare import Experiment, draw_target
from adaptkit.names import KIND_TAG, TIMING_TAG, TRIAL_KEY_TAG, VALIDATION_ACCURACY, VALIDATION_LOSS
from adaptkit.seeds import derive_seed
from adaptkit.settings.identity import trial_key
from adaptkit.settings.request import Arm
from adaptkit.system.core_sharing import Company
from adaptkit.training.loop import VALIDATION, fit
from adaptkit.training.passes import Test

#: the share of the labelled images that is held back, and the metrics that they give
HELD_BACK = 0.2
ACCURACY, LOSS = VALIDATION_ACCURACY, VALIDATION_LOSS


def split_drawn(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return positions for training and for validation: four fifths and one fifth of each class, by this seed alone.

    A class with a single image trains; of two or more at least one is held back.
    """
    generator = torch.Generator().manual_seed(derive_seed(derive_seed(seed, "draw"), "validation"))
    order = torch.randperm(len(labels), generator=generator)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in set(labels.tolist()):
        members = order[labels[order] == label]
        count = max(1, math.floor(HELD_BACK * len(members) + 0.5)) if len(members) > 1 else 0
        held[members[:count]] = True
    return torch.arange(len(labels))[~held], torch.arange(len(labels))[held]


def require_validation(experiment: Experiment, seed: int) -> tuple[int, int]:
    """Return how many images a tuning run trains on and is judged by; raise BadInput where none can be held back."""
    drawn = draw_target(experiment.request, experiment.domains, seed)
    training, held = split_drawn(experiment.domains.pool.labels[drawn], seed)
    if not len(held):
        raise BadInput(f"no image can be held back from the {len(drawn)} labelled ones: give 2 shots a class or more")
    return len(training), len(held)


def blinded(domains: Domains) -> Domains:
    """Return the images without those of the tests: a few black ones stand for them, on which models are tried."""

    def black(test: TestSet) -> TestSet:
        few = min(TRIED, len(test))
        shape = (few, *test.pixels.shape[1:])
        return TestSet(torch.zeros(shape), torch.zeros(few, dtype=torch.int64), torch.zeros(few, dtype=torch.int64))

    clean = None if domains.clean_test is None else black(domains.clean_test)
    return dataclasses.replace(domains, clean_test=clean, shifted_test=black(domains.shifted_test))


def tune_once(stage: Stage, arm: Arm, seed: int) -> RunSummary:
    """Train with one strategy and seed, telling the watchers; the record's metrics are those of the last epoch."""
    company = stage.seat.company()
    experiment, base = stage.experiment, stage.base
    described = describe_run(experiment, base, stage.base_run_id, arm, seed, company, stage.label)
    key = trial_key("tuning", described.params, experiment.domains.fingerprint, base.fingerprint)
    text = "A tuning run: a fifth of the labelled images is held back, and no test set is looked at."
    run = dataclasses.replace(
        described,
        kind="tuning",
        tags={**described.tags, KIND_TAG: "tuning", TRIAL_KEY_TAG: key},
        description=f"{described.description} {text}",
    )
    epochs: list[Epoch] = []
    return stage.attempt(run, arm, seed, epochs, lambda: _train(stage, run, arm, seed, company, epochs))


def _train(stage: Stage, run: RunStart, arm: Arm, seed: int, company: Company, epochs: list[Epoch]) -> dict[str, float]:
    experiment, feeding = stage.experiment, stage.feeding
    request, pool = experiment.request, experiment.domains.pool
    drawn = draw_target(request, experiment.domains, seed)
    training, held = split_drawn(pool.labels[drawn], seed)
    shifts = (*request.shifts, *request.augmentations)
    # The adaptation's own images but for those held back: a name that begins with its views' is forgotten with them.
    name = f"views {seed}/tuning"

    def seen(part: str, positions: Tensor, augmented: bool, purpose: str) -> Test:
        own = shifts if augmented else request.shifts
        view_seed = derive_seed(derive_seed(seed, "order" if augmented else "draw"), purpose)
        images = feeding.drawn_views(f"{name} {part}", functools.partial(drawn.__getitem__, positions), own, view_seed)
        return Test(images, pool.labels[drawn[positions]].to(experiment.device))

    validation = seen("validation", held, False, "validation views")
    trained = stage.adapted(arm, seed)
    stage.plugins.notify("adaptkit_run_started", run=run, model=trained.model)
    step_ended = getattr(trained.strategy, "step_ended", None)
    passes = feeding.over(
        trained.model,
        lambda epoch: seen(str(epoch) if shifts else "fixed", training, True, f"views {epoch}").images,
        {VALIDATION: validation},
        validation.images.value.tensor[:TRIED],
        whole=step_ended is not None,
    )
    labels = pool.labels[drawn[training]].to(experiment.device)
    for epoch in fit(trained.model, trained.groups, passes, labels, stage.recipe(arm, seed), step_ended):
        epochs.append(epoch)
        stage.plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
    config = request.config_text(request.run_params(arm, seed))
    tags = {TIMING_TAG: stage.seat.timing_since(company)}
    # Its accuracies are logged epoch by epoch, and there is nothing to draw.
    result = RunResult({}, (), {}, experiment.domains.classes, config, tags)
    stage.plugins.notify("adaptkit_run_ended", run=run, result=result, model=trained.model)
    return {ACCURACY: epochs[-1].validation_accuracy or 0.0, LOSS: epochs[-1].validation_loss or 0.0}
