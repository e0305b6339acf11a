"""Train the best strategy of a comparison on all labels, as the model to use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from adaptkit.api.compare import judge_tracked
from adaptkit.api.request import warn_of
from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.metrics import DEFAULT_METRIC
from adaptkit.comparison.numbers import with_value_unit
from adaptkit.comparison.optimism import selection_optimism
from adaptkit.comparison.records import ArmResult
from adaptkit.comparison.sentences import constant_sentences
from adaptkit.comparison.temperature import calibrate_predictions
from adaptkit.errors import BadInput, RunFailed, TrackingLost, suggestion
from adaptkit.events import Calibration
from adaptkit.experiment.base_cache import Base
from adaptkit.experiment.outcome import Expectation, RefitSummary
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.experiment.refit import RefitOrigin, all_labels, refit_once
from adaptkit.experiment.stage import open_stage
from adaptkit.models.trained import find_base
from adaptkit.names import BASE_FINGERPRINT_TAG, BASE_RUN_ID_TAG, COMPARED_RUNS_TAG, PARENT_TAG, TIME_TRAIN_SECONDS
from adaptkit.reproduction.record import (
    data_difference,
    require_possible,
    require_same_split,
    require_split,
    settings_difference,
)
from adaptkit.reproduction.repetition import RepetitionRequest, rebuilt, repetition
from adaptkit.settings.request import LR
from adaptkit.system.core_sharing import Seat
from adaptkit.system.hardware import shared_threads
from adaptkit.tracking.address import tracking_option
from adaptkit.tracking.reader import PARENTS
from adaptkit.tracking.runs import RunFinder, StoredRun, open_runs

if TYPE_CHECKING:
    from torch import nn


def refit(
    run: str,
    *,
    strategy: str | None = None,
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    feature_cache: bool = True,
    calibrate: bool = False,
) -> RefitSummary:
    """Train a strategy on all labelled target images, those of the test set included, and record the model.

    This is the Python form of `adaptkit refit`. The model starts from the recorded base and has the recorded settings.
    It is not evaluated: the accuracy to expect is that of the comparison.

    Parameters
    ----------
    run : str
        A comparison (the parent run of `adaptkit.run`, or a run of `adaptkit.compare`), or one of its runs.
    strategy : str, optional
        The strategy, by its name or by the name that the comparison shows. Default: the strategy of the run, or the one
        that the comparison shows to be better than all others.
    tracking_uri : str, optional
        MLflow store. Default: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.
    plugins : iterable of path or object, optional
        Plugin files, or objects with hooks.
    backbone : torch.nn.Module, optional
        The model that `adaptkit.run` received as `backbone`, with the same weights.
    data_dir : path, optional
        Folder of data sets. Default: as in the run.
    device : {"auto", "cpu", "cuda", "mps"}, optional
        Device that computes. Default: as in the run.
    feature_cache : bool, optional
        Whether features of frozen layers are computed once and reused. Default: True.
    calibrate : bool, optional
        Divide the logits of the model by one temperature, fitted on the predictions of the run for images that did not
        train its models. Default: False.

    Returns
    -------
    RefitSummary
        `run_id` is the run of the model, which `adaptkit.load`, `adaptkit.predict` and `adaptkit.export` take.

    Raises
    ------
    BadInput
        If no strategy is shown to be the best, or if data or base have changed since the run.
    RunFailed
        If training fails.

    Examples
    --------
    >>> summary = adaptkit.refit(run_id)
    >>> model = adaptkit.load(summary.run_id)
    """
    request = RefitRequest(run=run, strategy=strategy, calibrate=calibrate, **repetition(locals()))
    return refit_run(request, lambda notice: warn_of([notice]))


@dataclass(frozen=True, kw_only=True)
class RefitRequest(RepetitionRequest):
    """What to refit, and how; with `dry_run`, everything is checked and nothing is trained."""

    strategy: str | None = None
    calibrate: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Choice:
    """The chosen strategy: the run whose settings are repeated, its comparison, and the parent run of that."""

    stored: StoredRun
    comparison: Comparison
    arm: ArmResult
    parent: str | None


def refit_run(request: RefitRequest, notice: Callable[[str], None] = lambda line: None) -> RefitSummary:
    """Refit a strategy of a comparison; call `notice(message)` for each message."""
    choice = choose(open_runs(request.tracking_uri), request)
    stored, plugins = choice.stored, request.plugins
    experiment = _prepared(choice, request)
    for line in experiment.plan.notices:
        notice(line)
    base = _recorded_base(stored, experiment)
    (arm,), (seed,) = experiment.request.arms, experiment.request.settings.seed
    origin = RefitOrigin(
        run_id=stored.run_id,
        comparison_run_id=choice.parent,
        expected=expectation(choice.comparison, choice.arm),
        split_file=stored.params.get("split.file", "none"),
        calibration=_calibration(choice) if request.calibrate else None,
    )
    summary = RefitSummary(
        run_id=None,
        strategy=arm.strategy,
        label=arm.label,
        options=arm.options,
        lr=arm.lr,
        seed=seed,
        images=len(all_labels(experiment.domains)),
        refit_of=stored.run_id,
        comparison_run_id=choice.parent,
        expected=origin.expected,
        tuning_trials=experiment.request.settings.tuning.trials,
        calibration=origin.calibration,
    )
    if request.dry_run:
        return summary
    from adaptkit.tracking.tracker import Tracker

    store = stored.store()
    with (
        Seat() as seat,
        Tracker(store) as tracker,
        plugins.watching(tracker, "tracker"),
        shared_threads(seat.occupancy().others, notice),
    ):
        stage = open_stage(
            experiment,
            base,
            base_run_id=stored.tags.get(BASE_RUN_ID_TAG),
            plugins=plugins,
            seat=seat,
            tracker=tracker,
            feature_cache=request.feature_cache,
        )
        record = refit_once(stage, origin)
        tracker.flush()
        run_id = record.run_id or tracker.run_id(f"{arm.label} refit")
        tracker.close()
        if record.error is not None:
            raise RunFailed(f"{arm.label} refit: {record.error}")
        if tracker.fault is not None:
            raise TrackingLost(f"MLflow does not have the whole refit: {tracker.fault}")
    seconds = record.metrics[TIME_TRAIN_SECONDS]
    uri = store.without_secrets(store.uri)
    values = {**record.options} if record.lr is None else {LR: record.lr, **record.options}
    return dataclasses.replace(
        summary,
        run_id=run_id,
        label=record.label,
        options=record.options,
        lr=record.lr,
        seconds=seconds,
        tracking_uri=uri,
        tuned={key: values[key] for key in arm.searched},
        warnings=record.warnings,
    )


def choose(runs: RunFinder, request: RefitRequest) -> Choice:
    """Return the strategy to refit; raise BadInput with the choices if the comparison does not decide."""
    record = runs.get(request.run)
    if record is None:
        raise BadInput(runs.reader.unknown(request.run))
    named = StoredRun(runs, record)
    if named.kind not in (*PARENTS, "adaptation"):
        what = f"is of kind {named.kind}" if named.kind else "was not made by adaptkit"
        raise BadInput(f"{named.title} {what}: name a comparison or an adaptation run")
    if named.kind == "adaptation":
        return _of_run(runs.find(request.run, ("adaptation",)), request)
    run_ids: list[str] = [request.run]
    if not runs.reader.find(run_ids, None, None):  # made by `adaptkit compare`: its runs have other parents
        run_ids = [name for name in named.tags.get(COMPARED_RUNS_TAG, "").split(",") if name]
        if not run_ids:
            raise BadInput(f"{named.title} has no runs to choose from")
    comparisons = judge_tracked(
        run_ids, tracking_uri=request.tracking_uri, plugins=request.plugins, curves=False, alone=True
    )
    if len(comparisons) != 1:
        raise BadInput(f"{named.title} holds {len(comparisons)} comparisons: name one of its runs")
    (comparison,) = comparisons
    arm = _named_arm(comparison, request.strategy) if request.strategy is not None else comparison.best
    if arm is None:
        raise BadInput(f"{named.title}: {undecided(comparison, request.run, request.tracking_uri)}")
    first = min(arm.runs, key=lambda run: run.seed)
    return Choice(runs.find(str(first.run_id), ("adaptation",)), comparison, arm, parent=request.run)


def _of_run(stored: StoredRun, request: RefitRequest) -> Choice:
    parent = stored.tags.get(PARENT_TAG)
    named = [parent or stored.run_id]
    for comparison in judge_tracked(
        named, tracking_uri=request.tracking_uri, plugins=request.plugins, curves=False, alone=True
    ):
        for arm in comparison.arms:
            if any(run.run_id == stored.run_id for run in arm.runs):
                if request.strategy not in (None, arm.name, arm.strategy):
                    raise BadInput(f"--strategy: {stored.title} is of strategy {arm.name}; leave --strategy out")
                return Choice(stored, comparison, arm, parent)
    raise BadInput(f"{stored.title} is not part of the comparison of run {parent}")


def _named_arm(comparison: Comparison, name: str) -> ArmResult:
    """Return the arm with this name, or the only one of this strategy."""
    for arm in comparison.arms:
        if arm.name == name:
            return arm
    found = [arm for arm in comparison.arms if arm.strategy == name]
    if len(found) == 1:
        return found[0]
    choices = ", ".join(_shown(comparison, arm) for arm in found or comparison.arms)
    if found:
        raise BadInput(f"--strategy: there are {len(found)} settings of {name}; choose one: {choices}")
    near = suggestion(name, [arm.name for arm in comparison.arms])
    raise BadInput(f"--strategy: the comparison has no {name!r}{near or f'; it has {choices}'}")


def undecided(comparison: Comparison, run_id: str, tracking_uri: str | None) -> str:
    """Return the reason why no strategy is the best, the choices, and the command that takes one."""
    option = "" if tracking_uri is None else tracking_option(tracking_uri)
    reason = "no strategy is shown to be better than all others"
    if comparison.arms[0].beats_constant is False and comparison.constant is not None:
        reason = f"no strategy is shown to be better than always answering {comparison.constant.answer!r}"
    return f"{reason}; choose one with `adaptkit refit {run_id}{option} --strategy NAME`: " + ", ".join(
        _shown(comparison, arm) for arm in comparison.arms
    )


def _shown(comparison: Comparison, arm: ArmResult) -> str:
    """Return the name of an arm, in quotes if the command line needs them, with its score by the deciding metric."""
    label = "" if comparison.metric.key == DEFAULT_METRIC else f"{comparison.metric.label} "
    name = repr(arm.name) if " " in arm.name else arm.name
    return f"{name} ({label}{with_value_unit(comparison.metric, arm.score.mean)})"


def expectation(comparison: Comparison, arm: ArmResult) -> Expectation:
    """Return the accuracy that a comparison lets expect of a strategy."""
    low, high = arm.shifted.low, arm.shifted.high
    is_best = all(arm.shifted.mean >= other.shifted.mean for other in comparison.arms)
    optimism = None
    if is_best:
        # The arm first: of equal ones, it is the best.
        others = [other for other in comparison.arms if other.name != arm.name]
        optimism = selection_optimism(numpy.stack([_correct(one) for one in (arm, *others)]))
    return Expectation(
        accuracy=arm.shifted.mean,
        low=None if low is None else max(0.0, low),
        high=None if high is None else min(1.0, high),
        source_accuracy=None if arm.clean is None else arm.clean.mean,
        runs=len(arm.runs),
        strategies=len(comparison.arms),
        optimism=optimism,
        warning=next(iter(constant_sentences(comparison)), None) if arm.beats_constant is False else None,
    )


def _calibration(choice: Choice) -> Calibration:
    """Return the calibration that the target predictions of the chosen run give."""
    (run,) = (run for run in choice.arm.runs if run.run_id == choice.stored.run_id)
    try:
        return calibrate_predictions(run.predictions["shifted"])
    except BadInput as error:
        raise BadInput(*(f"{choice.stored.title}: {line}" for line in error.problems)) from None


def _correct(arm: ArmResult) -> Any:
    """Return the share of an arm's runs that are right about each target test image, `[images]`."""
    predictions = [run.predictions["shifted"] for run in arm.runs]
    return numpy.mean([one.predicted == one.truth for one in predictions], axis=0)


def _prepared(choice: Choice, request: RefitRequest) -> Experiment:
    """Return the experiment of the recorded run; raise BadInput if settings, code or data have changed."""
    stored = choice.stored
    require_possible(stored)
    require_split(stored)
    recorded, domains = rebuilt(stored, request)
    # Last digits of shifted images may differ on another machine.
    data = data_difference(stored, domains, recorded, is_elsewhere=True)
    if data is not None and not data.within:
        raise BadInput(
            f"{stored.title}: the data have changed since then ({data.detail}): its accuracy says nothing about "
            "a refit; run the comparison again"
        )
    if data is None:
        require_same_split(stored, domains)
    experiment = prepare(recorded, domains=domains)
    if (difference := settings_difference(stored, experiment)) is not None:
        raise BadInput(f"{stored.title}: the backbone has changed: {difference.what} is {difference.now}")
    return experiment


def _recorded_base(stored: StoredRun, experiment: Experiment) -> Base:
    """Return the base that a run was adapted from; raise BadInput if it is gone or computes something else."""
    fingerprint = stored.tags[BASE_FINGERPRINT_TAG]
    state, logits = find_base(stored, fingerprint)
    base = Base(key=experiment.base_key, fingerprint=fingerprint, state=state, epochs=(), logits=logits)
    if not base.is_unchanged(experiment.request, experiment.domains):
        raise BadInput(
            f"{stored.title}: backbone {experiment.request.settings.backbone} gives other outputs for the weights of "
            "the base than when the run was made: its code has changed; restore it"
        )
    return base
