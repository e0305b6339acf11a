"""Refit a strategy: train it on all labelled target images, those of the test set included."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from adaptkit.comparison.temperature import calibration_metrics, calibration_text
from adaptkit.contracts import Images
from adaptkit.data.columns import GROUP
from adaptkit.data.domains import Domains
from adaptkit.data.pixels import joined
from adaptkit.data.protocols import Labels, class_counts
from adaptkit.events import Calibration, Epoch, RunResult, RunStart
from adaptkit.experiment.description import describe_run
from adaptkit.experiment.inner_tuning import FitTuning, tune_fit, tuning_text
from adaptkit.experiment.inputs import TRIED, ModelInputs, Route
from adaptkit.experiment.measurement import MERGED, merged, parameters
from adaptkit.experiment.outcome import Expectation, RunSummary
from adaptkit.experiment.recovery import RunRecovery
from adaptkit.experiment.run_warnings import run_warnings, warning_tags
from adaptkit.experiment.stage import Stage
from adaptkit.experiment.training import Training, Watcher, load, require_same_logits, save, train
from adaptkit.names import (
    ADAPTER_CARD_FILE,
    ADAPTER_SHA256_TAG,
    ADAPTER_WEIGHTS_FILE,
    COMPARISON_RUN_ID_TAG,
    DRAW_SEED_TAG,
    DRAWN_IMAGES_TAG,
    FINAL_OPTIMISM,
    FINAL_SHIFTED_ACCURACY,
    FINAL_SHIFTED_ACCURACY_HIGH,
    FINAL_SHIFTED_ACCURACY_LOW,
    FINAL_TEST_ACCURACY,
    FROZEN_PREFIX_TAG,
    KIND_TAG,
    MEMORY_PEAK_BYTES,
    PAIR_ID_TAG,
    REFIT_OF_TAG,
    SIZE_ADAPTER_BYTES,
    SPLIT_FILE,
    TIME_TRAIN_SECONDS,
    TIME_TUNING_SECONDS,
    TIMING_TAG,
    TRIAL_KEY_TAG,
    TUNING_FILE,
)
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm
from adaptkit.system.core_sharing import Occupancy
from adaptkit.system.files import sha256_of
from adaptkit.training.evaluation import predict_logits
from adaptkit.training.frozen.features import ImageSet
from adaptkit.training.loop import VALIDATION
from adaptkit.training.objective import calibrate
from adaptkit.training.passes import PLAIN_VIEWS, Passes, Test

#: tags of an adaptation run that do not hold for its refit
OF_A_DRAW = (PAIR_ID_TAG, TRIAL_KEY_TAG, DRAW_SEED_TAG)


@dataclass(frozen=True)
class RefitOrigin:
    """What a refit repeats: a run, the comparison that it belongs to, and the accuracy that this lets expect.

    `split_file` is the setting `split.file` of the run. With `calibration`, the refit is calibrated.
    """

    run_id: str
    comparison_run_id: str | None
    expected: Expectation
    split_file: str
    calibration: Calibration | None = None


def all_labels(domains: Domains) -> Images:
    """Return all labelled target images before any shift: those of the pool, then those of the test set."""
    pool, test = domains.pool, domains.shifted_test
    # Under folds, the pool is evaluated too.
    new = ~torch.isin(test.index, domains.pool_index)
    if not new.any():
        return pool
    evaluated = Images(
        domains.unshifted,
        test.labels,
        domains.classes,
        ids=test.ids,
        columns={} if test.groups is None else {GROUP: test.groups},
    )
    return joined(pool, evaluated.take(new.nonzero().flatten()))


def refit_once(stage: Stage, origin: RefitOrigin) -> RunSummary:
    """Train the strategy of a stage on all labels, save its adapter, and notify the plugins."""
    (arm,), (seed,) = stage.experiment.request.arms, stage.experiment.request.settings.seed
    labelled = all_labels(stage.experiment.domains)
    occupancy = stage.seat.occupancy()
    epochs: list[Epoch] = []
    tunings: list[FitTuning] = []
    warnings: list[str] = []
    start = _described(stage, origin, images=len(labelled), occupancy=occupancy)

    def train() -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
            refit = Refit(
                stage=stage,
                start=start,
                origin=origin,
                labelled=labelled,
                occupancy=occupancy,
                folder=Path(folder),
                epochs=epochs,
                tunings=tunings,
                warnings=warnings,
            )
            return refit.execute()

    record = stage.attempt(start, train, arm=arm, seed=seed, epochs=epochs)
    record = dataclasses.replace(record, warnings=tuple(warnings))
    if not tunings:
        return record
    chosen = tunings[0].arm(arm)
    return dataclasses.replace(record, label=chosen.label, options=chosen.options, lr=chosen.lr)


def _described(stage: Stage, origin: RefitOrigin, *, images: int, occupancy: Occupancy) -> RunStart:
    """Return the settings, tags, inputs and description of a refit that is about to start."""
    (arm,), (seed,) = stage.experiment.request.arms, stage.experiment.request.settings.seed
    described = describe_run(
        stage.experiment,
        stage.base,
        base_run_id=stage.base_run_id,
        arm=arm,
        seed=seed,
        occupancy=occupancy,
    )
    tags = {key: value for key, value in described.tags.items() if key not in OF_A_DRAW}
    tags |= {KIND_TAG: "final", DRAWN_IMAGES_TAG: str(images), REFIT_OF_TAG: origin.run_id}
    if origin.comparison_run_id is not None:
        tags[COMPARISON_RUN_ID_TAG] = origin.comparison_run_id
    plan, trials = stage.experiment.plan, stage.experiment.request.settings.tuning.trials
    tuned = f" It is tuned once more, on all of them, with {trials} trials." if trials else ""
    calibrated = "" if origin.calibration is None else f"\n\n{calibration_text(origin.calibration)}"
    return dataclasses.replace(
        described,
        kind="final",
        name=f"{arm.label} refit",
        params={**described.params, "split.file": origin.split_file},
        tags=tags,
        description=(
            f"{expectation_text(origin.expected)}\n\nStrategy **{arm.label}** with the settings of run "
            f"`{origin.run_id}`, trained on all {images} labelled images of `{plan.target}` (seed {seed})."
            f"{tuned}{calibrated}"
        ),
    )


def expectation_text(expected: Expectation) -> str:
    """Return the accuracy to expect of a refit, as sentences."""
    interval = ""
    if expected.low is not None and expected.high is not None:
        interval = f" [{100 * expected.low:.1f}, {100 * expected.high:.1f}]"
    runs = f"{expected.runs} run{'s' * (expected.runs > 1)}"
    text = (
        f"Expected target accuracy: {100 * expected.accuracy:.1f} %{interval}, an estimate from {runs} that "
        "left labels out; it is not measured on this model."
    )
    if expected.warning is not None:
        text = f"{expected.warning} {text}"
    if expected.optimism is not None and expected.strategies > 1:
        points = f"{100 * expected.optimism:.1f}"
        chosen = f"the best of {expected.strategies} strategies was chosen with the same images"
        text += (
            f" It is about {points} points too high, because {chosen}."
            if points != "0.0"
            else (f" That {chosen} makes it less than 0.1 points too high.")
        )
    return text


@dataclass(frozen=True)
class Refit:
    """One training on all labels; the model is not evaluated.

    `epochs` receives the record of each epoch, `tunings` that of the tuning, if the run was tuned inside its fits, and
    `warnings` receives signs that the model has not learned.
    """

    stage: Stage
    start: RunStart
    origin: RefitOrigin
    labelled: Images
    occupancy: Occupancy
    folder: Path
    epochs: list[Epoch]
    tunings: list[FitTuning]
    warnings: list[str]

    def execute(self) -> dict[str, float]:
        """Train, save the adapter, check the saved copy, and notify the plugins; return the metrics."""
        stage, notify = self.stage, self.stage.plugins.notify
        experiment, request = stage.experiment, stage.experiment.request
        (arm,), (seed,) = request.arms, request.settings.seed
        # Views are made of the pool.
        everything = dataclasses.replace(experiment.domains, pool=self.labelled)
        inputs = dataclasses.replace(stage.inputs, experiment=dataclasses.replace(experiment, domains=everything))

        def views(epoch: int) -> ImageSet:
            shifts = request.shifts if epoch == PLAIN_VIEWS else (*request.shifts, *request.augmentations)
            return inputs.drawn_views(
                f"views {seed}/refit {epoch if shifts else 'fixed'}",
                functools.partial(torch.arange, len(self.labelled)),
                shifts=shifts,
                view_seed=derive_seed(derive_seed(seed, "order"), f"views {epoch}"),
            )

        labels = self.labelled.labels.to(experiment.device)
        if arm.searched:
            arm = self._tuned(arm, inputs, views)

        def ended(epoch: Epoch) -> None:
            self.epochs.append(epoch)
            notify("adaptkit_epoch_ended", run=self.start, epoch=epoch)

        first = views(1).value.tensor[: request.settings.batch_size].clone()
        training = Training(
            arm=arm,
            seed=seed,
            batch=(first, labels[: len(first)]),
            passes=lambda model, route: inputs.over(
                model, views, labels=labels, tests={}, tried=first[:TRIED], route=route
            ),
        )
        watcher = Watcher(lambda model: notify("adaptkit_run_started", run=self.start, model=model), ended)
        trained = train(stage, training, watcher, RunRecovery())
        calibration = self.origin.calibration
        temperature = None if calibration is None else calibration.temperature
        files = save(stage, trained, self.folder / "kept", temperature=temperature)
        reloaded = load(stage, arm, files, seed=seed, sent=self.start)
        images = experiment.first_images(MERGED)
        logits = predict_logits(reloaded.model, images, request.settings.precision)
        require_same_logits(stage, trained, images, logits)
        merged(experiment, reloaded.model, reloaded.strategy)  # `predict` uses the merged model
        split = self.folder / SPLIT_FILE
        split.write_text(experiment.domains.split_text, encoding="utf-8")
        params = dict(request.run_params(request.arms[0], seed))
        config = request.config_text(params | {"split.file": self.origin.split_file})
        config = f"# adaptkit refit {self.origin.run_id}\n" + config.partition("\n")[2]
        metrics = (
            _estimates(self.origin.expected)
            | ({} if calibration is None else calibration_metrics(calibration))
            | parameters(reloaded.model, reloaded.origin)
            | {
                SIZE_ADAPTER_BYTES: files[ADAPTER_WEIGHTS_FILE].stat().st_size,
                MEMORY_PEAK_BYTES: trained.memory,
                TIME_TRAIN_SECONDS: sum(epoch.seconds - epoch.evaluation_seconds for epoch in self.epochs),
            }
        )
        artifacts = {SPLIT_FILE: split} | {f"adapter/{name}": path for name, path in files.items()}
        if self.tunings:
            metrics[TIME_TUNING_SECONDS] = self.tunings[0].seconds
            artifacts[TUNING_FILE] = self.folder / TUNING_FILE
            artifacts[TUNING_FILE].write_text(tuning_text(arm, self.tunings), encoding="utf-8")
        self.warnings.extend(
            run_warnings(
                self.epochs,
                None,
                classes=self.labelled.classes,
                trained=class_counts(self.labelled.labels, self.labelled.classes),
                balanced=request.settings.class_weights == "balanced",
            )
        )
        result = RunResult(
            metrics=metrics,
            epochs=tuple(self.epochs),
            predictions={},
            classes=experiment.domains.classes,
            config=config,
            tags={
                ADAPTER_SHA256_TAG: sha256_of(files[ADAPTER_CARD_FILE]),
                FROZEN_PREFIX_TAG: trained.passes.frozen_prefix,
                TIMING_TAG: stage.seat.timing_since(self.occupancy),
                **warning_tags(self.warnings),
            },
            files=artifacts,
            calibration=calibration,
            warnings=tuple(self.warnings),
        )
        calibrate(reloaded.model, temperature)
        notify("adaptkit_run_ended", run=self.start, result=result, model=reloaded.model)
        return dict(metrics)

    def _tuned(self, arm: Arm, inputs: ModelInputs, views: Callable[[int], ImageSet]) -> Arm:
        """Choose the values of the strategy on all labels, with as many trials as each fit of the run had."""
        stage, request = self.stage, self.stage.experiment.request
        (seed,) = request.settings.seed
        if stage.tracker is not None:
            stage.tracker.open_run(self.start)
        everything = functools.partial(torch.arange, len(self.labelled))
        images = inputs.drawn_views(
            f"views {seed}/refit validation",
            everything,
            shifts=request.shifts,
            view_seed=derive_seed(derive_seed(seed, "draw"), "validation views"),
        )
        labels, charged = self.labelled.labels.to(stage.experiment.device), set[str]()

        def passes(model: nn.Module, route: Route) -> Passes:
            tests = {VALIDATION: Test(images, labels)}
            tried = images.value.tensor[:TRIED]
            return inputs.over(model, views, labels=labels, tests=tests, tried=tried, route=route, charged=charged)

        tuning = tune_fit(
            stage,
            arm,
            seed=derive_seed(seed, "tuning refit"),
            labels=Labels(self.labelled.labels, self.labelled.classes, self.labelled.columns.get(GROUP)),
            rows=everything(),
            passes=passes,
        )
        self.tunings.append(tuning)
        return tuning.arm(arm)


def _estimates(expected: Expectation) -> dict[str, float]:
    """Return the estimates of a comparison as final metrics."""
    values = {
        FINAL_SHIFTED_ACCURACY: expected.accuracy,
        FINAL_SHIFTED_ACCURACY_LOW: expected.low,
        FINAL_SHIFTED_ACCURACY_HIGH: expected.high,
        FINAL_TEST_ACCURACY: expected.source_accuracy,
        FINAL_OPTIMISM: expected.optimism,
    }
    return {key: value for key, value in values.items() if value is not None}
