"""Tuning runs: train on most of the labelled target images and evaluate on held-back ones, never on a test set."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor, nn

from adaptkit.data.domains import Domains, TestSet
from adaptkit.data.protocols import hold_back
from adaptkit.errors import BadInput
from adaptkit.events import Epoch, RunResult, RunStart
from adaptkit.experiment.description import describe_run
from adaptkit.experiment.inputs import TRIED, Route
from adaptkit.experiment.outcome import RunSummary
from adaptkit.experiment.prepare import Experiment, draw_target
from adaptkit.experiment.recovery import RunRecovery
from adaptkit.experiment.stage import Stage
from adaptkit.experiment.training import Training, Watcher, train
from adaptkit.experiment.trial_scores import score_trial
from adaptkit.names import (
    KIND_TAG,
    TIMING_TAG,
    TRIAL_KEY_TAG,
    VALIDATION_ACCURACY,
    VALIDATION_LOSS,
    VALIDATION_SCORE,
)
from adaptkit.seeds import derive_seed
from adaptkit.settings.identity import trial_key
from adaptkit.settings.request import Arm
from adaptkit.system.core_sharing import Occupancy
from adaptkit.training.frozen.features import ImageSet
from adaptkit.training.loop import VALIDATION
from adaptkit.training.passes import PLAIN_VIEWS, Passes, Test

ACCURACY, LOSS = VALIDATION_ACCURACY, VALIDATION_LOSS


def split_drawn(experiment: Experiment, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images of a seed as positions in the pool, and which of them train and which are held back."""
    drawn = draw_target(experiment.request, experiment.domains, seed)
    return drawn, *hold_back(experiment.domains.labels.at(drawn), derive_seed(seed, "draw"))


def require_validation(experiment: Experiment, seed: int) -> tuple[int, int]:
    """Return the numbers of training and validation images; raise BadInput if no image can be held back."""
    drawn, training, held = split_drawn(experiment, seed)
    if not len(held):
        raise BadInput(
            f"cannot hold back any of the {len(drawn)} labelled images for validation: use at least 2 shots a class"
        )
    return len(training), len(held)


def blinded(domains: Domains) -> Domains:
    """Replace the test images by a few black ones, so that models can still be tried."""

    def black(test: TestSet) -> TestSet:
        few = min(TRIED, len(test))
        shape = (few, *test.pixels.shape[1:])
        zeros = torch.zeros(few, dtype=torch.int64)
        return TestSet(torch.zeros(shape), zeros, zeros.clone())

    clean = None if domains.clean_test is None else black(domains.clean_test)
    return dataclasses.replace(domains, clean_test=clean, shifted_test=black(domains.shifted_test))


def tune_once(stage: Stage, arm: Arm, seed: int) -> RunSummary:
    """Train with one strategy and seed and notify the plugins.

    The metrics of the summary are those of the last epoch, and the score by the deciding metric, if it is defined.
    """
    occupancy = stage.seat.occupancy()
    experiment, base = stage.experiment, stage.base
    described = describe_run(
        experiment, base, base_run_id=stage.base_run_id, arm=arm, seed=seed, occupancy=occupancy, label=stage.label
    )
    key = trial_key(
        "tuning",
        described.params,
        data_fingerprint=experiment.domains.fingerprint,
        base_fingerprint=base.fingerprint,
    )
    text = "A tuning run: a fifth of the labelled images is held back for validation; no test set is used."
    run = dataclasses.replace(
        described,
        kind="tuning",
        tags={**described.tags, KIND_TAG: "tuning", TRIAL_KEY_TAG: key},
        description=f"{described.description} {text}",
    )
    epochs: list[Epoch] = []
    return stage.attempt(
        run,
        lambda: _train(stage, run, arm=arm, seed=seed, occupancy=occupancy, epochs=epochs),
        arm=arm,
        seed=seed,
        epochs=epochs,
    )


def _train(
    stage: Stage, run: RunStart, *, arm: Arm, seed: int, occupancy: Occupancy, epochs: list[Epoch]
) -> dict[str, float]:
    experiment, inputs = stage.experiment, stage.inputs
    request, pool = experiment.request, experiment.domains.pool
    drawn, training, held = split_drawn(experiment, seed)
    shifts = (*request.shifts, *request.augmentations)
    # Train on the images of the adaptation run without the held-back ones. The store removes views by the prefix of
    # their name: this name has the prefix of the views of the adaptation run.
    name = f"views {seed}/tuning"

    def views(part: str, positions: Tensor, *, augmented: bool, purpose: str) -> Test:
        images = inputs.drawn_views(
            f"{name} {part}",
            functools.partial(drawn.__getitem__, positions),
            shifts=shifts if augmented else request.shifts,
            view_seed=derive_seed(derive_seed(seed, "order" if augmented else "draw"), purpose),
        )
        return Test(images, pool.labels[drawn[positions]].to(experiment.device))

    def training_views(epoch: int) -> ImageSet:
        part = str(epoch) if shifts else "fixed"
        return views(part, training, augmented=epoch != PLAIN_VIEWS, purpose=f"views {epoch}").images

    validation = views("validation", held, augmented=False, purpose="validation views")

    def passes(model: nn.Module, route: Route) -> Passes:
        return inputs.over(
            model,
            training_views,
            labels=pool.labels[drawn[training]].to(experiment.device),
            tests={VALIDATION: validation},
            tried=validation.images.value.tensor[:TRIED],
            route=route,
        )

    def started(model: nn.Module) -> None:
        stage.plugins.notify("adaptkit_run_started", run=run, model=model)

    def ended(epoch: Epoch) -> None:
        epochs.append(epoch)
        stage.plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)

    trained = train(stage, Training(arm, seed, passes), Watcher(started, ended), RunRecovery())
    last, name = epochs[-1], f"{VALIDATION_SCORE}{request.settings.metric[0]}"
    groups = experiment.domains.labels.at(drawn[held]).groups
    score = score_trial(experiment, stage.plugins, last, passes=trained.passes, groups=groups)
    # Accuracies are logged after each epoch.
    scores = {} if score is None or name == ACCURACY else {name: score}
    config = request.config_text(request.run_params(arm, seed))
    tags = {TIMING_TAG: stage.seat.timing_since(occupancy)}
    result = RunResult(
        metrics=scores, epochs=(), predictions={}, classes=experiment.domains.classes, config=config, tags=tags
    )
    stage.plugins.notify("adaptkit_run_ended", run=run, result=result, model=trained.adapted.model)
    return scores | {ACCURACY: last.validation_accuracy or 0.0, LOSS: last.validation_loss or 0.0}
