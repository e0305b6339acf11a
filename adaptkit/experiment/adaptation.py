"""One adaptation run: train, keep the adapter, read it back onto a fresh base, and judge that."""

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

from adaptkit.adapters.files import CARD, WEIGHTS, Inherited, load_adapter, save_adapter
from adaptkit.contracts import Strategy
from adaptkit.errors import HINT, AdaptkitError, RunFailed, comes_from, lacks_memory, located
from adaptkit.events import Epoch, Predictions, RunResult, RunStart
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
from adaptkit.experiment.prepare import Experiment, draw_target
from adaptkit.experiment.recovery import Recovery, RunRecovery, kept_while
from adaptkit.names import (
    ADAPTER_SHA256_TAG,
    FROZEN_PREFIX_TAG,
    MEMORY_PEAK_BYTES,
    SEVERITY_FILE,
    SIZE_ADAPTER_BYTES,
    SPLIT_FILE,
    TIMING_TAG,
)
from adaptkit.plugins.manager import Plugins
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm
from adaptkit.system.core_sharing import Company, Seat
from adaptkit.system.files import sha256_of
from adaptkit.system.folders import features_allowed
from adaptkit.system.signals import origin
from adaptkit.training.evaluation import pass_size, predict, predict_logits, share_right
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.memory import step_bytes
from adaptkit.training.recomputation import find_blocks, is_trained
from adaptkit.training.trainable import Origin, adapt

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker

#: passes on which the reloaded model is held against the trained one
CHECKED = 4
STATE = "; is there state outside parameters and buffers?"


@dataclass(frozen=True)
class AdaptedModel:
    """An adapted model with what is needed to tell its adapter from its base."""

    model: nn.Module
    groups: list[dict[str, Any]]
    inherited: Inherited
    origin: Origin
    strategy: Strategy


@dataclass(frozen=True)
class Stage:
    """What every adaptation run of an experiment shares: the base, and what it says of the test sets, where known.

    `label` names runs whose strategy and options do not tell them apart.
    """

    experiment: Experiment
    plugins: Plugins
    seat: Seat
    tracker: Tracker | None
    feeding: ModelInputs
    base: Base
    base_run_id: str | None
    base_model: nn.Module
    known_logits: Mapping[str, Tensor] | None = None
    known_over: Mapping[float, float] | None = None
    label: str | None = None
    keeping: Recovery | None = None

    @functools.cached_property
    def base_logits(self) -> Mapping[str, Tensor]:
        """Return what the base says of the test sets; features that the strategies read come by, and are kept.

        A base with a new head says nothing.
        """
        if self.known_logits is not None:
            return self.known_logits
        for arm in self.experiment.request.arms:
            # A strategy that cannot adapt this base fails in its own runs.
            with contextlib.suppress(Exception):
                self.feeding.expect(self.adapted(arm, self.experiment.request.settings.seed[0]).model)
        return self.feeding.base_logits(self.base_model) if self.experiment.clean is not None else {}

    @functools.cached_property
    def zero_shot_over(self) -> Mapping[float, float]:
        """Return the base's accuracy at each severity; none of a base with a new head."""
        if self.known_over is not None:
            return self.known_over
        if self.experiment.clean is None:
            return {}
        return accuracies_over(self.experiment, self.base_model, self.base_logits["shifted"])

    def run(self, arm: Arm, seed: int) -> RunSummary:
        """Adapt a copy of the base with one strategy and seed, telling the watchers; return its record."""
        company = self.seat.company()
        run = describe_run(self.experiment, self.base, self.base_run_id, arm, seed, company, self.label)
        epochs: list[Epoch] = []

        params = self.experiment.request.run_params(arm, seed)
        with kept_while(self.keeping, run, self.experiment.request.config_text(params), self.base.fingerprint) as kept:

            def act() -> dict[str, float]:
                with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
                    return self._train_and_judge(run, arm, seed, company, epochs, Path(folder), kept)

            return self.attempt(run, arm, seed, epochs, act)

    def attempt(
        self, run: RunStart, arm: Arm, seed: int, epochs: list[Epoch], act: Callable[[], dict[str, float]]
    ) -> RunSummary:
        """Do what makes the run's metrics and return its record; tell the watchers when it fails."""
        try:
            metrics = act()
            status, reason = "finished", None
        except BaseException as raised:
            error = origin(raised)
            if lacks_memory(error):
                error = RunFailed(HINT)
            elif isinstance(error, Exception) and comes_from(raised, type(arm.checked)):
                error = RunFailed(f"strategy {arm.strategy} fails: {located(raised)}")
                error.__cause__ = raised
            self.plugins.notify("adaptkit_run_failed", run=run, error=error)
            if isinstance(error, KeyboardInterrupt) and error is not raised:
                raise error from raised
            if not isinstance(error, AdaptkitError):
                raise
            metrics, status, reason = {}, "failed", str(error)
        run_id = self.tracker.run_id(run.name) if self.tracker else None
        return RunSummary(
            arm.strategy, arm.label, arm.options, arm.lr, seed, status, run_id, metrics, tuple(epochs), reason
        )

    def _train_and_judge(
        self, run: RunStart, arm: Arm, seed: int, company: Company, epochs: list[Epoch], folder: Path, kept: RunRecovery
    ) -> dict[str, float]:
        experiment, recipe = self.experiment, self.recipe(arm, seed)
        drawn = draw_target(experiment.request, experiment.domains, seed)
        labels = experiment.domains.pool.labels[drawn].to(experiment.device)
        trained = self.adapted(arm, seed)
        first = self.feeding.views(seed, 1).value.tensor[: recipe.batch_size].clone()
        memory = step_bytes(trained.model, first, labels[: len(first)], recipe)
        self.plugins.notify("adaptkit_run_started", run=run, model=trained.model)
        step_ended = getattr(trained.strategy, "step_ended", None)
        # Whole: a model that its strategy changes between steps, or of which blocks are to be computed twice.
        whole = step_ended is not None or (recipe.checkpointing and is_trained(find_blocks(trained.model)))
        passes = self.feeding.passes(trained.model, seed, whole=whole)
        start = kept.start(trained.model, acts=step_ended is not None)
        epochs += start.epochs if start is not None else ()
        for epoch in filter(kept.lacks, tuple(epochs)):  # kept, but not told: its process died in between
            self.plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
        given = (trained.model, trained.groups, passes, labels, recipe, step_ended, start, kept.keep)
        for epoch in fit(*given):
            epochs.append(epoch)
            self.plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
        tensors = trained.inherited.adapter(trained.model)
        files = save_adapter(folder / "kept", tensors, adapter_card(experiment, self.base, arm, seed, tensors))
        # From where everybody will read it, if there is such a place.
        sent = self.tracker.keep_adapter(run, files) if self.tracker else None
        reloaded = self.adapted(arm, seed)
        load_adapter(sent or folder / "kept", reloaded.model, self.base.fingerprint)
        judged = self.feeding.passes(reloaded.model, seed, whole=whole, judged=True)
        reloaded.model.eval()
        logits = {name: predict(judged.testing(name), recipe.precision) for name in judged.tests}
        # The trained model is run whole: this judges the division, too.
        some = experiment.some(CHECKED * pass_size(first))
        before = predict_logits(trained.model, some, recipe.precision)
        after = logits[next(iter(judged.tests))][: len(some)]
        require_same(after, before, f"strategy {arm.strategy}: the reloaded adapter", STATE)
        domains, told = experiment.domains, self.base_logits
        predictions = {
            name: Predictions.of(logits[name], test.index, test.labels, told.get(name))
            for name, test in domains.tests.items()
        }
        split = folder / SPLIT_FILE
        split.write_text(domains.split_text, encoding="utf-8")
        kept_files = {SPLIT_FILE: split} | {f"adapter/{name}": path for name, path in files.items()}
        over: dict[str, float] = {}
        if experiment.request.severities:
            reached = accuracies_over(experiment, reloaded.model, logits["shifted"])
            over = severity_metrics(reached, self.zero_shot_over)
            kept_files[SEVERITY_FILE] = folder / SEVERITY_FILE
            write_severities(kept_files[SEVERITY_FILE], reached, self.zero_shot_over)
        metrics = self._metrics(predictions, epochs, reloaded, files[WEIGHTS].stat().st_size, memory) | over
        result = RunResult(
            metrics=metrics,
            epochs=tuple(epochs),
            predictions=predictions,
            classes=domains.classes,
            config=experiment.request.config_text(experiment.request.run_params(arm, seed)),
            tags={
                ADAPTER_SHA256_TAG: sha256_of(files[CARD]),
                FROZEN_PREFIX_TAG: passes.frozen_prefix,
                TIMING_TAG: self.seat.timing_since(company),
            },
            files=kept_files,
            samples={name: images[:8].cpu() for name, (images, _) in experiment.tests.items()},
        )
        self.plugins.notify("adaptkit_run_ended", run=run, result=result, model=reloaded.model)
        return metrics

    def adapted(self, arm: Arm, seed: int) -> AdaptedModel:
        """Return a copy of the base, on the device, that the strategy has changed."""
        # On the CPU first: the initial weights are then the same whatever the device.
        model = self.base.build(self.experiment.request, self.experiment.domains)
        tensors = (*model.parameters(), *model.buffers())
        strategy = arm.create()
        origin = Origin.of(model)
        groups = adapt(model, strategy, derive_seed(seed, "init"), arm.new_head)
        inherited = Inherited.of(model, tensors)
        return AdaptedModel(self.experiment.place(model), groups, inherited, origin, strategy)

    def _metrics(
        self,
        predictions: dict[str, Predictions],
        epochs: list[Epoch],
        reloaded: AdaptedModel,
        adapter_bytes: int,
        memory: int,
    ) -> dict[str, float]:
        plain = merged(self.experiment, reloaded.model, reloaded.strategy)
        return (
            accuracies(self.experiment, predictions, self.base_logits)
            | parameters(reloaded.model, reloaded.origin)
            | {SIZE_ADAPTER_BYTES: adapter_bytes, MEMORY_PEAK_BYTES: memory}
            | times(self.experiment, epochs, plain, self.base_model)
        )

    def recipe(self, arm: Arm, seed: int) -> Recipe:
        """Return how a strategy is trained with a seed."""
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


def execute(
    experiment: Experiment,
    plugins: Plugins,
    seat: Seat,
    tracker: Tracker | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
    notice: Callable[[str], None] = lambda line: None,
    keeping: Recovery | None = None,
    done: Mapping[str, RunSummary] = {},
) -> RunOutcome:
    """Train or find the base, adapt a copy of it with each strategy and seed, and return all results.

    A run that fails for a known reason is a record with its error; the others go on. Without `feature_cache`, every
    forward pass is through the whole model. Runs are kept while they are made, if `keeping` says so; those that are
    `done`, by name, are not made again.
    """
    base, base_run_id, cached = obtain_base(experiment, plugins, tracker, refresh_base, notice, keeping)
    base_model = experiment.place(base.build(experiment.request, experiment.domains))
    feeding = ModelInputs.of(experiment, reuse=feature_cache and features_allowed())
    stage = Stage(experiment, plugins, seat, tracker, feeding, base, base_run_id, base_model, keeping=keeping)
    accuracies = {name: share_right(logits, experiment.tests[name][1]) for name, logits in stage.base_logits.items()}
    runs = []
    for seed in experiment.request.settings.seed:
        for arm in experiment.request.arms:
            known = done.get(f"{arm.label} seed={seed}")
            runs.append(stage.run(arm, seed) if known is None else known)
        feeding.forget(seed)
    return RunOutcome(
        plan=dataclasses.replace(experiment.plan, base_cached=cached),
        base=BaseSummary(
            fingerprint=base.fingerprint,
            run_id=base_run_id,
            cached=cached,
            test_accuracy=accuracies.get("clean"),
            shifted_accuracy=accuracies.get("shifted"),
            epochs=base.epochs,
        ),
        runs=tuple(runs),
        data_fingerprint=experiment.domains.fingerprint,
    )
