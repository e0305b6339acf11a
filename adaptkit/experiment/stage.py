"""The shared context of an experiment's runs: base, inputs with cached features, plugins and tracker."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from adaptkit.adapters.files import Inherited
from adaptkit.backbones.layers import share_usage
from adaptkit.contracts import Strategy
from adaptkit.errors import HINT, AdaptkitError, RunFailed, entry_point, lacks_memory, plugin_fault
from adaptkit.events import Epoch, RunStart
from adaptkit.experiment.base_cache import Base
from adaptkit.experiment.inputs import ModelInputs, Probe
from adaptkit.experiment.measurement import (
    correct_over,
)
from adaptkit.experiment.outcome import RunSummary
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.recovery import Recovery
from adaptkit.plugins.components import is_fitted
from adaptkit.plugins.manager import Plugins, is_strict
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm
from adaptkit.system.core_sharing import Seat
from adaptkit.system.folders import features_allowed
from adaptkit.system.signals import origin
from adaptkit.training.evaluation import forward_seconds, pass_size
from adaptkit.training.fitted import Examples
from adaptkit.training.loop import Recipe
from adaptkit.training.trainable import Origin, adapt

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker


@dataclass(frozen=True)
class AdaptedModel:
    """A model that a strategy has changed, with what is needed to separate its adapter from the base."""

    model: nn.Module
    groups: list[dict[str, Any]]
    inherited: Inherited
    origin: Origin
    strategy: Strategy


@dataclass(frozen=True)
class Stage:
    """The shared context of an experiment's runs: base, inputs with cached features, plugins and tracker.

    `known_logits` and `known_zero_shot` hold results of the base that were computed before, by test set and by
    severity. `label` names the runs instead of their strategy and its options.
    """

    experiment: Experiment
    plugins: Plugins
    seat: Seat
    tracker: Tracker | None
    inputs: ModelInputs
    base: Base
    base_run_id: str | None
    base_model: nn.Module
    known_logits: Mapping[str, Tensor] | None = None
    known_zero_shot: Mapping[float, float] | None = None
    label: str | None = None
    recovery: Recovery | None = None

    @functools.cached_property
    def base_logits(self) -> Mapping[str, Tensor]:
        """Return the logits of the base on each test set; the same passes compute features that strategies need.

        The mapping is empty for a base with a new head, whose logits have no meaning.
        """
        if self.known_logits is not None:
            return self.known_logits
        request = self.experiment.request
        for arm in request.arms:
            # A strategy that cannot adapt this base fails in its own runs.
            with contextlib.suppress(Exception):
                self._expect(arm)
        return self.inputs.base_logits(self.base_model) if self.experiment.clean is not None else {}

    def _expect(self, arm: Arm) -> None:
        """Mark the features that a strategy reads, so that they are kept once they are computed."""
        if is_fitted(arm.checked):
            self.inputs.expect(self.probe.division)
        else:
            model = self.adapted(arm, self.experiment.request.settings.seed[0]).model
            self.inputs.expect(self.inputs.division_of(model))

    @functools.cached_property
    def probe(self) -> Probe:
        """Return the base for strategies that fit a head to its features."""
        model = self.experiment.place(self.base.build(self.experiment.request, self.experiment.domains))
        share_usage(self.base_model, model)
        return self.inputs.probe(model)

    @functools.cached_property
    def base_seconds(self) -> float:
        """Return the seconds of a forward pass of the base."""
        images = next(iter(self.experiment.tests.values()))[0]
        return forward_seconds([self.base_model], images[: pass_size(images)])[0]

    @functools.cached_property
    def zero_shot(self) -> Mapping[float, float]:
        """Return the base's target accuracy by severity; empty for a base with a new head."""
        if self.known_zero_shot is not None:
            return self.known_zero_shot
        if self.experiment.clean is None:
            return {}
        correct = correct_over(self.experiment, self.base_model, self.base_logits["shifted"])
        return {severity: count / len(self.experiment.shifted[1]) for severity, count in correct.items()}

    def attempt(
        self, start: RunStart, make: Callable[[], dict[str, float]], *, arm: Arm, seed: int, epochs: list[Epoch]
    ) -> RunSummary:
        """Return the summary of a run whose metrics `make()` computes; notify the plugins if it fails.

        Any error is stored in the summary, so that the other runs go on; except interruptions, errors of the system
        such as a full disk, and, with `ADAPTKIT_STRICT=1`, errors that do not come from the strategy.
        """
        metrics: dict[str, float] = {}
        reason = None
        try:
            metrics = make()
        except BaseException as raised:
            error = origin(raised)
            if lacks_memory(error):
                error = RunFailed(HINT)
            elif isinstance(error, Exception) and not isinstance(error, AdaptkitError):
                is_own = entry_point(raised, type(arm.checked)) is not None
                if is_own or not (isinstance(error, OSError) or is_strict()):
                    error = RunFailed(plugin_fault(raised, type(arm.checked), f"strategy {arm.strategy}"))
                    error.__cause__ = raised
            self.plugins.notify("adaptkit_run_failed", run=start, error=error)
            if isinstance(error, KeyboardInterrupt) and error is not raised:
                raise error from raised
            if not isinstance(error, AdaptkitError):
                raise
            reason = str(error)
        return RunSummary(
            strategy=arm.strategy,
            label=arm.label,
            options=arm.options,
            lr=arm.lr,
            seed=seed,
            status="finished" if reason is None else "failed",
            run_id=self.tracker.run_id(start.name) if self.tracker else None,
            metrics=metrics,
            epochs=tuple(epochs),
            error=reason,
        )

    def adapted(self, arm: Arm, seed: int, fold: int = 0, examples: Examples | None = None) -> AdaptedModel:
        """Return a copy of the base, on the device, that the strategy has changed.

        A strategy with `fit` receives the examples, or a stand-in for fitted values that are loaded later.
        """
        # Adapt the model on the CPU, so that initial weights do not depend on the device.
        model = self.base.build(self.experiment.request, self.experiment.domains)
        share_usage(self.base_model, model)
        tensors = (*model.parameters(), *model.buffers())
        strategy = arm.create()
        origin = Origin.of(model, strategy)
        groups = adapt(model, strategy, init_seed=init_seed(seed, fold), new_head=arm.new_head, examples=examples)
        inherited = Inherited.of(model, tensors)  # before buffers move to another device
        return AdaptedModel(
            model=self.experiment.place(model),
            groups=groups,
            inherited=inherited,
            origin=origin,
            strategy=strategy,
        )

    def recipe(self, arm: Arm, seed: int, fold: int = 0) -> Recipe:
        """Return the hyperparameters of one training."""
        settings = self.experiment.request.settings
        return Recipe(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            lr=arm.lr or 0.0,
            order_seed=_of_fold(derive_seed(seed, "order"), fold),
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
            precision=settings.precision,
            adapt_statistics=settings.bn == "adapt",
            checkpointing=settings.checkpointing,
            balanced=settings.class_weights == "balanced",
            schedule=settings.schedule,
            clip=settings.clip,
        )


def init_seed(seed: int, fold: int = 0) -> int:
    """Return the seed of the initial weights of one training of a run."""
    return _of_fold(derive_seed(seed, "init"), fold)


def _of_fold(seed: int, fold: int) -> int:
    return derive_seed(seed, f"fold {fold}") if fold else seed


def open_stage(
    experiment: Experiment,
    base: Base,
    *,
    base_run_id: str | None = None,
    plugins: Plugins,
    seat: Seat,
    tracker: Tracker | None = None,
    feature_cache: bool = True,
    recovery: Recovery | None = None,
) -> Stage:
    """Return the context of an experiment's runs, with the base on the device and an empty feature store.

    Without `feature_cache`, every forward pass runs the whole model. `recovery` keeps checkpoints of the runs.
    """
    return Stage(
        experiment=experiment,
        plugins=plugins,
        seat=seat,
        tracker=tracker,
        inputs=ModelInputs.of(experiment, reuse=feature_cache and features_allowed()),
        base=base,
        base_run_id=base_run_id,
        base_model=experiment.place(base.build(experiment.request, experiment.domains)),
        recovery=recovery,
    )
