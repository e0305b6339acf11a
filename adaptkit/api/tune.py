"""Tune strategies with an equal budget, then compare their best values."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.api.request import TrainingRequest, conditions, read_arguments, require_report_folder, warn_of
from adaptkit.api.sweep import judge_trials, store_fields
from adaptkit.errors import BadInput, suggestion
from adaptkit.experiment.base_cache import build_model
from adaptkit.experiment.preflight import can_be_adapted
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.experiment.trial_scores import ACCURACY, deciding_metric
from adaptkit.names import TUNING_FILE, TUNING_TAG
from adaptkit.plugins.manager import Plugins
from adaptkit.seeds import derive_seed
from adaptkit.settings.identity import trial_key
from adaptkit.settings.request import Request
from adaptkit.settings.resolve import Layer, given_keys, resolve
from adaptkit.settings.settings import parse_seeds
from adaptkit.settings.spaces import Space, changed, make_spaces
from adaptkit.sweeps.engines.engine import connected, store_notices
from adaptkit.sweeps.engines.tasks import EngineSettings, Tell, ignore
from adaptkit.sweeps.engines.worker import Place, Work
from adaptkit.sweeps.outcome import SweepTrial
from adaptkit.sweeps.shared import key_of, make_shared_inputs, obtain_bases, sweep_lock, without_tests
from adaptkit.system.core_sharing import Seat
from adaptkit.system.hardware import shared_threads
from adaptkit.tracking.parent import ParentRun
from adaptkit.tracking.store import open_store
from adaptkit.tracking.sweeps import open_sweep
from adaptkit.tuning.outcome import TunedStrategy, TuneOutcome, TunePlan, budget_of, line_of, plan_of, tuned_of
from adaptkit.tuning.runs import TuningRuns
from adaptkit.tuning.search import Search, TrialRequest
from adaptkit.tuning.study import StudyTrial, open_studies, require_optuna, study_file

if TYPE_CHECKING:
    from torch import nn

METHODS = ("tpe", "grid")
#: default seeds of the runs with the best values; the default tuning seed, 0, is not among them
FRESH_SEEDS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Tuning:
    """A checked tuning; `given` names, for each strategy, the keys that have a value and are not searched."""

    request: Request
    given: Mapping[str, set[str]]
    spaces: tuple[str, ...] = ()
    trials: int = 12
    tuning_seeds: tuple[int, ...] = (0,)
    method: str = "tpe"


@dataclass(frozen=True, kw_only=True)
class TuneRequest(TrainingRequest):
    """A checked tuning, with the engine and the conditions of its runs."""

    tuning: Tuning
    engine: EngineSettings = field(default_factory=EngineSettings)


@dataclass(frozen=True)
class TuneWatch:
    """Callbacks of a tuning.

    `planned(plan)` is called once before training, `notice(message)` for each message, `tell(event)` for events of
    runs, `tried(request, trial)` after each trial, `tuned(strategies)` after the search, `ended(run)` after each run
    with the best values.
    """

    planned: Callable[[TunePlan], None] = lambda plan: None
    notice: Callable[[str], None] = lambda message: None
    tell: Tell = ignore
    tried: Callable[[TrialRequest, StudyTrial], None] = lambda request, trial: None
    tuned: Callable[[Sequence[TunedStrategy]], None] = lambda strategies: None
    ended: Callable[[SweepTrial], None] = lambda record: None


def tune(
    strategies: str | Sequence[str] | None = None,
    *,
    trials: int = 12,
    space: Mapping[str, str] | None = None,
    tuning_seeds: int | str | Sequence[int] = 0,
    search: str = "tpe",
    jobs: int | None = None,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
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
) -> TuneOutcome:
    """Search the learning rate and the options of each strategy with an equal budget, then compare the best values.

    This is the Python form of `adaptkit tune`. Options that have a value, and `lr` if it is set, are not searched. The
    trials are scored by the first `metric`, the one that decides in the comparison.

    Parameters
    ----------
    strategies : str or sequence of str
        Strategies to tune.
    trials : int, optional
        Trials of each strategy. Default: 12.
    space : mapping, optional
        Ranges by key ("lr", "lora.lr", "lora.rank"): "1e-4..1e-1/log" or "2,4,8". Default: the strategy's own ranges.
    tuning_seeds : int, str or sequence of int, optional
        One run of each trial for each of these seeds. Default: 0.
    search : {"tpe", "grid"}, optional
        Search method. Default: "tpe".
    jobs : int, optional
        Number of runs at a time. The local engine then starts processes: with more than one, call this function below
        `if __name__ == "__main__"`.
    engine : str, optional
        Engine that makes the runs. Default: "local".
    engine_options : mapping, optional
        Options of the engine.
    seeds : int, str or sequence of int, optional
        Seeds of the runs with the best values; none of them may be a tuning seed. Default: "1-5".
    report : path, optional
        Folder for a report of the comparison.
    options, preset, config, settings, dataset, target, classes, shift, severity, metric, backbone, weights, \
    image_size, skip_bad_images, augment, bn, protocol, folds, keep_folds, shots, \
    epochs, lr, batch_size, optimizer, weight_decay, schedule, clip, min_steps, class_weights, \
    evaluate_shifted, device, \
    precision, checkpointing, data_dir, experiment, plugins, tracking_uri, refresh_base, feature_cache
        As in `adaptkit.run`.

    Returns
    -------
    TuneOutcome
        `strategies` holds the trials and the best values, `comparison` compares the runs with the best values.

    Raises
    ------
    BadInput
        If a setting or a range is wrong, or Optuna is not installed; nothing has been trained or tracked.

    Examples
    --------
    >>> outcome = adaptkit.tune("head", trials=2, seeds=1, preset="quick")
    >>> outcome.strategies[0].chosen
    {'lr': ...}
    """
    arguments = locals()
    layers, loaded = read_arguments(arguments)
    request = TuneRequest(
        tuning=check_tuning(
            layers,
            loaded,
            spaces=[f"{key}={text}" for key, text in (space or {}).items()],
            trials=trials,
            tuning_seeds=tuning_seeds,
            method=search,
        ),
        engine=EngineSettings(engine, jobs, engine_options or {}),
        plugins=loaded,
        **conditions(arguments),
    )
    return run_tuning(request, TuneWatch(planned=lambda plan: warn_of(plan.notices)))


def check_tuning(
    layers: Sequence[Layer],
    plugins: Plugins,
    *,
    spaces: Sequence[str] = (),
    trials: int = 12,
    tuning_seeds: int | str | Sequence[int] = 0,
    method: str = "tpe",
    problems: Sequence[str] = (),
) -> Tuning:
    """Check a tuning over layers of settings; raise BadInput with all its problems, including those passed in."""
    problems = list(problems)
    try:
        require_optuna()
    except BadInput as error:
        problems.extend(error.problems)
    if method not in METHODS:
        problems.append(f"--search: unknown method {method!r}{suggestion(method, METHODS)}")
    if trials < 2:
        problems.append(f"--trials: must be at least 2, not {trials}")
    searched: tuple[int, ...] = ()
    try:
        parsed = parse_seeds(tuning_seeds)
        searched = tuple(dict.fromkeys(parsed)) if isinstance(parsed, Sequence) else ()
    except ValueError as error:
        problems.append(f"--tuning-seeds: {error}")
    request = resolve([*layers, Layer({"seed": list(FRESH_SEEDS)})], plugins, problems)
    if used := sorted({*request.settings.seed} & {*searched}):
        raise BadInput(
            f"seed {used[0]} is a tuning seed: values that were chosen on its images must be compared on other images; "
            "choose other --seeds or --tuning-seeds"
        )
    if request.settings.tuning.trials:
        raise BadInput("tuning.trials: `adaptkit tune` makes trials of its own; set their number with --trials")
    keys = {key for layer in layers for key in layer.values}
    fixed = {name: given_keys(keys, name) for name in request.settings.strategy}
    return Tuning(
        request=request, given=fixed, spaces=tuple(spaces), trials=trials, tuning_seeds=searched, method=method
    )


def run_tuning(request: TuneRequest, watch: TuneWatch = TuneWatch()) -> TuneOutcome:
    """Search, run the best values with new seeds, and compare them; an earlier start of the same tuning continues."""
    tuning, plugins = request.tuning, request.plugins
    engine = request.engine.make(plugins, tuning.request.settings.device)
    require_report_folder(request.report)
    with Seat() as seat, connected(engine) as machines:
        experiment = prepare(tuning.request, refresh_base=request.refresh_base)
        checked = experiment.request
        fits = functools.partial(can_be_adapted, build_model(checked, experiment.domains))
        spaces = make_spaces(checked.arms, texts=tuning.spaces, given=tuning.given, fits=fits)
        seed, metric = derive_seed(tuning.tuning_seeds[0], "tuning"), deciding_metric(experiment, plugins)
        search = Search(spaces, trials=tuning.trials, method=tuning.method, seed=seed, metric=metric)
        budget = budget_of(
            experiment,
            trials=tuning.trials,
            method=tuning.method,
            tuning_seeds=tuning.tuning_seeds,
            metric=metric,
        )
        store = open_store(request.tracking_uri, checked.settings.experiment)
        for message in (*store.notices, *store_notices(store, machines)):
            watch.notice(message)
        with shared_threads(seat.occupancy().others, watch.notice):
            (base,) = obtain_bases(
                [experiment], plugins=plugins, store=store, refresh_base=request.refresh_base, notice=watch.notice
            )
            key = _key(tuning, experiment, spaces=spaces, base_fingerprint=base.base.fingerprint)
            sweep_key = key_of([key, *map(str, checked.settings.seed)])
            name = f"tune {', '.join(checked.settings.strategy)}: {budget.trials} trials each"
            params = checked.shared_params() | {f"space.{space.strategy}": space.text for space in spaces}
            with (
                sweep_lock(store, sweep_key),
                open_sweep(store, sweep_key, name=name, params=params, tags={TUNING_TAG: "1"}) as group,
            ):
                watch.planned(plan_of(budget, spaces, jobs=request.engine.jobs or 1, experiment=experiment))
                shared = make_shared_inputs(
                    experiment, base, plugins=plugins, seat=seat, feature_cache=request.feature_cache
                )
                place = Place.of(store, group.run_id, plugins=plugins, feature_cache=request.feature_cache)
                work = Work(
                    place=place,
                    inputs=[without_tests(shared), shared],
                    plugins=plugins,
                    store=store,
                    seat=seat,
                    jobs=request.engine.jobs,
                )
                strategies = [space.strategy for space in spaces]
                with (
                    open_studies(
                        study_file(store),
                        key[:16],
                        strategies=strategies,
                        seed=search.seed,
                        higher_is_better=metric.higher_is_better,
                    ) as studies,
                    engine.start(work) as runner,
                ):
                    runs = TuningRuns(
                        experiment=experiment,
                        metric=metric,
                        base_fingerprint=base.base.fingerprint,
                        engine=runner,
                        tell=watch.tell,
                        tried=watch.tried,
                    )
                    perform = functools.partial(runs.trials, seeds=tuning.tuning_seeds)
                    results = search.run(studies, perform=perform, fits=fits, notice=watch.notice)
                    budget = dataclasses.replace(budget, given=len(results[0].trials))
                    tuned = tuple(map(tuned_of, results))
                    watch.tuned(tuned)
                    arms = [
                        (changed(result.space.arm, result.best.values), line_of(budget, strategy))
                        for result, strategy in zip(results, tuned, strict=True)
                    ]
                    records = []
                    for record in runs.finals(arms, checked.settings.seed, store):
                        records.append(record)
                        watch.ended(record)
                trials = tuple(sorted(records, key=lambda record: record.number))
                outcome = TuneOutcome(
                    budget=budget,
                    strategies=tuned,
                    runs=trials,
                    parent_run_id=group.run_id,
                    comparisons=judge_trials(trials, store, plugins, metrics=checked.settings.metric),
                    **store_fields(store),
                )
                _close(outcome, group, request.report)
                return outcome


def _key(tuning: Tuning, experiment: Experiment, spaces: Sequence[Space], base_fingerprint: str) -> str:
    """Return a hash of everything that determines which values are tried and their scores."""
    parts = [tuning.method, str(tuning.trials), ",".join(map(str, tuning.tuning_seeds))]
    if (metric := experiment.request.settings.metric[0]) != ACCURACY:  # the metric of all earlier tunings
        parts.append(f"metric {metric}")
    for space in spaces:
        params = experiment.request.run_params(space.arm, 0) | experiment.backbone_facts
        parts += [
            trial_key(
                "tuning", params, data_fingerprint=experiment.domains.fingerprint, base_fingerprint=base_fingerprint
            ),
            space.text,
        ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _close(outcome: TuneOutcome, group: ParentRun, report: Path | None) -> None:
    """Record the results and the comparison in the parent run, and write the report."""
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
        folder = report or Path(temporary) / "report"
        files = []
        if outcome.comparisons:
            from adaptkit.reports.report import write_report
            from adaptkit.tuning.figure import draw_tuning

            files = write_report(folder, outcome.comparisons, [draw_tuning(outcome.strategies, outcome.budget.metric)])
        path = Path(temporary) / TUNING_FILE
        plain = {key: value for key, value in outcome.to_dict().items() if key != "comparison"}
        path.write_text(json.dumps(plain, indent=2, default=str) + "\n", encoding="utf-8")
        # A failed run leaves the tuning unfinished, so that the same command runs it again.
        group.conclude(outcome.comparisons or None, [path, *files])
        group.end("FAILED" if outcome.failed else "FINISHED")
