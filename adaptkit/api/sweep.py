"""Run a sweep from Python, or from the command line: the same steps for both."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptkit.api.compare import judge_tracked
from adaptkit.api.run import check_folder, layers_and_plugins
from adaptkit.comparison.records import Comparisons
from adaptkit.experiment.base_cache import stored_base
from adaptkit.experiment.outcome import RunSummary
from adaptkit.names import FINAL_SHIFTED_ACCURACY, SWEEP_FILE
from adaptkit.plugins.manager import Plugins
from adaptkit.sweeps.engines.engine import connected, store_notices
from adaptkit.sweeps.engines.tasks import EngineSettings, Task, Tell, ignore
from adaptkit.sweeps.engines.worker import Place, Work
from adaptkit.sweeps.grid import GridCell, collect_grid, expand, shown
from adaptkit.sweeps.outcome import SweepOutcome, SweepPlan, SweepTrial
from adaptkit.sweeps.planning import PlannedTrial, Prepared, prepare_sweep
from adaptkit.sweeps.shared import alone, key_of, make_shared_inputs, obtain_bases
from adaptkit.system.core_sharing import Seat
from adaptkit.system.hardware import shared_threads
from adaptkit.tracking.store import Store, existing_store, open_store
from adaptkit.tracking.sweeps import StoredTrial, fail_dead, find_trials, open_sweep


@dataclass(frozen=True)
class Limits:
    """How far one start of a sweep goes: so many trials, so many seconds after which none begins, failed ones again."""

    max_trials: int | None = None
    seconds: float | None = None
    retry_failed: bool = False


@dataclass(frozen=True)
class Watch:
    """Who hears of a sweep: its plan, lines to tell the user, trials under way, and each that has ended."""

    planned: Callable[[SweepPlan], None] = lambda plan: None
    notice: Callable[[str], None] = lambda line: None
    tell: Tell = ignore
    ended: Callable[[SweepTrial], None] = lambda record: None


@dataclass(frozen=True)
class Conditions:
    """Where and how a sweep is run, whatever its trials are."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    limits: Limits = field(default_factory=Limits)
    tracking_uri: str | None = None
    refresh_base: bool = False
    feature_cache: bool = True
    report: Path | None = None


def sweep(
    strategy: str | Sequence[str] | None = None,
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
    plugins: Iterable[str | Path | object] = (),
    tracking_uri: str | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
    report: str | Path | None = None,
    **keys: Any,
) -> SweepOutcome:
    """Run each strategy with each combination of a grid's values, and compare them, as `adaptkit sweep` does.

    `grid` maps settings and options (`lr`, `lora.rank`) to values: a list, or a text such as `"1e-4..1e-2/5log"`; the
    other arguments are those of `adaptkit.run`. Trials that the experiment holds already are not run again; failed
    ones are with `retry_failed`. `time_budget` is in seconds. With `jobs` above 1, processes are spawned: guard the
    script by `if __name__ == "__main__"`. `engine` names another engine, from a plugin, and
    `engine_options` its options. Raises BadInput before anything is trained or tracked.
    """
    layers, loaded = layers_and_plugins(strategy, options, preset, config, settings, plugins, keys)
    problems: list[str] = []
    varied, layers = collect_grid(grid or {}, layers, problems)
    conditions = Conditions(
        engine=EngineSettings(engine, jobs, engine_options or {}),
        limits=Limits(max_trials, time_budget, retry_failed),
        tracking_uri=tracking_uri,
        refresh_base=refresh_base,
        feature_cache=feature_cache,
        report=None if report is None else Path(report),
    )
    return run_sweep(expand(layers, varied, loaded, problems), varied, loaded, conditions)


def plan_sweep(
    cells: Sequence[GridCell],
    grid: Mapping[str, tuple[Any, ...]],
    jobs: int = 1,
    tracking_uri: str | None = None,
    refresh_base: bool = False,
) -> SweepPlan:
    """Return what a sweep would do and how long it would take; nothing is trained but a few batches, or tracked."""
    prepared = prepare_sweep(cells, grid, refresh_base=refresh_base)
    bases = [None if refresh_base else stored_base(experiment.base_key) for experiment in prepared.experiments]
    keys = {
        trial.number: prepared.key(trial, base.fingerprint)
        for trial in prepared.trials
        if (base := bases[trial.stage]) is not None
    }
    store = existing_store(tracking_uri, cells[0].request.settings.experiment) if keys else None
    found = {} if store is None else find_trials(store, keys.values())
    known = {number: _status(found[key]) for number, key in keys.items() if key in found}
    return prepared.plan(jobs, known, prepared.seconds(known))


def run_sweep(
    cells: Sequence[GridCell],
    grid: Mapping[str, tuple[Any, ...]],
    plugins: Plugins,
    conditions: Conditions,
    watch: Watch = Watch(),
) -> SweepOutcome:
    """Run the trials of checked cells that the store does not hold, and judge all of them."""
    engine = conditions.engine.make(plugins, cells[0].request.settings.device)
    if conditions.report is not None:
        check_folder(conditions.report)
    with Seat() as seat, connected(engine) as machines:
        prepared = prepare_sweep(cells, grid, refresh_base=conditions.refresh_base)
        store = open_store(conditions.tracking_uri, cells[0].request.settings.experiment)
        for line in (*store.notices, *store_notices(store, machines)):
            watch.notice(line)
        with shared_threads(seat.company().others, watch.notice):
            bases = obtain_bases(
                prepared.experiments,
                plugins=plugins,
                store=store,
                refresh_base=conditions.refresh_base,
                notice=watch.notice,
            )
            keys = [prepared.key(trial, bases[trial.stage].base.fingerprint) for trial in prepared.trials]
            key = key_of(keys)
            with alone(store, key), open_sweep(store, key, _name(prepared), _params(prepared)) as group:
                found = find_trials(store, keys)
                records = {
                    trial.number: _known(trial, found[key])
                    for trial, key in zip(prepared.trials, keys, strict=True)
                    if key in found
                }
                left = [trial for trial in prepared.trials if _is_left(records.get(trial.number), conditions.limits)]
                for trial in left:
                    records[trial.number] = _record(trial, "left")
                statuses = {number: record.status for number, record in records.items()}
                watch.planned(prepared.plan(conditions.engine.jobs or 1, statuses))
                if left:
                    inputs = [
                        make_shared_inputs(
                            experiment, base, plugins=plugins, seat=seat, feature_cache=conditions.feature_cache
                        )
                        for experiment, base in zip(prepared.experiments, bases, strict=True)
                    ]
                    place = Place.of(store, group.run_id, plugins=plugins, feature_cache=conditions.feature_cache)
                    work = Work(
                        place=place,
                        inputs=inputs,
                        plugins=plugins,
                        store=store,
                        seat=seat,
                        jobs=conditions.engine.jobs,
                    )
                    with engine.start(work) as runner:
                        for ended in runner.run(_tasks(prepared, left, conditions.limits), watch.tell):
                            trial = prepared.trials[ended.task.number - 1]
                            if ended.record.error and ended.record.run_id is None:
                                fail_dead(store, group.run_id, keys[trial.number - 1], ended.record.error)
                            records[trial.number] = _made(trial, ended.record)
                            watch.ended(records[trial.number])
                ordered = tuple(records[trial.number] for trial in prepared.trials)
                findings = _judge(ordered, store)
                with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
                    outcome = _outcome(ordered, group.run_id, store, findings)
                    group.conclude(findings, _files(outcome, conditions.report, Path(temporary)))
    return outcome


def _is_left(record: SweepTrial | None, limits: Limits) -> bool:
    return record is None or (record.status == "failed" and limits.retry_failed)


def _tasks(prepared: Prepared, left: Sequence[PlannedTrial], limits: Limits) -> Iterator[Task]:
    """Yield the tasks of trials that are left, as far as the limits allow when each is asked for."""
    start = time.monotonic()
    for trial in left[: limits.max_trials]:
        if limits.seconds is not None and time.monotonic() - start >= limits.seconds:
            return
        yield prepared.task(trial)


def _record(trial: PlannedTrial, status: str, **found: Any) -> SweepTrial:
    cell = trial.cell
    return SweepTrial(trial.number, cell.label, cell.arm.strategy, cell.values, trial.seed, status, **found)


def _status(found: StoredTrial) -> str:
    return "found" if found.status == "finished" else "failed"


def _known(trial: PlannedTrial, found: StoredTrial) -> SweepTrial:
    return _record(trial, _status(found), run_id=found.run_id, accuracy=found.accuracy, error=found.error)


def _made(trial: PlannedTrial, made: RunSummary) -> SweepTrial:
    accuracy = made.metrics.get(FINAL_SHIFTED_ACCURACY)
    return _record(trial, made.status, run_id=made.run_id, accuracy=accuracy, error=made.error)


def _judge(records: Sequence[SweepTrial], store: Store) -> Comparisons | None:
    """Return what `adaptkit compare` says of the trials that are done."""
    done = [record.run_id for record in records if record.status in ("finished", "found") and record.run_id]
    return judge_tracked(done, tracking_uri=store.uri, alone=True) if done else None


def _outcome(records: tuple[SweepTrial, ...], parent: str, store: Store, findings: Comparisons | None) -> SweepOutcome:
    return SweepOutcome(
        trials=records,
        parent_run_id=parent,
        experiment=store.experiment_name,
        tracking_uri=store.without_secrets(store.uri),
        ui_command=store.ui_command,
        ui_url=store.runs_url(),
        notices=store.notices,
        comparison=findings,
    )


def _files(outcome: SweepOutcome, report: Path | None, temporary: Path) -> list[Path]:
    """Return the files of the sweep: its trials, and the report of the comparison."""
    trials = temporary / SWEEP_FILE
    plain = dataclasses.replace(outcome, comparison=None).to_dict()
    del plain["comparison"]
    trials.write_text(json.dumps(plain, indent=2, default=str) + "\n", encoding="utf-8")
    if outcome.comparison is None:
        return [trials]
    from adaptkit.reports.report import write_report

    return [trials, *write_report(report or temporary / "report", outcome.comparison)]


def _name(prepared: Prepared) -> str:
    """Return the name of the run that groups a sweep's trials."""
    plan = prepared.plan(1)
    axes = [f"{key} ({len(values)})" for key, values in plan.grid.items()]
    seeds = f"seed {plan.seeds[0]}" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"
    return f"sweep {', '.join(plan.strategies)}: {', '.join([*axes, seeds])}"


def _params(prepared: Prepared) -> dict[str, Any]:
    """Return what all trials share, and the grid."""
    every = [prepared.params(trial) for trial in prepared.trials]
    shared = {key: value for key, value in every[0].items() if all(params.get(key) == value for params in every)}
    return shared | {f"grid.{key}": ",".join(map(shown, values)) for key, values in prepared.grid.items()}
