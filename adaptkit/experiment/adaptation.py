"""Make the adaptation runs of an experiment: train, save the adapter, load it onto a fresh base, and evaluate."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from adaptkit.adapters.files import Inherited, load_adapter, save_adapter
from adaptkit.backbones.layers import share_usage
from adaptkit.contracts import Strategy
from adaptkit.errors import HINT, AdaptkitError, RunFailed, entry_point, lacks_memory, plugin_fault
from adaptkit.events import Epoch, RunResult, RunStart
from adaptkit.experiment.base import obtain_base
from adaptkit.experiment.base_cache import Base
from adaptkit.experiment.description import adapter_card, describe_run
from adaptkit.experiment.inputs import ModelInputs
from adaptkit.experiment.measurement import (
    accuracies,
    accuracies_over,
    merged,
    parameters,
    require_same,
    severity_metrics,
    times,
    write_severities,
)
from adaptkit.experiment.outcome import BaseSummary, RunOutcome, RunSummary
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.recovery import Recovery, RunRecovery, recoverable
from adaptkit.names import (
    ADAPTER_CARD_FILE,
    ADAPTER_SHA256_TAG,
    ADAPTER_WEIGHTS_FILE,
    FROZEN_PREFIX_TAG,
    MEMORY_PEAK_BYTES,
    SEVERITY_FILE,
    SIZE_ADAPTER_BYTES,
    SPLIT_FILE,
    TIMING_TAG,
)
from adaptkit.plugins.manager import Plugins, is_strict
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm
from adaptkit.system.core_sharing import Occupancy, Seat
from adaptkit.system.files import sha256_of
from adaptkit.system.folders import features_allowed
from adaptkit.system.signals import origin
from adaptkit.training.evaluation import pass_size, predict, predict_logits
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.memory import step_bytes
from adaptkit.training.objective import accuracy, predictions_of
from adaptkit.training.passes import Passes
from adaptkit.training.recomputation import find_blocks, is_trained
from adaptkit.training.trainable import Origin, adapt

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker

#: batches on which the reloaded model is compared with the trained one
CHECKED_BATCHES = 4
HIDDEN_STATE = "; is there state outside parameters and buffers?"


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
                self.inputs.expect(self.adapted(arm, request.settings.seed[0]).model)
        return self.inputs.base_logits(self.base_model) if self.experiment.clean is not None else {}

    @functools.cached_property
    def zero_shot(self) -> Mapping[float, float]:
        """Return the base's target accuracy by severity; empty for a base with a new head."""
        if self.known_zero_shot is not None:
            return self.known_zero_shot
        if self.experiment.clean is None:
            return {}
        return accuracies_over(self.experiment, self.base_model, self.base_logits["shifted"])

    def run(self, arm: Arm, seed: int) -> RunSummary:
        """Adapt a copy of the base with one strategy and seed, evaluate it, notify the plugins; return the summary."""
        occupancy = self.seat.occupancy()
        start = describe_run(
            self.experiment,
            self.base,
            base_run_id=self.base_run_id,
            arm=arm,
            seed=seed,
            occupancy=occupancy,
            label=self.label,
        )
        request = self.experiment.request
        config = request.config_text(request.run_params(arm, seed))
        epochs: list[Epoch] = []
        with recoverable(self.recovery, start, config, base_fingerprint=self.base.fingerprint) as recovery:

            def adapt_and_evaluate() -> dict[str, float]:
                with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
                    run = AdaptationRun(
                        stage=self,
                        start=start,
                        arm=arm,
                        seed=seed,
                        occupancy=occupancy,
                        recovery=recovery,
                        config=config,
                        folder=Path(folder),
                        epochs=epochs,
                    )
                    return run.execute()

            return self.attempt(start, adapt_and_evaluate, arm=arm, seed=seed, epochs=epochs)

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

    def adapted(self, arm: Arm, seed: int) -> AdaptedModel:
        """Return a copy of the base, on the device, that the strategy has changed."""
        # Adapt the model on the CPU, so that initial weights do not depend on the device.
        model = self.base.build(self.experiment.request, self.experiment.domains)
        share_usage(self.base_model, model)
        tensors = (*model.parameters(), *model.buffers())
        strategy = arm.create()
        origin = Origin.of(model)
        groups = adapt(model, strategy, init_seed=derive_seed(seed, "init"), new_head=arm.new_head)
        return AdaptedModel(
            model=self.experiment.place(model),
            groups=groups,
            inherited=Inherited.of(model, tensors),
            origin=origin,
            strategy=strategy,
        )

    def recipe(self, arm: Arm, seed: int) -> Recipe:
        """Return the hyperparameters of one run."""
        settings = self.experiment.request.settings
        return Recipe(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            lr=arm.lr,
            order_seed=derive_seed(seed, "order"),
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
            precision=settings.precision,
            adapt_statistics=settings.bn == "adapt",
            checkpointing=settings.checkpointing,
        )


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


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with its inputs, and the peak memory of a training step in bytes.

    With `whole`, every forward pass runs the whole model, not only its trained part.
    """

    adapted: AdaptedModel
    passes: Passes
    whole: bool
    memory: int


@dataclass(frozen=True)
class AdaptationRun:
    """One adaptation run: train, save the adapter, load it onto a fresh base, and evaluate the result.

    `epochs` receives the record of each epoch.
    """

    stage: Stage
    start: RunStart
    arm: Arm
    seed: int
    occupancy: Occupancy
    recovery: RunRecovery
    config: str
    folder: Path
    epochs: list[Epoch]

    def execute(self) -> dict[str, float]:
        """Make the run, notify the plugins of its result, and return its metrics."""
        trained = self._train()
        files = self._save(trained.adapted)
        reloaded, logits = self._reload(trained, files)
        result = self._result(trained, reloaded, logits=logits, files=files)
        self.stage.plugins.notify("adaptkit_run_ended", run=self.start, result=result, model=reloaded.model)
        return dict(result.metrics)

    def _train(self) -> TrainedModel:
        stage, recipe, notify = self.stage, self.stage.recipe(self.arm, self.seed), self.stage.plugins.notify
        adapted = stage.adapted(self.arm, self.seed)
        model = adapted.model
        labels = stage.inputs.labels(self.seed)
        images = stage.inputs.views(self.seed, 1).value.tensor[: recipe.batch_size].clone()
        memory = step_bytes(model, images, labels[: len(images)], recipe=recipe)
        notify("adaptkit_run_started", run=self.start, model=model)
        step_ended = getattr(adapted.strategy, "step_ended", None)
        # The whole model runs if the strategy may change it between steps, or if blocks are to be recomputed.
        whole = step_ended is not None or (recipe.checkpointing and is_trained(find_blocks(model)))
        passes = stage.inputs.passes(model, self.seed, whole=whole)
        start = self.recovery.start(model, has_step_hook=step_ended is not None)
        self.epochs.extend(start.epochs if start is not None else ())
        for epoch in filter(self.recovery.is_unreported, tuple(self.epochs)):
            notify("adaptkit_epoch_ended", run=self.start, epoch=epoch)
        for epoch in fit(
            model,
            adapted.groups,
            passes,
            recipe=recipe,
            step_ended=step_ended,
            start=start,
            keep=self.recovery.keep,
        ):
            self.epochs.append(epoch)
            notify("adaptkit_epoch_ended", run=self.start, epoch=epoch)
        return TrainedModel(adapted, passes, whole=whole, memory=memory)

    def _save(self, adapted: AdaptedModel) -> dict[str, Path]:
        """Write the adapter; return its files by name."""
        tensors = adapted.inherited.adapter(adapted.model)
        stage = self.stage
        card = adapter_card(stage.experiment, stage.base, arm=self.arm, seed=self.seed, tensors=tensors)
        return save_adapter(self.folder / "kept", tensors, card)

    def _reload(self, trained: TrainedModel, files: Mapping[str, Path]) -> tuple[AdaptedModel, dict[str, Tensor]]:
        """Load the adapter onto a fresh base; return the model, which must match the trained one, and its logits."""
        stage, precision = self.stage, self.stage.experiment.request.settings.precision
        # Load the adapter as users do: from the tracking store, if there is one.
        sent = stage.tracker.keep_adapter(self.start, files) if stage.tracker else None
        reloaded = stage.adapted(self.arm, self.seed)
        model = reloaded.model
        load_adapter(sent or self.folder / "kept", model, stage.base.fingerprint)
        passes = stage.inputs.passes(model, self.seed, whole=trained.whole, all_tests=True)
        model.eval()
        logits = {name: predict(passes.testing(name), precision) for name in passes.tests}
        # The trained model runs as a whole, so that this also checks the division into frozen and trained parts.
        images = stage.experiment.first_images(1)
        images = stage.experiment.first_images(CHECKED_BATCHES * pass_size(images))
        require_same(
            next(iter(logits.values()))[: len(images)],
            predict_logits(trained.adapted.model, images, precision),
            name=f"strategy {self.arm.strategy}: the reloaded adapter",
            hint=HIDDEN_STATE,
        )
        return reloaded, logits

    def _result(
        self, trained: TrainedModel, reloaded: AdaptedModel, *, logits: Mapping[str, Tensor], files: Mapping[str, Path]
    ) -> RunResult:
        """Return the result of the run, with the metrics of the reloaded model."""
        stage, experiment = self.stage, self.stage.experiment
        domains, base_logits = experiment.domains, stage.base_logits
        predictions = {
            name: predictions_of(
                logits[name],
                image=test.index,
                truth=test.labels,
                base_logits=base_logits.get(name),
                ids=test.ids,
                groups=test.groups,
            )
            for name, test in domains.tests.items()
        }
        split = self.folder / SPLIT_FILE
        split.write_text(domains.split_text, encoding="utf-8")
        artifacts = {SPLIT_FILE: split} | {f"adapter/{name}": path for name, path in files.items()}
        by_severity: dict[str, float] = {}
        if experiment.request.severities:
            reached = accuracies_over(experiment, reloaded.model, logits["shifted"])
            by_severity = severity_metrics(reached, stage.zero_shot)
            artifacts[SEVERITY_FILE] = self.folder / SEVERITY_FILE
            write_severities(artifacts[SEVERITY_FILE], reached, stage.zero_shot)
        plain = merged(experiment, reloaded.model, reloaded.strategy)
        metrics = (
            accuracies(experiment, predictions, base_logits)
            | parameters(reloaded.model, reloaded.origin)
            | {SIZE_ADAPTER_BYTES: files[ADAPTER_WEIGHTS_FILE].stat().st_size, MEMORY_PEAK_BYTES: trained.memory}
            | times(experiment, self.epochs, merged=plain, base=stage.base_model)
            | by_severity
        )
        return RunResult(
            metrics=metrics,
            epochs=tuple(self.epochs),
            predictions=predictions,
            classes=domains.classes,
            config=self.config,
            tags={
                ADAPTER_SHA256_TAG: sha256_of(files[ADAPTER_CARD_FILE]),
                FROZEN_PREFIX_TAG: trained.passes.frozen_prefix,
                TIMING_TAG: stage.seat.timing_since(self.occupancy),
            },
            files=artifacts,
            samples={name: images[:8].cpu() for name, (images, _) in experiment.tests.items()},
        )


def execute(
    experiment: Experiment,
    plugins: Plugins,
    *,
    seat: Seat,
    tracker: Tracker | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
    notice: Callable[[str], None] = lambda line: None,
    recovery: Recovery | None = None,
    done: Mapping[str, RunSummary] = {},
) -> RunOutcome:
    """Obtain the base, adapt a copy of it with each strategy and seed, and return all results.

    A run that fails for a known reason has its error in its summary; the other runs continue. Without `feature_cache`,
    every forward pass runs the whole model. `recovery` keeps checkpoints of the runs. `done` holds the summaries, by
    name, of runs that are not to be made again.
    """
    obtained = obtain_base(experiment, plugins, tracker=tracker, refresh=refresh_base, notice=notice, recovery=recovery)
    base = obtained.base
    stage = open_stage(
        experiment,
        base,
        base_run_id=obtained.run_id,
        plugins=plugins,
        seat=seat,
        tracker=tracker,
        feature_cache=feature_cache,
        recovery=recovery,
    )
    base_accuracies = {name: accuracy(logits, experiment.tests[name][1]) for name, logits in stage.base_logits.items()}
    runs = []
    for seed in experiment.request.settings.seed:
        for arm in experiment.request.arms:
            runs.append(done.get(f"{arm.label} seed={seed}") or stage.run(arm, seed))
        stage.inputs.forget(seed)
    return RunOutcome(
        plan=dataclasses.replace(experiment.plan, base_cached=obtained.cached),
        base=BaseSummary(
            fingerprint=base.fingerprint,
            run_id=obtained.run_id,
            cached=obtained.cached,
            test_accuracy=base_accuracies.get("clean"),
            shifted_accuracy=base_accuracies.get("shifted"),
            epochs=base.epochs,
        ),
        runs=tuple(runs),
        data_fingerprint=experiment.domains.fingerprint,
    )
