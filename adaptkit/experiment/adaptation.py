"""Make the adaptation runs of an experiment: train, save the adapter, load it onto a fresh base, and evaluate."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaptkit.data.protocols import Fit, class_counts
from adaptkit.errors import BASE_HINT, AdaptkitError, RunFailed, lacks_memory, plugin_fault
from adaptkit.events import Epoch, RunResult, RunStart
from adaptkit.experiment.base import base_warnings, obtain_base
from adaptkit.experiment.description import describe_run
from adaptkit.experiment.fits import FitResult, mean_epochs, pooled_predictions, read_fit, split_of, write_fit
from adaptkit.experiment.inner_tuning import FitTuning, tune_fit, tuning_text
from adaptkit.experiment.measurement import (
    correct_over,
    merged,
    parameters,
    scores,
    severity_metrics,
    times,
    write_severities,
)
from adaptkit.experiment.outcome import BaseSummary, RunOutcome, RunSummary
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.recovery import Recovery, RunRecovery, recoverable
from adaptkit.experiment.run_warnings import run_warnings, warning_tags
from adaptkit.experiment.training import TrainedModel, Training, Watcher, load, require_same_logits, save, train
from adaptkit.names import (
    ADAPTER_CARD_FILE,
    ADAPTER_FOLDER,
    ADAPTER_SHA256_TAG,
    ADAPTER_WEIGHTS_FILE,
    FOLD_FOLDER,
    FROZEN_PREFIX_TAG,
    MEMORY_PEAK_BYTES,
    SEVERITY_FILE,
    SIZE_ADAPTER_BYTES,
    SPLIT_FILE,
    TIME_INFERENCE_RATIO,
    TIMING_TAG,
    TUNED_VALUES_TAG,
    TUNING_FILE,
)
from adaptkit.plugins.components import is_fitted
from adaptkit.plugins.manager import Plugins, is_strict
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm
from adaptkit.system.core_sharing import Occupancy, Seat
from adaptkit.system.files import sha256_of
from adaptkit.system.signals import origin
from adaptkit.training.evaluation import forward_seconds, inference_ratio, pass_size, predict
from adaptkit.training.fitted import fitted_head
from adaptkit.training.objective import accuracy

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker

from adaptkit.experiment.stage import AdaptedModel, Stage, open_stage

#: batches on which the reloaded model is compared with the trained one
CHECKED_BATCHES = 4
#: largest size of the adapters of all folds of a run, in bytes, unless `keep_folds` is set
FOLDS_BYTES = 50_000_000


@dataclass(frozen=True)
class AdaptationRun:
    """One adaptation run: for each of its trainings, train, save the adapter, load it onto a fresh base, and evaluate.

    `epochs` receives the record of each epoch; with several trainings, the means. `warnings` receives signs that the
    run has not learned.
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
    warnings: list[str]

    def execute(self) -> dict[str, float]:
        """Make the run, notify the plugins of its result, and return its metrics."""
        fits = self.stage.inputs.fits(self.seed)
        results: list[FitResult] = []
        if len(fits) > 1:
            results += self.recovery.finished_folds(self._read, len(fits))
        first: nn.Module | None = None
        if results:
            tuning = results[0].tuning
            arm = self.arm if tuning is None else tuning.arm(self.arm)
            first = load(self.stage, arm, results[0].files, seed=self.seed).model
            self.stage.plugins.notify("adaptkit_run_started", run=self.start, model=first)
        for number in range(len(results), len(fits)):
            tuning = self._tune(fits[number], number)
            trained = self._train(fits, number, self.arm if tuning is None else tuning.arm(self.arm))
            files = save(self.stage, trained, self._kept(number))
            reloaded, logits = self._reload(trained, files, fit=fits[number])
            result = self._measure(trained, reloaded, logits=logits, files=files, fit=fits[number])
            result = dataclasses.replace(result, tuning=tuning)
            results.append(result)
            first = first or reloaded.model
            if len(fits) > 1:
                self.recovery.keep_fold(number, functools.partial(write_fit, result=result))
        if len(fits) > 1:
            self._report_means(results)
        run_result = self._result(results, fits)
        self.stage.plugins.notify("adaptkit_run_ended", run=self.start, result=run_result, model=first)
        return dict(run_result.metrics)

    def _tune(self, fit: Fit, number: int) -> FitTuning | None:
        """Choose the values of one fit on its own training images; None if the strategy is not tuned."""
        if not self.arm.searched:
            return None
        stage, seed = self.stage, self.seed
        if number == 0 and stage.tracker is not None:  # so that the run can be resumed if it stops in its first tuning
            stage.tracker.open_run(self.start)
        rows, charged = stage.inputs.rows(seed, fit.train), set[str]()
        return tune_fit(
            stage,
            self.arm,
            seed=derive_seed(seed, f"tuning {number}"),
            labels=stage.experiment.domains.labels.at(fit.train),
            rows=rows,
            passes=lambda model, route: stage.inputs.tuning_passes(
                model, seed, rows=rows, route=route, charged=charged
            ),
        )

    def _train(self, fits: Sequence[Fit], number: int, arm: Arm) -> TrainedModel:
        inputs, notify, is_only = self.stage.inputs, self.stage.plugins.notify, len(fits) == 1
        batch_size = self.stage.experiment.request.settings.batch_size
        first = inputs.views(self.seed, 1).value.tensor[:batch_size].clone()
        training = Training(
            arm=arm,
            seed=self.seed,
            batch=(first, inputs.labels(self.seed)[: len(first)]),
            passes=lambda model, route: inputs.passes(model, self.seed, fit=fits[number], route=route),
            fold=number,
        )

        def started(model: nn.Module) -> None:
            if number == 0:
                notify("adaptkit_run_started", run=self.start, model=model)

        def resumed(epochs: Sequence[Epoch]) -> None:
            if is_only:
                self.epochs.extend(epochs)
                self._report(epochs)

        def ended(epoch: Epoch) -> None:
            if is_only:
                self.epochs.append(epoch)
            shown = epoch if is_only else dataclasses.replace(epoch, fold=number)
            notify("adaptkit_epoch_ended", run=self.start, epoch=shown)

        return train(self.stage, training, Watcher(started, ended, resumed), self.recovery)

    def _report(self, epochs: Iterable[Epoch]) -> None:
        """Notify the plugins of epochs that the tracking store does not have yet."""
        for epoch in filter(self.recovery.is_unreported, epochs):
            self.stage.plugins.notify("adaptkit_epoch_ended", run=self.start, epoch=epoch)

    def _report_means(self, results: Sequence[FitResult]) -> None:
        """Record the means of all folds, now that the folds are done."""
        means = mean_epochs(results)
        self.epochs.extend(means)
        self._report(means)

    def _kept(self, number: int) -> Path:
        return self.folder / f"kept-{number}"

    def _read(self, path: Path, number: int) -> FitResult:
        return read_fit(path, self._kept(number))

    def _reload(
        self, trained: TrainedModel, files: Mapping[str, Path], *, fit: Fit
    ) -> tuple[AdaptedModel, dict[str, Tensor]]:
        """Load the adapter onto a fresh base; return the model, which must match the trained one, and its logits."""
        stage, precision = self.stage, self.stage.experiment.request.settings.precision
        training, sent = trained.training, self.start if fit.evaluated is None else None
        reloaded = load(stage, training.arm, files, seed=training.seed, fold=training.fold, sent=sent)
        model = reloaded.model
        passes = stage.inputs.passes(model, self.seed, fit=fit, route=trained.route, all_tests=True)
        model.eval()
        logits = {name: predict(passes.testing(name), precision) for name in passes.tests}
        name, (images, _) = next(iter(stage.experiment.tests.items()))
        if name == "shifted" and fit.evaluated is not None:
            images = images[fit.evaluated]
        # The layers below a fitted head are those of the base.
        batches = 1 if is_fitted(training.arm.checked) else CHECKED_BATCHES
        images = images[: batches * pass_size(images[:1])]
        require_same_logits(stage, trained, images, logits[name][: len(images)])
        return reloaded, logits

    def _measure(
        self,
        trained: TrainedModel,
        reloaded: AdaptedModel,
        *,
        logits: Mapping[str, Tensor],
        files: Mapping[str, Path],
        fit: Fit,
    ) -> FitResult:
        """Return the result of one training, with the metrics of the reloaded model."""
        experiment = self.stage.experiment
        correct: dict[float, int] = {}
        if experiment.request.severities:
            correct = correct_over(experiment, reloaded.model, logits["shifted"], fit.evaluated)
        plain = merged(experiment, reloaded.model, reloaded.strategy)
        return FitResult(
            logits={name: values.cpu() for name, values in logits.items()},
            epochs=trained.epochs,
            files=files,
            metrics=parameters(reloaded.model, reloaded.origin)
            | {SIZE_ADAPTER_BYTES: files[ADAPTER_WEIGHTS_FILE].stat().st_size, MEMORY_PEAK_BYTES: trained.memory}
            | {TIME_INFERENCE_RATIO: self._inference_ratio(reloaded, plain)},
            correct=correct,
            prefix=trained.passes.frozen_prefix,
        )

    def _inference_ratio(self, reloaded: AdaptedModel, plain: nn.Module) -> float:
        """Return the time of a forward pass relative to the base; of a fitted model, only the head is measured."""
        stage = self.stage
        if not is_fitted(reloaded.strategy):
            return inference_ratio(plain, stage.base_model, next(iter(stage.experiment.tests.values()))[0])
        name = fitted_head(stage.base_model)
        before: Any = stage.base_model.get_submodule(name)
        images = next(iter(stage.experiment.tests.values()))[0]
        rows = torch.rand(min(len(images), pass_size(images)), before.in_features).to(stage.experiment.device)
        old, new = forward_seconds([before, plain.get_submodule(name)], rows)
        return 1 + (new - old) / stage.base_seconds

    def _result(self, results: Sequence[FitResult], fits: Sequence[Fit]) -> RunResult:
        """Return the result of the run; costs are those of one model, accuracies those of all predictions."""
        stage, experiment = self.stage, self.stage.experiment
        domains, base_logits = experiment.domains, stage.base_logits
        predictions = pooled_predictions(results, fits, domains.tests, base_logits)
        split = self.folder / SPLIT_FILE
        split.write_text(split_of(domains.split_text, fits, len(domains.pool)), encoding="utf-8")
        artifacts = {SPLIT_FILE: split} | self._kept_adapters(results)
        tunings = [result.tuning for result in results if result.tuning is not None]
        if tunings:
            artifacts[TUNING_FILE] = self.folder / TUNING_FILE
            artifacts[TUNING_FILE].write_text(tuning_text(self.arm, tunings), encoding="utf-8")
        by_severity: dict[str, float] = {}
        if experiment.request.severities:
            counts = [result.correct for result in results]
            tested = len(predictions["shifted"].truth)
            reached = {severity: sum(count[severity] for count in counts) / tested for severity in counts[0]}
            by_severity = severity_metrics(reached, stage.zero_shot)
            artifacts[SEVERITY_FILE] = self.folder / SEVERITY_FILE
            write_severities(artifacts[SEVERITY_FILE], reached, stage.zero_shot)
        single = dict(results[0].metrics)
        if tunings:  # the values, and with them the number of parameters, differ between the fits
            single = {key: sum(result.metrics[key] for result in results) / len(results) for key in single}
        inference = {TIME_INFERENCE_RATIO: single.pop(TIME_INFERENCE_RATIO)}
        memory = {MEMORY_PEAK_BYTES: max(result.metrics[MEMORY_PEAK_BYTES] for result in results)}
        metrics = (
            scores(experiment, predictions, base_logits, stage.plugins)
            | single
            | memory
            | times(self.epochs, folds=len(fits), tuning=[tuning.seconds for tuning in tunings])
            | inference
            | by_severity
        )
        trained = [class_counts(domains.labels.numbers[fit.train], domains.classes) for fit in fits]
        self.warnings.extend(
            run_warnings(
                self.epochs,
                predictions["shifted"],
                classes=domains.classes,
                trained=[round(sum(counts) / len(fits)) for counts in zip(*trained, strict=True)],
                balanced=experiment.request.settings.class_weights == "balanced",
            )
        )
        return RunResult(
            metrics=metrics,
            epochs=tuple(self.epochs),
            predictions=predictions,
            classes=domains.classes,
            config=self.config,
            tags={
                ADAPTER_SHA256_TAG: sha256_of(results[0].files[ADAPTER_CARD_FILE]),
                FROZEN_PREFIX_TAG: results[0].prefix,
                TIMING_TAG: stage.seat.timing_since(self.occupancy),
                **({TUNED_VALUES_TAG: json.dumps([dict(one.chosen) for one in tunings])} if tunings else {}),
                **warning_tags(self.warnings, of_base=base_warnings(experiment, stage.base)),
            },
            files=artifacts,
            warnings=tuple(self.warnings),
            samples={name: images[:8].cpu() for name, (images, _) in experiment.tests.items()},
        )

    def _kept_adapters(self, results: Sequence[FitResult]) -> dict[str, Path]:
        """Return the adapter files by the path of their artifact; those of many large folds are not kept."""
        if len(results) == 1:
            return {f"{ADAPTER_FOLDER}/{name}": path for name, path in results[0].files.items()}
        size = sum(path.stat().st_size for result in results for path in result.files.values())
        is_kept = size <= FOLDS_BYTES or self.stage.experiment.request.settings.keep_folds
        return {
            f"{ADAPTER_FOLDER}/{FOLD_FOLDER}{number}/{name}": path
            for number, result in enumerate(results)
            for name, path in result.files.items()
            if is_kept or name == ADAPTER_CARD_FILE
        }


def adapt_once(stage: Stage, arm: Arm, seed: int) -> RunSummary:
    """Adapt a copy of the base with one strategy and seed, evaluate it, notify the plugins; return the summary."""
    occupancy = stage.seat.occupancy()
    start = describe_run(
        stage.experiment,
        stage.base,
        base_run_id=stage.base_run_id,
        arm=arm,
        seed=seed,
        occupancy=occupancy,
        label=stage.label,
    )
    start = dataclasses.replace(start, folds=stage.experiment.plan.folds or 1)
    request = stage.experiment.request
    config = request.config_text(request.run_params(arm, seed))
    epochs: list[Epoch] = []
    warnings: list[str] = []
    with recoverable(stage.recovery, start, config, base_fingerprint=stage.base.fingerprint) as recovery:

        def adapt_and_evaluate() -> dict[str, float]:
            with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
                run = AdaptationRun(
                    stage=stage,
                    start=start,
                    arm=arm,
                    seed=seed,
                    occupancy=occupancy,
                    recovery=recovery,
                    config=config,
                    folder=Path(folder),
                    epochs=epochs,
                    warnings=warnings,
                )
                return run.execute()

        record = stage.attempt(start, adapt_and_evaluate, arm=arm, seed=seed, epochs=epochs)
        return dataclasses.replace(record, warnings=tuple(warnings))


def _accuracies_of_base(stage: Stage) -> dict[str, float]:
    """Return the accuracy of the base on each test set; raise RunFailed, with the place, if its backbone fails."""
    experiment = stage.experiment
    try:
        base_logits = stage.base_logits
    except Exception as raised:
        if origin(raised) is not raised or isinstance(raised, AdaptkitError | OSError) or is_strict():
            raise
        if lacks_memory(raised):
            raise RunFailed(BASE_HINT) from raised
        request = experiment.request
        title = f"backbone {request.settings.backbone}"
        raise RunFailed(plugin_fault(raised, type(request.backbone), title)) from raised
    return {name: accuracy(logits, experiment.tests[name][1]) for name, logits in base_logits.items()}


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
    base_accuracies = _accuracies_of_base(stage)
    runs = []
    for seed in experiment.request.settings.seed:
        for arm in experiment.request.arms:
            runs.append(done.get(f"{arm.label} seed={seed}") or adapt_once(stage, arm, seed))
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
            warnings=base_warnings(experiment, base),
        ),
        runs=tuple(runs),
        data_fingerprint=experiment.domains.fingerprint,
    )
