"""One adaptation run: train, keep the adapter, read it back onto a fresh base, and judge that."""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaptkit import __version__
from adaptkit.adapters.files import WEIGHTS, Inherited, load_adapter, save_adapter
from adaptkit.contracts import Epoch, Predictions, Run, RunResult, Strategy
from adaptkit.errors import AdaptkitError, RunFailed, comes_from, located
from adaptkit.experiment.base import Base
from adaptkit.experiment.description import describe_run
from adaptkit.experiment.feeding import Feeding
from adaptkit.experiment.preparation import Experiment, draw_target
from adaptkit.experiment.sharing import Company, Seat
from adaptkit.outcome import RunRecord
from adaptkit.plugins import Plugins
from adaptkit.request import Arm
from adaptkit.seeds import derive_seed
from adaptkit.training.evaluation import inference_ratio, predict, predict_logits, share_right
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.memory import step_bytes
from adaptkit.training.trainable import adapt, count

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker

#: Logits of the reloaded adapter may differ from the trained model's by this much; large ones by this share.
RELOAD_TOLERANCE = 1e-4
#: images on which the reloaded model, and the merged one, are held against the trained one
CHECKED, MERGED = 512, 64
STATE = "; is there state outside parameters and buffers?"


@dataclass(frozen=True)
class Trained:
    """An adapted model with what is needed to tell its adapter from its base."""

    model: nn.Module
    groups: list[dict[str, Any]]
    inherited: Inherited
    strategy: Strategy


@dataclass(frozen=True)
class Stage:
    """What every adaptation run of an experiment shares: the base, and what it says of the test sets."""

    experiment: Experiment
    plugins: Plugins
    seat: Seat
    tracker: Tracker | None
    feeding: Feeding
    base: Base
    base_run_id: str | None
    base_model: nn.Module

    @functools.cached_property
    def base_logits(self) -> dict[str, Tensor]:
        """Return what the base says of both test sets; features that the strategies read come by, and are kept."""
        for arm in self.experiment.request.arms:
            # A strategy that cannot adapt this base fails in its own runs.
            with contextlib.suppress(Exception):
                self.feeding.expect(self.adapted(arm, self.experiment.request.settings.seed[0]).model)
        return self.feeding.base_logits(self.base_model)

    def run(self, arm: Arm, seed: int) -> RunRecord:
        """Adapt a copy of the base with one strategy and seed, telling the watchers; return its record."""
        company = self.seat.company()
        run = describe_run(self.experiment, self.base, self.base_run_id, arm, seed, company)
        epochs: list[Epoch] = []
        try:
            with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
                metrics = self._train_and_judge(run, arm, seed, company, epochs, Path(folder))
            status, reason = "finished", None
        except BaseException as raised:
            error = raised
            if isinstance(raised, torch.OutOfMemoryError):
                error = RunFailed("the device's memory is too small; a smaller --batch-size may help")
            elif isinstance(raised, Exception) and comes_from(raised, type(arm.checked)):
                error = RunFailed(f"strategy {arm.strategy} fails: {located(raised)}")
                error.__cause__ = raised
            self.plugins.notify("adaptkit_run_failed", run=run, error=error)
            if not isinstance(error, AdaptkitError):
                raise
            metrics, status, reason = {}, "failed", str(error)
        run_id = self.tracker.run_id(run) if self.tracker else None
        return RunRecord(
            arm.strategy, arm.label, arm.options, arm.lr, seed, status, run_id, metrics, tuple(epochs), reason
        )

    def _train_and_judge(
        self, run: Run, arm: Arm, seed: int, company: Company, epochs: list[Epoch], folder: Path
    ) -> dict[str, float]:
        experiment, device = self.experiment, self.experiment.device
        drawn = draw_target(experiment.request, experiment.domains, seed)
        labels = experiment.domains.pool.labels[drawn].to(device)
        trained = self.adapted(arm, seed)
        recipe = self._recipe(arm, seed)
        first = self.feeding.views(seed, 1).value.tensor[: recipe.batch_size].clone()
        memory = step_bytes(trained.model, first, labels[: len(first)], recipe)
        self.plugins.notify("adaptkit_run_started", run=run, model=trained.model)
        step_ended = getattr(trained.strategy, "step_ended", None)
        # A strategy that changes the model between steps needs the whole of it.
        passes = self.feeding.passes(trained.model, seed, whole=step_ended is not None)
        for epoch in fit(trained.model, trained.groups, passes, labels, recipe, step_ended):
            epochs.append(epoch)
            self.plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
        files = save_adapter(folder, trained.inherited.adapter(trained.model), self._card(arm, seed))
        reloaded = self._reloaded(arm, seed, folder)
        judged = self.feeding.passes(reloaded.model, seed, whole=step_ended is not None, judged=True)
        reloaded.model.eval()
        logits = {name: predict(judged.testing(name), recipe.precision) for name in judged.tests}
        # The trained model is run whole: this judges the division, too.
        before = predict_logits(trained.model, judged.tests["clean"].images.value.tensor[:CHECKED], recipe.precision)
        _require_same(logits["clean"][:CHECKED], before, f"strategy {arm.strategy}: the reloaded adapter", STATE)
        domains = experiment.domains
        predictions = {
            name: Predictions.of(logits[name], test.index, test.labels, self.base_logits[name])
            for name, test in (("clean", domains.clean_test), ("shifted", domains.shifted_test))
        }
        metrics = self._metrics(predictions, epochs, reloaded, files[WEIGHTS].stat().st_size, memory)
        result = RunResult(
            metrics=metrics,
            epochs=tuple(epochs),
            predictions=predictions,
            classes=domains.classes,
            config=experiment.request.config_text(experiment.request.run_params(arm, seed)),
            tags={
                "adaptkit.frozen_prefix": passes.frozen_prefix,
                "adaptkit.timing": self.seat.timing_since(company),
            },
            files={f"adapter/{name}": path for name, path in files.items()},
            samples={"clean": experiment.clean[0][:8].cpu(), "shifted": experiment.shifted[0][:8].cpu()},
        )
        self.plugins.notify("adaptkit_run_ended", run=run, result=result, model=reloaded.model)
        return metrics

    def adapted(self, arm: Arm, seed: int) -> Trained:
        """Return a copy of the base, on the device, that the strategy has changed."""
        # On the CPU first: the initial weights are then the same whatever the device.
        model = self.base.build(self.experiment.request, self.experiment.domains)
        tensors = (*model.parameters(), *model.buffers())
        strategy = arm.create()
        groups = adapt(model, strategy, derive_seed(seed, "init"))
        inherited = Inherited.of(model, tensors)
        return Trained(self.experiment.place(model), groups, inherited, strategy)

    def _reloaded(self, arm: Arm, seed: int, folder: Path) -> Trained:
        """Read the adapter back onto a fresh base."""
        reloaded = self.adapted(arm, seed)
        load_adapter(folder, reloaded.model, self.base.fingerprint)
        return reloaded

    def _metrics(
        self,
        predictions: dict[str, Predictions],
        epochs: list[Epoch],
        reloaded: Trained,
        adapter_bytes: int,
        memory: int,
    ) -> dict[str, float]:
        from sklearn.metrics import f1_score  # only now: nobody waits for it before training

        clean, shifted = predictions["clean"].accuracy, predictions["shifted"].accuracy
        zero_shot = share_right(self.base_logits["shifted"], self.experiment.shifted[1])
        base_clean = share_right(self.base_logits["clean"], self.experiment.clean[1])
        counts = count(reloaded.model)
        merged = copy.deepcopy(reloaded.model)
        if hasattr(reloaded.strategy, "merge"):
            reloaded.strategy.merge(merged)
            some = self.experiment.clean[0][:MERGED]
            ours, theirs = (predict_logits(model, some) for model in (merged, reloaded.model))
            _require_same(ours, theirs, f"strategy {reloaded.strategy.name}: the merged model")
        evaluation = sum(epoch.evaluation_seconds for epoch in epochs)
        truth, predicted = predictions["shifted"].truth, predictions["shifted"].predicted
        return {
            "final/test_accuracy": clean,
            "final/shifted_accuracy": shifted,
            "final/shifted_macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
            "final/zero_shot_accuracy": zero_shot,
            "final/base_test_accuracy": base_clean,
            "final/gain": shifted - zero_shot,
            "final/retention": clean - base_clean,
            "params/total": counts.total,
            "params/trainable": counts.trainable,
            "params/trainable_fraction": counts.fraction,
            "size/adapter_bytes": adapter_bytes,
            "memory/peak_bytes": memory,
            "time/train_seconds": sum(epoch.seconds for epoch in epochs) - evaluation,
            "time/evaluation_seconds": evaluation,
            "time/inference_ratio": inference_ratio(merged, self.base_model, self.experiment.clean[0]),
        }

    def _recipe(self, arm: Arm, seed: int) -> Recipe:
        settings = self.experiment.request.settings
        return Recipe(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            lr=arm.lr,
            order_seed=derive_seed(seed, "order"),
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
            precision=settings.precision,
        )

    def _card(self, arm: Arm, seed: int) -> dict[str, Any]:
        domains = self.experiment.domains
        return {
            "adaptkit_version": __version__,
            "strategy": arm.strategy,
            "options": dict(arm.options),
            "init_seed": derive_seed(seed, "init"),
            "base_fingerprint": self.base.fingerprint,
            "backbone": self.experiment.request.settings.backbone,
            "backbone_options": dict(self.experiment.request.backbone_options),
            "channels": domains.channels,
            "size": domains.size,
            "classes": list(domains.classes),
        }


def _require_same(logits: Tensor, trained: Tensor, whose: str, hint: str = "") -> None:
    """Raise RunFailed if these are not the trained model's logits."""
    gap = (logits - trained).abs().max().item()
    if not gap <= RELOAD_TOLERANCE * max(1.0, trained.abs().max().item()):
        raise RunFailed(f"{whose}'s logits differ from the trained model's by {gap:.3g}{hint}")
