"""Train a copy of the base with one strategy, save its adapter, and load that onto a fresh base.

These are the steps that the fits of adaptation runs and refits share.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptkit.adapters.files import load_adapter, save_adapter
from adaptkit.events import Epoch, RunStart
from adaptkit.experiment.description import adapter_card
from adaptkit.experiment.inputs import Route
from adaptkit.experiment.measurement import require_same
from adaptkit.experiment.recovery import RunRecovery
from adaptkit.experiment.stage import AdaptedModel, Stage, init_seed
from adaptkit.names import ADAPTER_WEIGHTS_FILE
from adaptkit.plugins.components import is_fitted
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm
from adaptkit.training.checkpoints import has_state
from adaptkit.training.evaluation import predict_logits
from adaptkit.training.fitted import Examples
from adaptkit.training.loop import VALIDATION, Clock, Recipe, evaluate, fit, fit_once
from adaptkit.training.memory import step_bytes
from adaptkit.training.passes import Passes
from adaptkit.training.recomputation import find_blocks, is_trained
from adaptkit.training.seeding import RandomStream

#: members of a strategy that need the images of a batch, or that change what is trained between steps
OF_WHOLE_MODEL = ("loss", "batch", "step_ended", "phases")
HIDDEN_STATE = "; is there state outside parameters and buffers?"


#: function that returns the inputs of a model
MakePasses = Callable[[nn.Module, Route], Passes]


@dataclass(frozen=True)
class Training:
    """One training of a run: the strategy with the seed of the run and the number of the fold, and its inputs.

    `passes(model, route)` returns the inputs of a model. `batch` is a copy of the first training images and their
    labels, which measure the memory; it is not measured without them.
    """

    arm: Arm
    seed: int
    passes: MakePasses
    fold: int = 0
    batch: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Watcher:
    """Callbacks of a training: before its first batch, for the epochs of its checkpoint, and after each other epoch."""

    started: Callable[[nn.Module], None] = lambda model: None
    ended: Callable[[Epoch], None] = lambda epoch: None
    resumed: Callable[[Sequence[Epoch]], None] = lambda epochs: None


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with its inputs, its epochs, and the peak memory of a training step in bytes.

    `route` is how its forward passes run.
    """

    training: Training
    adapted: AdaptedModel
    passes: Passes
    epochs: tuple[Epoch, ...]
    route: Route
    memory: int


def runs_whole(adapted: AdaptedModel, recipe: Recipe) -> bool:
    """Return whether every pass runs the whole model: a strategy reads images or changes the model between steps."""
    needs_images = any(hasattr(adapted.strategy, member) for member in OF_WHOLE_MODEL)
    return needs_images or (recipe.checkpointing and is_trained(find_blocks(adapted.model)))


def train(stage: Stage, training: Training, watcher: Watcher, recovery: RunRecovery) -> TrainedModel:
    """Train a copy of the base, from its checkpoint if it has one."""
    if is_fitted(training.arm.checked):
        return _fit(stage, training, watcher)
    recipe = stage.recipe(training.arm, training.seed, training.fold)
    adapted = stage.adapted(training.arm, training.seed, training.fold)
    memory = 0 if training.batch is None else step_bytes(adapted.model, *training.batch, recipe=recipe)
    watcher.started(adapted.model)
    has_step_hook = hasattr(adapted.strategy, "step_ended") and not has_state(adapted.strategy)
    route = Route(whole=runs_whole(adapted, recipe))
    passes = training.passes(adapted.model, route)
    start = recovery.start(adapted.model, has_step_hook=has_step_hook, fold=training.fold)
    epochs = [*(start.epochs if start is not None else ())]
    watcher.resumed(epochs)
    for epoch in fit(
        adapted.model,
        adapted.groups,
        passes,
        recipe=recipe,
        strategy=adapted.strategy,
        start=start,
        keep=recovery.keep,
    ):
        epochs.append(epoch)
        watcher.ended(epoch)
    if hasattr(adapted.strategy, "finish"):
        finish(adapted, stage.base_model, seed=recipe.order_seed)
        if VALIDATION in passes.tests:  # the scores of a trial are those of the finished model
            epochs[-1] = dataclasses.replace(epochs[-1], **evaluate(passes, recipe.precision, Clock()))
    return TrainedModel(training, adapted, passes, epochs=tuple(epochs), route=route, memory=memory)


def finish(adapted: AdaptedModel, base: nn.Module, *, seed: int) -> None:
    """Let a strategy change its trained parameters once, after training; it gets a copy of the base."""
    adapted.model.eval()
    with torch.no_grad(), RandomStream(derive_seed(seed, "finish")):
        adapted.strategy.finish(adapted.model, copy.deepcopy(base))  # type: ignore[attr-defined]


def _fit(stage: Stage, training: Training, watcher: Watcher) -> TrainedModel:
    watcher.started(copy.deepcopy(stage.base_model))
    fitted = fit_head_of(stage, training.arm, seed=training.seed, fold=training.fold, passes=training.passes)
    watcher.ended(fitted.epoch)
    return TrainedModel(
        training,
        fitted.adapted,
        fitted.passes,
        epochs=(fitted.epoch,),
        route=Route(probe=stage.probe),
        memory=fitted.memory,
    )


@dataclass(frozen=True)
class FittedModel:
    """A model with a fitted head, its inputs, the record of its only epoch, and the memory of the fit in bytes."""

    adapted: AdaptedModel
    passes: Passes
    epoch: Epoch
    memory: int


def fit_head_of(stage: Stage, arm: Arm, *, seed: int, fold: int = 0, passes: MakePasses) -> FittedModel:
    """Fit the head of a copy of the base with a strategy that has `fit`."""
    settings, route = stage.experiment.request.settings, Route(probe=stage.probe)
    made: list[AdaptedModel] = []

    def put(examples: Examples) -> nn.Module:
        made.append(stage.adapted(arm, seed, fold, examples))
        return made[0].model

    fitted, epoch, memory = fit_once(
        put,
        stage.probe.model,
        frozen=passes(stage.probe.model, route),
        after=lambda model: passes(model, route),
        precision=settings.precision,
        balanced=settings.class_weights == "balanced",
    )
    return FittedModel(made[0], fitted, epoch, memory)


def save(stage: Stage, trained: TrainedModel, folder: Path, *, temperature: float | None = None) -> dict[str, Path]:
    """Write the adapter of a trained model, with the temperature of a calibrated one; return its files by name."""
    tensors = trained.adapted.inherited.adapter(trained.adapted.model)
    training = trained.training
    seed = init_seed(training.seed, training.fold)
    card = adapter_card(
        stage.experiment,
        stage.base,
        arm=training.arm,
        init_seed=seed,
        tensors=tensors,
        temperature=temperature,
    )
    return save_adapter(folder, tensors, card)


def load(
    stage: Stage, arm: Arm, files: Mapping[str, Path], *, seed: int, fold: int = 0, sent: RunStart | None = None
) -> AdaptedModel:
    """Return a fresh base with a saved adapter.

    With the run `sent`, the tracking store keeps the adapter, and it is loaded from there, as users do.
    """
    kept = stage.tracker.keep_adapter(sent, files) if stage.tracker and sent is not None else None
    reloaded = stage.adapted(arm, seed, fold)
    folder = kept or files[ADAPTER_WEIGHTS_FILE].parent
    load_adapter(folder, reloaded.model, stage.base.fingerprint, free_rows=is_fitted(reloaded.strategy))
    return reloaded


def require_same_logits(stage: Stage, trained: TrainedModel, images: Tensor, logits: Tensor) -> None:
    """Raise RunFailed if a reloaded model gives other logits than the trained one.

    The trained model runs as a whole, so that this also checks the division into frozen and trained parts.
    """
    precision = stage.experiment.request.settings.precision
    require_same(
        logits,
        predict_logits(trained.adapted.model, images, precision),
        name=f"strategy {trained.training.arm.strategy}: the reloaded adapter",
        hint=HIDDEN_STATE,
    )
