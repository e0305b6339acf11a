"""Run a sweep: each strategy with every combination of a grid's values."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.api.compare import judge_tracked
from adaptkit.api.request import TrainingRequest, conditions, read_arguments, require_report_folder, warn_of
from adaptkit.comparison.findings import Comparisons
from adaptkit.experiment.base_cache import usable_base
from adaptkit.experiment.outcome import RunSummary
from adaptkit.names import FINAL_SHIFTED_ACCURACY, SWEEP_FILE
from adaptkit.plugins.manager import Plugins
from adaptkit.sweeps.engines.engine import connected, store_notices
from adaptkit.sweeps.engines.tasks import EngineSettings, Task, Tell, ignore
from adaptkit.sweeps.engines.worker import Place, Work
from adaptkit.sweeps.grid import GridCell, collect_grid, expand, shown
from adaptkit.sweeps.outcome import SweepOutcome, SweepPlan, SweepTrial
from adaptkit.sweeps.planning import PlannedTrial, Prepared, prepare_sweep
from adaptkit.sweeps.shared import key_of, make_shared_inputs, obtain_bases, sweep_lock
from adaptkit.system.core_sharing import Seat
from adaptkit.system.hardware import shared_threads
from adaptkit.tracking.store import Store, existing_store, open_store
from adaptkit.tracking.sweeps import StoredTrial, fail_dead, find_trials, open_sweep

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Limits:
    """Limits of one start: the number of trials, and the seconds after which no trial begins.

    Trials that failed earlier run again only with `retry_failed`.
    """

    max_trials: int | None = None
    seconds: float | None = None
    retry_failed: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepRequest(TrainingRequest):
    """The checked cells of a grid, with the engine, the limits and the conditions of their trials."""

    cells: Sequence[GridCell]
    grid: Mapping[str, tuple[Any, ...]]
    engine: EngineSettings = field(default_factory=EngineSettings)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Watch:
    """Callbacks of a sweep.

    `planned(plan)` is called once before training, `notice(message)` for each message, `tell(event)` for events of
    running trials, `ended(trial)` after each trial.
    """

    planned: Callable[[SweepPlan], None] = lambda plan: None
    notice: Callable[[str], None] = lambda message: None
    tell: Tell = ignore
    ended: Callable[[SweepTrial], None] = lambda record: None


def sweep(
    strategies: str | Sequence[str] | None = None,
    *,
    grid: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
    max_trials: int | None = None,
    time_budget: float | None = None,
    retry_failed: bool = False,
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
) -> SweepOutcome:
    """Run each strategy with every combination of a grid's values, and compare them.

    This is the Python form of `adaptkit sweep`. Trials that the MLflow experiment already holds do not run again.

    Parameters
    ----------
    strategies : str or sequence of str
        Strategies to run.
    grid : mapping
        Values of each setting or option to vary, such as {"lora.rank": [2, 4], "lr": "1e-4..1e-2/5log"}.
    jobs : int, optional
        Number of trials at a time. The local engine then starts processes: with more than one, call this function
        below `if __name__ == "__main__"`.
    engine : str, optional
        Engine that runs the trials. `adaptkit plugins` lists the engines of plugins. Default: "local".
    engine_options : mapping, optional
        Options of the engine.
    max_trials : int, optional
        Largest number of trials to run now.
    time_budget : float, optional
        Seconds after which no trial begins.
    retry_failed : bool, optional
        Run trials again that failed earlier.
    report : path, optional
        Folder for a report of the comparison.
    options, preset, config, settings, dataset, target, classes, shift, severity, metric, backbone, weights, \
    image_size, skip_bad_images, augment, bn, seeds, protocol, folds, keep_folds, shots, \
    epochs, lr, batch_size, optimizer, weight_decay, schedule, clip, min_steps, class_weights, \
    evaluate_shifted, \
    device, precision, checkpointing, data_dir, experiment, plugins, tracking_uri, refresh_base, feature_cache
        As in `adaptkit.run`.

    Returns
    -------
    SweepOutcome
        `trials` holds one record for each trial, `comparisons` compares them.

    Raises
    ------
    BadInput
        If a setting or the grid is wrong; nothing has been trained or tracked.

    Examples
    --------
    >>> outcome = adaptkit.sweep("lora", grid={"lora.rank": [1, 2]}, preset="quick")
    >>> [trial.label for trial in outcome.trials]
    ['lora rank=1', 'lora rank=2']
    """
    arguments = locals()
    layers, loaded = read_arguments(arguments)
    problems: list[str] = []
    varied, layers = collect_grid(grid or {}, layers, problems)
    request = SweepRequest(
        cells=expand(layers, varied, plugins=loaded, found_before=problems),
        grid=varied,
        engine=EngineSettings(engine, jobs, engine_options or {}),
        limits=Limits(max_trials, time_budget, retry_failed),
        plugins=loaded,
        **conditions(arguments),
    )
    return run_sweep(request, Watch(planned=lambda plan: warn_of(plan.notices)))


def plan_sweep(request: SweepRequest) -> SweepPlan:
    """Return the trials of a sweep and an estimate of their time; train only a few batches."""
    refresh_base = request.refresh_base
    prepared = prepare_sweep(request.cells, request.grid, refresh_base=refresh_base)
    bases = [
        None if refresh_base else usable_base(experiment.base_key, experiment.request, experiment.domains)
        for experiment in prepared.experiments
    ]
    keys = {
        trial.number: prepared.key(trial, base.fingerprint)
        for trial in prepared.trials
        if (base := bases[trial.stage]) is not None
    }
    experiment_name = request.cells[0].request.settings.experiment
    store = existing_store(request.tracking_uri, experiment_name) if keys else None
    stored = {} if store is None else find_trials(store, keys.values())
    statuses = {number: _status(stored[key]) for number, key in keys.items() if key in stored}
    return prepared.plan(request.engine.jobs or 1, statuses, prepared.seconds(statuses))


def run_sweep(request: SweepRequest, watch: Watch = Watch()) -> SweepOutcome:
    """Run the trials that the store does not hold, and compare all trials."""
    plugins, limits, settings = request.plugins, request.limits, request.cells[0].request.settings
    engine = request.engine.make(plugins, settings.device)
    require_report_folder(request.report)
    with Seat() as seat, connected(engine) as machines:
        prepared = prepare_sweep(request.cells, request.grid, refresh_base=request.refresh_base)
        store = open_store(request.tracking_uri, settings.experiment)
        for message in (*store.notices, *store_notices(store, machines)):
            watch.notice(message)
        with shared_threads(seat.occupancy().others, watch.notice):
            bases = obtain_bases(
                prepared.experiments,
                plugins=plugins,
                store=store,
                refresh_base=request.refresh_base,
                notice=watch.notice,
            )
            keys = [prepared.key(trial, bases[trial.stage].base.fingerprint) for trial in prepared.trials]
            key = key_of(keys)
            with (
                sweep_lock(store, key),
                open_sweep(store, key, name=_name(prepared), params=_params(prepared)) as group,
            ):
                stored = find_trials(store, keys)
                records = {
                    trial.number: _stored_record(trial, stored[key])
                    for trial, key in zip(prepared.trials, keys, strict=True)
                    if key in stored
                }
                remaining = [trial for trial in prepared.trials if _is_left(records.get(trial.number), limits)]
                for trial in remaining:
                    records[trial.number] = _record(trial, "left")
                statuses = {number: record.status for number, record in records.items()}
                watch.planned(prepared.plan(request.engine.jobs or 1, statuses))
                if remaining:
                    inputs = [
                        make_shared_inputs(
                            experiment, base, plugins=plugins, seat=seat, feature_cache=request.feature_cache
                        )
                        for experiment, base in zip(prepared.experiments, bases, strict=True)
                    ]
                    place = Place.of(store, group.run_id, plugins=plugins, feature_cache=request.feature_cache)
                    work = Work(
                        place=place,
                        inputs=inputs,
                        plugins=plugins,
                        store=store,
                        seat=seat,
                        jobs=request.engine.jobs,
                    )
                    with engine.start(work) as runner:
                        for ended in runner.run(_tasks(prepared, remaining, limits), watch.tell):
                            trial = prepared.trials[ended.task.number - 1]
                            if ended.record.error and ended.record.run_id is None:
                                fail_dead(store, group.run_id, key=keys[trial.number - 1], reason=ended.record.error)
                            records[trial.number] = _new_record(trial, ended.record)
                            watch.ended(records[trial.number])
                trials = tuple(records[trial.number] for trial in prepared.trials)
                outcome = SweepOutcome(
                    trials=trials,
                    parent_run_id=group.run_id,
                    comparisons=judge_trials(trials, store, plugins, metrics=_common_metrics(prepared)),
                    **store_fields(store),
                )
                with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
                    files = _files(outcome, request.report, Path(temporary))
                    group.conclude(outcome.comparisons or None, files)
    return outcome


def _is_left(record: SweepTrial | None, limits: Limits) -> bool:
    return record is None or (record.status == "failed" and limits.retry_failed)


def _tasks(prepared: Prepared, remaining: Sequence[PlannedTrial], limits: Limits) -> Iterator[Task]:
    """Yield the tasks of the trials that are left, until a limit is reached."""
    start = time.monotonic()
    for trial in remaining[: limits.max_trials]:
        if limits.seconds is not None and time.monotonic() - start >= limits.seconds:
            return
        yield prepared.task(trial)


def _record(trial: PlannedTrial, status: str, **result: Any) -> SweepTrial:
    cell = trial.cell
    return SweepTrial(
        number=trial.number,
        label=cell.label,
        strategy=cell.arm.strategy,
        values=cell.values,
        seed=trial.seed,
        status=status,
        **result,
    )


def _status(stored: StoredTrial) -> str:
    return "found" if stored.status == "finished" else "failed"


def _stored_record(trial: PlannedTrial, stored: StoredTrial) -> SweepTrial:
    return _record(
        trial,
        _status(stored),
        run_id=stored.run_id,
        accuracy=stored.accuracy,
        error=stored.error,
        warnings=stored.warnings,
    )


def _new_record(trial: PlannedTrial, run: RunSummary) -> SweepTrial:
    accuracy = run.metrics.get(FINAL_SHIFTED_ACCURACY)
    return _record(trial, run.status, run_id=run.run_id, accuracy=accuracy, error=run.error, warnings=run.warnings)


def _common_metrics(prepared: Prepared) -> tuple[str, ...]:
    """Return the metrics of a sweep, or none if those of its data sets differ, so that each is judged by its own."""
    metrics = {experiment.request.settings.metric for experiment in prepared.experiments}
    return metrics.pop() if len(metrics) == 1 else ()


def judge_trials(
    records: Sequence[SweepTrial], store: Store, plugins: Plugins, *, metrics: Sequence[str]
) -> Comparisons:
    """Compare the finished trials in the store by these metrics; the result is empty if there are no such trials."""
    done = [record.run_id for record in records if record.status in ("finished", "found") and record.run_id]
    if not done:
        return Comparisons()
    return judge_tracked(done, metrics=metrics, tracking_uri=store.uri, plugins=plugins, alone=True)


def store_fields(store: Store) -> dict[str, Any]:
    """Return the fields of an outcome that describe its store."""
    return {
        "experiment": store.experiment_name,
        "tracking_uri": store.without_secrets(store.uri),
        "ui_command": store.ui_command,
        "ui_url": store.runs_url(),
        "notices": store.notices,
    }


def _files(outcome: SweepOutcome, report: Path | None, temporary: Path) -> list[Path]:
    """Write the files of the parent run and return them: the trials, and the report of the comparison."""
    trials = temporary / SWEEP_FILE
    plain = dataclasses.replace(outcome, comparisons=Comparisons()).to_dict()
    del plain["comparison"]
    trials.write_text(json.dumps(plain, indent=2, default=str) + "\n", encoding="utf-8")
    if not outcome.comparisons:
        return [trials]
    from adaptkit.reports.report import write_report

    return [trials, *write_report(report or temporary / "report", outcome.comparisons)]


def _name(prepared: Prepared) -> str:
    """Return the name of the parent run."""
    plan = prepared.plan(1)
    axes = [f"{key} ({len(values)})" for key, values in plan.grid.items()]
    seeds = f"seed {plan.seeds[0]}" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"
    return f"sweep {', '.join(plan.strategies)}: {', '.join([*axes, seeds])}"


def _params(prepared: Prepared) -> dict[str, Any]:
    """Return the params of the parent run: those that all trials share, and the grid."""
    every = [prepared.params(trial) for trial in prepared.trials]
    shared = {key: value for key, value in every[0].items() if all(params.get(key) == value for params in every)}
    return shared | {f"grid.{key}": ",".join(map(shown, values)) for key, values in prepared.grid.items()}
