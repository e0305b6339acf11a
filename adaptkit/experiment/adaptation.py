"""One adaptation run: train, keep the adapter, read it back onto a fresh base, and judge that."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from adaptkit import __version__
from adaptkit.adapters.files import WEIGHTS, Inherited, load_adapter, save_adapter
from adaptkit.contracts import Epoch, Predictions, Run, RunInput, RunResult, Strategy
from adaptkit.data.domains import TestSet
from adaptkit.data.views import shifted_views
from adaptkit.errors import AdaptkitError, RunFailed
from adaptkit.experiment.base import Base, place
from adaptkit.experiment.preparation import Experiment, draw_target
from adaptkit.outcome import RunRecord
from adaptkit.plugins import Plugins
from adaptkit.request import Arm
from adaptkit.seeds import derive_seed
from adaptkit.training.evaluation import inference_ratio, predict_logits, share_right
from adaptkit.training.loop import Evaluation, Recipe, fit
from adaptkit.training.memory import step_bytes
from adaptkit.training.trainable import adapt, count

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker

#: Logits of the reloaded adapter may differ from the trained model's by this much.
RELOAD_TOLERANCE = 1e-4


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
    tracker: Tracker | None
    base: Base
    base_run_id: str | None
    base_model: nn.Module
    base_logits: dict[str, Tensor]

    def run(self, arm: Arm, seed: int) -> RunRecord:
        """Adapt a copy of the base with one strategy and seed, telling the watchers; return its record."""
        run = self._describe(arm, seed)
        epochs: list[Epoch] = []
        try:
            with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
                metrics = self._train_and_judge(run, arm, seed, epochs, Path(folder))
            status, reason = "finished", None
        except BaseException as raised:
            error = raised
            if isinstance(raised, torch.OutOfMemoryError):
                error = RunFailed("the device's memory is too small; a smaller --batch-size may help")
            self.plugins.notify("adaptkit_run_failed", run=run, error=error)
            if not isinstance(error, AdaptkitError):
                raise
            metrics, status, reason = {}, "failed", str(error)
        run_id = self.tracker.run_id(run) if self.tracker else None
        return RunRecord(
            arm.strategy, arm.label, arm.options, arm.lr, seed, status, run_id, metrics, tuple(epochs), reason
        )

    def _train_and_judge(self, run: Run, arm: Arm, seed: int, epochs: list[Epoch], folder: Path) -> dict[str, float]:
        experiment, request = self.experiment, self.experiment.request
        settings, device = request.settings, self.experiment.device
        drawn = draw_target(request, experiment.domains, seed)
        pixels, labels = experiment.domains.pool.pixels[drawn], experiment.domains.pool.labels[drawn].to(device)
        trained = self._adapted(arm, seed)
        recipe = self._recipe(arm, seed)

        def views(epoch: int) -> Tensor:
            return shifted_views(pixels, request.shifts, derive_seed(recipe.order_seed, f"views {epoch}"))

        first = shifted_views(pixels[: settings.batch_size], request.shifts, 0).to(device)
        memory = step_bytes(trained.model, first, labels[: len(first)], recipe) if device.type != "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        tests = Evaluation(experiment.clean, experiment.shifted if settings.evaluate_shifted == "epoch" else None)
        self.plugins.notify("adaptkit_run_started", run=run, model=trained.model)
        step_ended = getattr(trained.strategy, "step_ended", None)
        for epoch in fit(trained.model, trained.groups, views, labels, recipe, tests, step_ended):
            epochs.append(epoch)
            self.plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
        files = save_adapter(folder, trained.inherited.adapter(trained.model), self._card(arm, seed))
        reloaded = self._reloaded(arm, seed, folder, trained.model)
        predictions = {
            "clean": self._predictions(reloaded.model, "clean", experiment.domains.clean_test),
            "shifted": self._predictions(reloaded.model, "shifted", experiment.domains.shifted_test),
        }
        metrics = self._metrics(predictions, epochs, reloaded, files[WEIGHTS].stat().st_size, memory)
        result = RunResult(
            metrics=metrics,
            epochs=tuple(epochs),
            predictions=predictions,
            classes=experiment.domains.classes,
            config=request.config_text(run.params),
            files={f"adapter/{name}": path for name, path in files.items()},
            samples={"clean": experiment.clean[0][:8].cpu(), "shifted": experiment.shifted[0][:8].cpu()},
        )
        self.plugins.notify("adaptkit_run_ended", run=run, result=result, model=reloaded.model)
        return metrics

    def _adapted(self, arm: Arm, seed: int) -> Trained:
        # On the CPU first: the initial weights are then the same whatever the device.
        model = self.base.build(self.experiment.request, self.experiment.domains)
        tensors = (*model.parameters(), *model.buffers())
        strategy = arm.create()
        groups = adapt(model, strategy, derive_seed(seed, "init"))
        inherited = Inherited.of(model, tensors)
        return Trained(place(model, self.experiment.device), groups, inherited, strategy)

    def _reloaded(self, arm: Arm, seed: int, folder: Path, model: nn.Module) -> Trained:
        """Read the adapter back onto a fresh base; raise RunFailed if the model is not the trained one."""
        reloaded = self._adapted(arm, seed)
        load_adapter(folder, reloaded.model, self.base.fingerprint)
        pixels, precision = self.experiment.clean[0], self.experiment.request.settings.precision
        gap = predict_logits(reloaded.model, pixels, precision) - predict_logits(model, pixels, precision)
        if not gap.abs().max().item() <= RELOAD_TOLERANCE:
            raise RunFailed(
                f"strategy {arm.strategy}: the reloaded adapter's logits differ from the trained model's "
                f"by {gap.abs().max().item():.3g}; is there state outside parameters and buffers?"
            )
        return reloaded

    def _metrics(
        self,
        predictions: dict[str, Predictions],
        epochs: list[Epoch],
        reloaded: Trained,
        adapter_bytes: int,
        memory: int,
    ) -> dict[str, float]:
        clean, shifted = predictions["clean"].accuracy, predictions["shifted"].accuracy
        zero_shot = share_right(self.base_logits["shifted"], self.experiment.shifted[1])
        base_clean = share_right(self.base_logits["clean"], self.experiment.clean[1])
        counts = count(reloaded.model)
        merged = copy.deepcopy(reloaded.model)
        if hasattr(reloaded.strategy, "merge"):
            reloaded.strategy.merge(merged)
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
            "time/inference_ratio": inference_ratio(merged, self.base_model, self.experiment.clean[0][:250]),
        }

    def _predictions(self, model: nn.Module, name: str, test: TestSet) -> Predictions:
        pixels = self.experiment.clean[0] if name == "clean" else self.experiment.shifted[0]
        logits = predict_logits(model, pixels, self.experiment.request.settings.precision)
        return Predictions.of(logits, test.index, test.labels, self.base_logits[name])

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
            "channels": domains.channels,
            "size": domains.size,
            "classes": list(domains.classes),
        }

    def _describe(self, arm: Arm, seed: int) -> Run:
        experiment = self.experiment
        plan, domains = experiment.plan, experiment.domains
        target = f"`{plan.target}`" + (f" under `{plan.shift}`" if plan.shift != "none" else "")
        tags = {
            "adaptkit.kind": "adaptation",
            "adaptkit.arm": arm.label,
            "adaptkit.starts_at_base": str(getattr(arm.checked, "starts_at_base", True)),
            "adaptkit.pool_images": str(plan.pool_images),
            "adaptkit.drawn_images": str(plan.drawn_images),
            "adaptkit.base_fingerprint": self.base.fingerprint,
            "adaptkit.data_fingerprint": domains.fingerprint,
            "adaptkit.pair_id": f"{domains.fingerprint[:12]}-{seed}",
            "adaptkit.timing": "alone",
            **{f"adaptkit.{purpose}_seed": str(derive_seed(seed, purpose)) for purpose in ("draw", "init", "order")},
        }
        if self.base_run_id:
            tags["adaptkit.base_run_id"] = self.base_run_id
        return Run(
            kind="adaptation",
            name=f"{arm.label} seed={seed}",
            params=experiment.request.run_params(arm, seed),
            tags=tags,
            inputs=(
                RunInput(plan.dataset, "source", domains.source_digest, plan.dataset),
                RunInput(plan.target, "target", domains.target_digest, f"{plan.target} shift={plan.shift}"),
            ),
            description=(
                f"Strategy **{arm.label}** adapts a `{plan.backbone}` base, trained on {plan.source_images} images of "
                f"`{plan.dataset}`, to {target} with {plan.drawn_images} labelled images (seed {seed})."
            ),
        )
