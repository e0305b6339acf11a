"""Run an experiment: adapt a base with several strategies, evaluate, track and compare them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.api.request import TrainingRequest, conditions, read_arguments, require_report_folder, warn_of
from adaptkit.comparison.collector import Collector
from adaptkit.comparison.findings import Comparisons
from adaptkit.errors import AdaptkitError, BadInput
from adaptkit.experiment.adaptation import execute
from adaptkit.experiment.outcome import Plan, RunOutcome
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.experiment.recovery import Recovery
from adaptkit.names import COMPARISON_FILE
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.request import Request
from adaptkit.settings.resolve import resolve, tuning_layer
from adaptkit.system.core_sharing import Seat
from adaptkit.system.folders import features_allowed
from adaptkit.system.hardware import shared_threads
from adaptkit.tuning.chosen import tuned_layer, with_origin

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.tracking.store import Store
    from adaptkit.tracking.tracker import Tracker


@dataclass(frozen=True, kw_only=True)
class RunRequest(TrainingRequest):
    """A checked experiment and the conditions of its runs."""

    experiment: Request
    track: bool = True
    from_tune: str | None = None
    refit: bool = False
    calibrate: bool = False

    def prepared(self) -> Experiment:
        """Prepare the experiment; with values of an earlier tuning, say which labels that tuning saw."""
        if self.calibrate and not self.refit:
            raise BadInput("--calibrate calibrates the model of --refit; add --refit")
        experiment = prepare(self.experiment, refresh_base=self.refresh_base)
        if self.from_tune is None:
            return experiment
        return with_origin(experiment, self.from_tune, self.tracking_uri)


@dataclass(frozen=True)
class Watch:
    """Callbacks of an experiment: `planned(plan)` once before training, `notice(message)` for each message."""

    planned: Callable[[Plan], None] = lambda plan: None
    notice: Callable[[str], None] = lambda message: None


def run(
    strategies: str | Sequence[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    target: str | None = None,
    classes: str | Sequence[str] | None = None,
    shift: str | Mapping[str, float] | None = None,
    severity: str | float | Sequence[float] | None = None,
    metric: str | Sequence[str] | None = None,
    backbone: str | nn.Module | None = None,
    weights: str | Path | None = None,
    image_size: int | None = None,
    skip_bad_images: bool | None = None,
    augment: str | Mapping[str, float] | None = None,
    bn: str | None = None,
    seeds: int | str | Sequence[int] | None = None,
    protocol: str | None = None,
    folds: int | str | None = None,
    keep_folds: bool | None = None,
    shots: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    weight_decay: float | None = None,
    schedule: str | None = None,
    clip: float | str | None = None,
    min_steps: int | str | None = None,
    class_weights: str | None = None,
    evaluate_shifted: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    checkpointing: bool | None = None,
    data_dir: str | Path | None = None,
    experiment: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    tracking_uri: str | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
    report: str | Path | None = None,
    track: bool = True,
    from_tune: str | None = None,
    tune: int | None = None,
    space: Mapping[str, str] | None = None,
    refit: bool = False,
    calibrate: bool = False,
) -> RunOutcome:
    """Adapt a base with one or more strategies, track each run in MLflow, and compare the strategies.

    This is the Python form of `adaptkit run`. An argument that is None keeps its default. The strongest source of a
    setting wins: an argument, `settings`, `config`, `from_tune`, `preset`, the default.

    Parameters
    ----------
    strategies : str or sequence of str
        Strategies to compare, such as "lora" or ["lora", "head"]. `adaptkit strategies` lists them.
    options : mapping, optional
        Options of strategies: {"rank": 4}, or {"lora.rank": 4} with several strategies.
    preset : str, optional
        Settings to start from: "quick", "default" or "notebook".
    config : path, optional
        YAML file of settings.
    settings : mapping, optional
        Any settings by key, such as {"base.epochs": 2}.
    dataset : str, optional
        Source: "mnist5k" (default), another data set, "folder:PATH", "table:FILE", or "none" for pretrained weights
        without a source. "table:FILE?site=A" selects rows by the value of a column.
    target : str, optional
        Target, such as "folder:PATH" or "table:FILE?site=B". Default: the source under `shift`.
    classes : str or sequence of str, optional
        Classes of source and target to use, in this order, such as "cat,dog" or ["cat", "dog"]. Default: all.
    shift : str or mapping, optional
        Shift from source to target images, such as "rotate=45,noise=0.3" (default without a target) or {"rotate": 30}.
    severity : str, float or sequence of float, optional
        Multiples of the shift at which the final models are evaluated, such as [0.5, 1, 2].
    metric : str or sequence of str, optional
        Metrics to compare by; the first decides, and the others are shown. `adaptkit metrics` lists them. Default:
        "accuracy", or "balanced_accuracy" if the largest class has more than three times the images of the smallest.
    backbone : str or torch.nn.Module, optional
        Architecture ("small_cnn" by default), or a model; a copy of it is trained.
    weights : str or path, optional
        Initial weights of the backbone: "default" (published), "none" (random) or a file.
    image_size : int, optional
        Side of the images, in pixels. Default: that of the data set or the backbone.
    skip_bad_images : bool, optional
        Leave out files that are not pictures, instead of stopping.
    augment : str or mapping, optional
        Shifts of training images only, such as "flip=0.5,crop=0.7".
    bn : {"freeze", "adapt"}, optional
        Whether the statistics of frozen BatchNorm layers are kept (default) or adapted to the target.
    seeds : int, str or sequence of int, optional
        One run of each strategy for each seed: 3, "0-4", "0,2,5" or [0, 1]. Default: 0.
    protocol : {"folds", "given", "draws"}, optional
        How labels are used: cross-validation, the target's own test part, or few-shot draws from a pool. Default:
        "given" for own images with a test part, "folds" for other own images, else "draws".
    folds : int or str, optional
        Number of folds, or "by:COLUMN" to hold out one value of a column at a time. Default: 5.
    keep_folds : bool, optional
        Keep the adapters of all folds, also if they take more than 50 MB.
    shots : int, optional
        Labelled target images of each class in each training. Default: 50 with draws, otherwise all.
    epochs, batch_size : int, optional
        Epochs and batch size of adaptation. Defaults: 10 and 32.
    lr : float, optional
        Learning rate. Default: the strategy's own.
    optimizer : {"adam", "adamw", "sgd"}, optional
        Optimizer of adaptation; sgd has a momentum of 0.9. Default: "adam".
    weight_decay : float, optional
        Weight decay of adaptation. Default: 0.
    schedule : {"cosine", "constant"}, optional
        Learning rate over the steps: "cosine" (default) rises in the first tenth and then follows a cosine to 0.
    clip : float or "none", optional
        Largest norm of the gradient; larger ones are scaled down to it. Default: 1.
    min_steps : int or "none", optional
        Smallest number of optimizer steps: few images train for more epochs, unless `epochs` is set. Default: 100.
    class_weights : {"none", "balanced"}, optional
        Weights of the classes in the loss of adaptation. With "balanced", all classes count equally. Default: "none".
    evaluate_shifted : {"epoch", "end"}, optional
        When the target accuracy is measured: after each epoch (default) or at the end only.
    device : {"auto", "cpu", "cuda", "mps"}, optional
        Device that computes. Default: "auto".
    precision : {"fp32", "bf16", "auto"}, optional
        Number format; "auto" is bf16 where the device supports it. Default: "fp32".
    checkpointing : bool, optional
        Recompute activations instead of storing them: slower training with less memory.
    data_dir : path, optional
        Folder of data sets and downloads. Default: "data".
    experiment : str, optional
        MLflow experiment. Default: MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID, else "adaptkit".
    plugins : iterable of path or object, optional
        Plugin files, or objects with hooks.
    tracking_uri : str, optional
        MLflow store. Default: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.
    refresh_base : bool, optional
        Train the base even if the cache holds it.
    feature_cache : bool, optional
        Whether features of frozen layers are computed once and reused. Default: True.
    report : path, optional
        Folder for a report of the comparison.
    track : bool, optional
        Whether runs are recorded in MLflow. Default: True.
    from_tune : str, optional
        Run id of a finished tuning, whose best values are used.
    tune : int, optional
        Configurations that each fit tries for each strategy, on its own training images, before it trains with the best
        one. Default: 0, no tuning.
    space : mapping, optional
        Ranges that `tune` searches, as in `adaptkit.tune`. Default: the strategies' own ranges.
    refit : bool, optional
        Then train the best strategy on all labels, as `adaptkit.refit` does. Default: False.
    calibrate : bool, optional
        Calibrate the probabilities of the refit, as `adaptkit.refit` does. Default: False.

    Returns
    -------
    RunOutcome
        `runs` holds one record for each run, `comparison` compares the strategies. With `refit`, `refit` is the final
        model, or `refit_error` says why there is none.

    Raises
    ------
    BadInput
        If a setting is wrong; nothing has been trained or tracked. A run that fails later is a record with its error.

    Examples
    --------
    >>> outcome = adaptkit.run(["head", "lora"], seeds="0-1", preset="quick")
    >>> [(run.strategy, run.seed) for run in outcome.runs]
    [('head', 0), ('lora', 0), ('head', 1), ('lora', 1)]
    >>> print(outcome.comparison.sentences[-1])
    This holds for this base, ...
    """
    arguments = locals()
    layers, loaded = read_arguments(arguments)
    layers.insert(0, tuning_layer(tune, [f"{key}={text}" for key, text in (space or {}).items()]))
    if from_tune is not None:
        layers.append(tuned_layer(from_tune, layers, tracking_uri))
    request = RunRequest(
        experiment=resolve(layers, loaded),
        plugins=loaded,
        track=track,
        from_tune=from_tune,
        refit=refit,
        calibrate=calibrate,
        **conditions(arguments),
    )
    return run_request(request, Watch(planned=lambda plan: warn_of(plan.notices)))


def run_request(request: RunRequest, watch: Watch = Watch()) -> RunOutcome:
    """Run a checked experiment, with `refit` train the best strategy on all labels, and return the results."""
    if request.refit and not request.track:
        raise BadInput("refit: the final model is recorded in MLflow; track the runs, or do not refit")
    outcome, recovery = _run(request, watch)
    if recovery is None or not request.refit:
        return outcome
    return refitted(
        outcome,
        recovery,
        plugins=request.plugins,
        tracking_uri=request.tracking_uri,
        feature_cache=request.feature_cache,
        calibrate=request.calibrate,
    )


def refitted(
    outcome: RunOutcome,
    recovery: Recovery,
    *,
    plugins: Plugins,
    tracking_uri: str | None,
    feature_cache: bool,
    calibrate: bool,
) -> RunOutcome:
    """Return the outcome with the refit of its best strategy, or with the reason why there is none."""
    from adaptkit.api.refit import RefitRequest, refit_run, undecided

    run_id = outcome.parent_run_id or outcome.runs[0].run_id
    with resumable(recovery, tracking_uri), recovery.refitting():
        if outcome.failed or outcome.tracking_error is not None or run_id is None or outcome.comparison is None:
            return dataclasses.replace(outcome, refit_error="no refit was made, because not all runs are complete")
        if outcome.is_undecided:
            return dataclasses.replace(outcome, refit_error=undecided(outcome.comparison, run_id, tracking_uri))
        request = RefitRequest(
            run=run_id,
            plugins=plugins,
            tracking_uri=tracking_uri,
            feature_cache=feature_cache,
            calibrate=calibrate,
        )
        try:
            return dataclasses.replace(outcome, refit=refit_run(request))
        except AdaptkitError as error:
            return dataclasses.replace(outcome, refit_error="; ".join(error.problems))


def _run(request: RunRequest, watch: Watch) -> tuple[RunOutcome, Recovery | None]:
    """Make the runs; return their outcome, and their records if they are tracked."""
    require_report_folder(request.report)
    plugins, refresh_base, notice = request.plugins, request.refresh_base, watch.notice
    with Seat() as seat:
        experiment = request.prepared()
        store = _opened(request) if request.track else None
        collector = Collector()
        watch.planned(experiment.plan)
        if store is None:
            with plugins.watching(collector, "collector"), shared_threads(seat.occupancy().others, notice):
                outcome = execute(
                    experiment,
                    plugins,
                    seat=seat,
                    refresh_base=refresh_base,
                    feature_cache=request.feature_cache,
                    notice=notice,
                )
            comparisons = judge_outcome(outcome, collector, request.plugins)
            if request.report is not None:
                report_files(comparisons, request.report, request.report)
            return dataclasses.replace(outcome, comparisons=comparisons), None

        from adaptkit.tracking.tracker import Tracker

        for message in (*store.notices, *_unsent(store)):
            notice(message)
        checked = experiment.request  # with the device and the precision of this machine
        several = len(checked.arms) * len(checked.settings.seed) > 1
        with (
            Tracker(store) as tracker,
            plugins.watching(collector, "collector"),
            plugins.watching(tracker, "tracker"),
            tracker.grouped(checked.group_name, checked.shared_params()) if several else nullcontext(),
            shared_threads(seat.occupancy().others, notice),
        ):
            reuse = request.feature_cache and features_allowed()
            recovery = Recovery(
                experiment=experiment,
                tracker=tracker,
                reuse=reuse,
                notice=notice,
                report=request.report,
                refit=request.refit,
                calibrate=request.calibrate,
            )
            with resumable(recovery, request.tracking_uri), recovery.group():
                outcome = execute(
                    experiment,
                    plugins,
                    seat=seat,
                    tracker=tracker,
                    refresh_base=refresh_base,
                    feature_cache=request.feature_cache,
                    notice=notice,
                    recovery=recovery,
                )
                outcome = with_ids(outcome, tracker)
                recorded = close_group(
                    outcome, judge_outcome(outcome, collector, request.plugins), tracker=tracker, report=request.report
                )
        return recorded, recovery


def with_ids(outcome: RunOutcome, tracker: Tracker) -> RunOutcome:
    """Return the outcome with the MLflow ids of all runs, after the queue of the tracker is empty."""
    tracker.flush()
    runs = [
        dataclasses.replace(run, run_id=run.run_id or tracker.run_id(f"{run.label} seed={run.seed}"))
        for run in outcome.runs
    ]
    return dataclasses.replace(outcome, runs=tuple(runs))


def judge_outcome(outcome: RunOutcome, collector: Collector, plugins: Plugins) -> Comparisons:
    """Compare the strategies of an experiment; the result is empty if no run has finished."""
    from adaptkit.comparison.judge import judge_runs
    from adaptkit.comparison.metrics import find_measures

    runs = collector.runs({f"{run.label} seed={run.seed}": run.run_id for run in outcome.runs})
    is_any = any(run.status == "finished" for run in runs)
    return judge_runs(runs, measures=find_measures(plugins)) if is_any else Comparisons()


def close_group(outcome: RunOutcome, comparisons: Comparisons, tracker: Tracker, report: Path | None) -> RunOutcome:
    """Record the comparison in the parent run, if there is one, and close the tracker; return the complete outcome."""
    store = tracker.store
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
        tracker.end_group(comparisons or None, report_files(comparisons, report, Path(temporary)))
    tracker.close()  # before reading `fault`, which is final only after all events are sent
    return dataclasses.replace(
        outcome,
        experiment=store.experiment_name,
        tracking_uri=store.without_secrets(store.uri),
        ui_command=store.ui_command,
        ui_url=store.runs_url(),
        notices=store.notices,
        tracking_error=tracker.fault,
        parent_run_id=tracker.parent_id,
        comparisons=comparisons,
    )


def report_files(comparisons: Comparisons, report: Path | None, temporary: Path) -> list[Path]:
    """Write the files of a comparison and return them: the report, or without a folder for it, the JSON document."""
    if not comparisons:
        return []
    if report is not None:
        from adaptkit.reports.report import write_report

        return write_report(report, comparisons)
    path = temporary / COMPARISON_FILE
    path.write_text(f"{comparisons.to_json()}\n", encoding="utf-8")
    return [path]


@contextmanager
def resumable(recovery: Recovery, tracking_uri: str | None) -> Iterator[None]:
    """Add a note with the command that resumes the runs to an interruption of the block."""
    try:
        yield
    except KeyboardInterrupt as error:
        if (command := recovery.hint(tracking_uri)) is not None:
            error.add_note(f"To resume:  {command}")
        raise


def _opened(request: RunRequest) -> Store:
    from adaptkit.tracking.store import open_store

    return open_store(request.tracking_uri, request.experiment.settings.experiment)


def _unsent(store: Store) -> list[str]:
    from adaptkit.tracking.journal import count_unsent

    count = count_unsent(store.shown)
    if not count:
        return []
    return [f"{count} earlier run{'s are' if count > 1 else ' is'} not completely in MLflow; run `adaptkit sync`"]
