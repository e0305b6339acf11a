"""Tune strategies with an equal budget, from Python or from the command line: the same steps for both."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptkit.api.compare import judge_tracked
from adaptkit.api.run import check_folder, layers_and_plugins
from adaptkit.api.sweep import Conditions
from adaptkit.errors import BadInput, suggestion
from adaptkit.experiment.base_cache import build_model
from adaptkit.experiment.prepare import Experiment, can_be_adapted, prepare
from adaptkit.names import TUNING_FILE, TUNING_TAG
from adaptkit.plugins.manager import Plugins
from adaptkit.seeds import derive_seed
from adaptkit.settings.identity import trial_key
from adaptkit.settings.request import Request
from adaptkit.settings.resolve import LR, Layer, resolve
from adaptkit.settings.settings import parse_seeds
from adaptkit.sweeps.engines.engine import connected, store_notices
from adaptkit.sweeps.engines.tasks import EngineSettings, Tell, ignore
from adaptkit.sweeps.engines.worker import Place, Work
from adaptkit.sweeps.outcome import SweepTrial
from adaptkit.sweeps.shared import alone, key_of, make_shared_inputs, obtain_bases, without_tests
from adaptkit.system.core_sharing import Seat
from adaptkit.system.hardware import shared_threads
from adaptkit.tracking.parent import ParentRun
from adaptkit.tracking.store import Store, open_store
from adaptkit.tracking.sweeps import open_sweep
from adaptkit.tuning.outcome import Budget, TunedStrategy, TuneOutcome, TunePlan, budget_of, line_of, plan_of, tuned_of
from adaptkit.tuning.runs import TuningRuns
from adaptkit.tuning.search import Search, TrialRequest
from adaptkit.tuning.spaces import Space, changed, make_spaces
from adaptkit.tuning.study import StudyTrial, open_studies, require_optuna, study_file

METHODS = ("tpe", "grid")
#: seeds of the runs with what was chosen: none that tuning has seen
FRESH = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Tuning:
    """A checked tuning: what is asked for, the keys of each strategy that are given and not searched, and how."""

    request: Request
    given: Mapping[str, set[str]]
    spaces: tuple[str, ...] = ()
    trials: int = 12
    tuning_seeds: tuple[int, ...] = (0,)
    method: str = "tpe"


@dataclass(frozen=True)
class TuneWatch:
    """Who hears of a tuning: its plan, lines to tell the user, runs under way, trials and runs that have ended."""

    planned: Callable[[TunePlan], None] = lambda plan: None
    notice: Callable[[str], None] = lambda line: None
    tell: Tell = ignore
    tried: Callable[[TrialRequest, StudyTrial], None] = lambda asked, trial: None
    tuned: Callable[[Sequence[TunedStrategy]], None] = lambda found: None
    ended: Callable[[SweepTrial], None] = lambda record: None


def tune(
    strategy: str | Sequence[str] | None = None,
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
    plugins: Iterable[str | Path | object] = (),
    tracking_uri: str | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
    report: str | Path | None = None,
    **keys: Any,
) -> TuneOutcome:
    """Search each strategy's learning rate and tunable options, then compare what was chosen, as `adaptkit tune` does.

    `space` maps `lr`, `lora.lr` or `lora.rank` to a range (`"1e-4..1e-1/log"`) or a list (`"2,4,8"`); the seeds of the
    compared runs (`seed="1-5"`) must not be tuning seeds; the other arguments are those of `adaptkit.run`. With `jobs`
    above 1, processes are spawned: guard the script by `if __name__ == "__main__"`. Raises BadInput before anything is
    trained or tracked.
    """
    layers, loaded = layers_and_plugins(strategy, options, preset, config, settings, plugins, keys)
    texts = [f"{key}={text}" for key, text in (space or {}).items()]
    asked = check_tuning(layers, loaded, texts, trials, tuning_seeds, search)
    conditions = Conditions(
        engine=EngineSettings(engine, jobs, engine_options or {}),
        tracking_uri=tracking_uri,
        refresh_base=refresh_base,
        feature_cache=feature_cache,
        report=None if report is None else Path(report),
    )
    return run_tuning(asked, loaded, conditions)


def check_tuning(
    layers: Sequence[Layer],
    plugins: Plugins,
    spaces: Sequence[str],
    trials: int,
    tuning_seeds: int | str | Sequence[int],
    method: str,
    found_before: Sequence[str] = (),
) -> Tuning:
    """Return a tuning over layers of settings; raise BadInput with all that is wrong with them."""
    problems = list(found_before)
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
    request = resolve([*layers, Layer({"seed": list(FRESH)})], plugins, problems)
    if used := sorted({*request.settings.seed} & {*searched}):
        raise BadInput(
            f"seed {used[0]} is a tuning seed: what was chosen on its images must be compared on others; "
            "give other --seeds or --tuning-seeds"
        )
    given = {name: _given(layers, name) for name in request.settings.strategy}
    return Tuning(request, given, tuple(spaces), trials, searched, method)


def _given(layers: Sequence[Layer], strategy: str) -> set[str]:
    """Return the keys of a strategy that the user has given a value, which is then not searched."""
    keys = {key for layer in layers for key in layer.values}
    own = {key.partition(".")[2] for key in keys if key.startswith((f"{strategy}.", "strategy."))}
    return own | ({LR} if LR in keys else set())


def run_tuning(asked: Tuning, plugins: Plugins, conditions: Conditions, watch: TuneWatch = TuneWatch()) -> TuneOutcome:
    """Search, choose, run what was chosen with fresh seeds, and judge; go on where an earlier start has stopped."""
    engine = conditions.engine.make(plugins, asked.request.settings.device)
    if conditions.report is not None:
        check_folder(conditions.report)
    with Seat() as seat, connected(engine) as machines:
        experiment = prepare(asked.request, refresh_base=conditions.refresh_base)
        request = experiment.request
        fits = functools.partial(can_be_adapted, build_model(request, experiment.domains))
        spaces = make_spaces(request.arms, texts=asked.spaces, given=asked.given, fits=fits)
        search = Search(
            spaces, trials=asked.trials, method=asked.method, seed=derive_seed(asked.tuning_seeds[0], "tuning")
        )
        budget = budget_of(experiment, trials=asked.trials, method=asked.method, tuning_seeds=asked.tuning_seeds)
        store = open_store(conditions.tracking_uri, request.settings.experiment)
        for line in (*store.notices, *store_notices(store, machines)):
            watch.notice(line)
        with shared_threads(seat.company().others, watch.notice):
            (base,) = obtain_bases(
                [experiment], plugins=plugins, store=store, refresh_base=conditions.refresh_base, notice=watch.notice
            )
            key = _key(asked, experiment, spaces, base.base.fingerprint)
            sweep_key = key_of([key, *map(str, request.settings.seed)])
            name = f"tune {', '.join(request.settings.strategy)}: {budget.trials} trials each"
            params = request.shared_params() | {f"space.{space.strategy}": space.text for space in spaces}
            with alone(store, sweep_key), open_sweep(store, sweep_key, name, params, {TUNING_TAG: "1"}) as group:
                watch.planned(plan_of(budget, spaces, jobs=conditions.engine.jobs or 1, experiment=experiment))
                shared = make_shared_inputs(
                    experiment, base, plugins=plugins, seat=seat, feature_cache=conditions.feature_cache
                )
                place = Place.of(store, group.run_id, plugins=plugins, feature_cache=conditions.feature_cache)
                work = Work(
                    place=place,
                    inputs=[without_tests(shared), shared],
                    plugins=plugins,
                    store=store,
                    seat=seat,
                    jobs=conditions.engine.jobs,
                )
                strategies = [space.strategy for space in spaces]
                with (
                    open_studies(study_file(store), key[:16], strategies, search.seed) as studies,
                    engine.start(work) as runner,
                ):
                    runs = TuningRuns(
                        experiment=experiment,
                        base_fingerprint=base.base.fingerprint,
                        engine=runner,
                        tell=watch.tell,
                        tried=watch.tried,
                    )
                    perform = functools.partial(runs.trials, seeds=asked.tuning_seeds)
                    found = search.run(studies, perform=perform, fits=fits, notice=watch.notice)
                    budget = dataclasses.replace(budget, given=len(found[0].trials))
                    tuned = tuple(tuned_of(one) for one in found)
                    watch.tuned(tuned)
                    arms = [
                        (changed(one.space.arm, one.best.values), line_of(budget, told))
                        for one, told in zip(found, tuned, strict=True)
                    ]
                    records = []
                    for record in runs.finals(arms, request.settings.seed, store):
                        records.append(record)
                        watch.ended(record)
                ordered = tuple(sorted(records, key=lambda record: record.number))
                return _finish(budget, tuned, ordered, group, store, conditions.report)


def _key(asked: Tuning, experiment: Experiment, spaces: Sequence[Space], base_fingerprint: str) -> str:
    """Return what the search is known by: all that decides which values are tried and what comes of them."""
    parts = [asked.method, str(asked.trials), ",".join(map(str, asked.tuning_seeds))]
    for space in spaces:
        params = experiment.request.run_params(space.arm, 0) | experiment.backbone_facts
        parts += [trial_key("tuning", params, experiment.domains.fingerprint, base_fingerprint), space.text]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _finish(
    budget: Budget,
    tuned: tuple[TunedStrategy, ...],
    runs: tuple[SweepTrial, ...],
    group: ParentRun,
    store: Store,
    report: Path | None,
) -> TuneOutcome:
    """Judge the runs with what was chosen, and put all there is into the store."""
    done = [run.run_id for run in runs if run.status in ("finished", "found") and run.run_id]
    outcome = TuneOutcome(
        budget=budget,
        strategies=tuned,
        runs=runs,
        parent_run_id=group.run_id,
        experiment=store.experiment_name,
        tracking_uri=store.without_secrets(store.uri),
        ui_command=store.ui_command,
        ui_url=store.runs_url(),
        notices=store.notices,
        comparison=judge_tracked(done, tracking_uri=store.uri, alone=True) if done else None,
    )
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
        folder = report or Path(temporary) / "report"
        files = []
        if outcome.comparison is not None:
            from adaptkit.reports.report import write_report
            from adaptkit.tuning.figure import draw_tuning

            files = write_report(folder, outcome.comparison, [draw_tuning(tuned)])
        path = Path(temporary) / TUNING_FILE
        plain = {key: value for key, value in outcome.to_dict().items() if key != "comparison"}
        path.write_text(json.dumps(plain, indent=2, default=str) + "\n", encoding="utf-8")
        # Runs that failed leave a tuning that is not finished: the same command runs them again.
        group.conclude(outcome.comparison, [path, *files])
        group.end("FAILED" if outcome.failed else "FINISHED")
    return outcome
