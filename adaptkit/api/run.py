"""Run an experiment from Python, or from the command line: the same steps for both."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.comparison.collector import Collector
from adaptkit.comparison.records import Comparisons
from adaptkit.errors import BadInput, suggestion
from adaptkit.experiment.adaptation import execute
from adaptkit.experiment.outcome import Outcome, Plan
from adaptkit.experiment.prepare import prepare
from adaptkit.experiment.recovery import Recovery
from adaptkit.names import COMPARISON_FILE, TUNING_FILE, TUNING_TAG
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.files import read_config
from adaptkit.settings.request import Request
from adaptkit.settings.resolve import LR, Layer, option_keys, resolve
from adaptkit.settings.settings import flat_settings
from adaptkit.system.core_sharing import Seat
from adaptkit.system.folders import features_allowed
from adaptkit.system.hardware import shared_threads
from adaptkit.tracking.runs import StoredRun, open_runs

if TYPE_CHECKING:
    from adaptkit.tracking.store import Store
    from adaptkit.tracking.tracker import Tracker


def with_ids(outcome: Outcome, tracker: Tracker) -> Outcome:
    """Return the outcome with the ids of runs that a slow store has taken only meanwhile."""
    tracker.flush()
    runs = [
        dataclasses.replace(run, run_id=run.run_id or tracker.run_id(f"{run.label} seed={run.seed}"))
        for run in outcome.runs
    ]
    return dataclasses.replace(outcome, runs=tuple(runs))


def judge_outcome(outcome: Outcome, collector: Collector) -> Comparisons | None:
    """Return what the runs of an experiment say of its strategies; None when none has finished."""
    from adaptkit.comparison.judge import judge_runs

    runs = collector.runs({f"{run.label} seed={run.seed}": run.run_id for run in outcome.runs})
    return judge_runs(runs) if any(run.status == "finished" for run in runs) else None


def close_group(outcome: Outcome, findings: Comparisons | None, tracker: Tracker, report: Path | None) -> Outcome:
    """End the run that groups a tracked experiment's runs, if there is one, with what they say; return all of it.

    The tracker is closed: only then it is known what the store has.
    """
    store = tracker.store
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
        tracker.end_group(findings, files_of(findings, report, Path(temporary)))
    tracker.close()
    return dataclasses.replace(
        outcome,
        experiment=store.experiment_name,
        tracking_uri=store.without_secrets(store.uri),
        ui_command=store.ui_command,
        ui_url=store.runs_url(),
        notices=store.notices,
        tracking_error=tracker.fault,
        parent_run_id=tracker.parent_id,
        comparison=findings,
    )


def files_of(findings: Comparisons | None, report: Path | None, temporary: Path) -> list[Path]:
    """Return the files that belong to the run that groups the others: the report if one is wanted, else its JSON."""
    if findings is None:
        return []
    if report is not None:
        from adaptkit.reports.report import write_report

        return write_report(report, findings)
    path = temporary / COMPARISON_FILE
    path.write_text(f"{findings.to_json()}\n", encoding="utf-8")
    return [path]


def run(
    strategy: str | Sequence[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    plugins: Iterable[str | Path | object] = (),
    tracking_uri: str | None = None,
    track: bool = True,
    refresh_base: bool = False,
    feature_cache: bool = True,
    report: str | Path | None = None,
    from_tune: str | None = None,
    **keys: Any,
) -> Outcome:
    """Run an experiment and return its results, as `adaptkit run` does.

    `options` are strategy options (`{"rank": 4}` or `{"lora.rank": 4}`), `settings` any keys (`{"base.epochs": 2}`),
    `keys` those without a dot (`seed="0-4"`, `shift="rotate=30"`). `plugins` are files or objects with hooks;
    `backbone` may be a torch.nn.Module, of which a copy is trained.
    Without `feature_cache` nothing that frozen layers computed is used again, from this experiment or an earlier one.
    `from_tune` is the run id of a tuning, whose values are used where nothing else is said.
    The outcome's `comparison` judges the strategies; with `report`, its figures go to that folder too.
    Raises BadInput before anything is trained or tracked; a run that fails later is a record with its error.
    """
    layers, loaded = layers_and_plugins(strategy, options, preset, config, settings, plugins, keys)
    if from_tune is not None:
        layers.append(tuned_layer(from_tune, layers, tracking_uri))
    request = resolve(layers, loaded)
    return run_request(
        request,
        loaded,
        tracking_uri=tracking_uri,
        track=track,
        refresh_base=refresh_base,
        feature_cache=feature_cache,
        report=None if report is None else Path(report),
    )


def layers_and_plugins(
    strategy: str | Sequence[str] | None,
    options: Mapping[str, Any] | None,
    preset: str | None,
    config: str | Path | None,
    settings: Mapping[str, Any] | None,
    plugins: Iterable[str | Path | object],
    keys: Mapping[str, Any],
) -> tuple[list[Layer], Plugins]:
    """Return the sources of settings that a call from Python gives, the strongest first, and the plugins it names."""
    things, given = list(plugins), dict(keys)
    if "backbone" in given and not isinstance(given["backbone"], str):
        from adaptkit.backbones.python_model import python_backbone

        things.append(python_backbone(given["backbone"]))
        given["backbone"] = f"python:{type(given['backbone']).__name__}"
    given |= ({"strategy": strategy} if strategy is not None else {}) | option_keys(options or {})
    if preset is not None:
        given["preset"] = preset
    layers = [Layer(flat_settings(given)), Layer(flat_settings(settings or {}))]
    if config is not None:
        layers.append(Layer(read_config(Path(config)), str(config)))
    loaded = load_plugins(
        [thing for thing in things if isinstance(thing, str | Path)],
        [thing for thing in things if not isinstance(thing, str | Path)],
    )
    return layers, loaded


def run_request(
    request: Request,
    plugins: Plugins,
    *,
    tracking_uri: str | None = None,
    track: bool = True,
    refresh_base: bool = False,
    feature_cache: bool = True,
    report: Path | None = None,
    planned: Callable[[Plan], None] = lambda plan: None,
    notice: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run a checked request; `planned` hears the plan, `notice` lines to tell the user, before training."""
    with Seat() as seat:
        if report is not None:
            check_folder(report)
        experiment = prepare(request, refresh_base=refresh_base)
        store = _opened(tracking_uri, request) if track else None
        collector = Collector()
        planned(experiment.plan)
        if store is None:
            with plugins.watching(collector, "collector"), shared_threads(seat.company().others, notice):
                outcome = execute(
                    experiment,
                    plugins,
                    seat=seat,
                    refresh_base=refresh_base,
                    feature_cache=feature_cache,
                    notice=notice,
                )
            findings = judge_outcome(outcome, collector)
            if report is not None:
                files_of(findings, report, report)
            return dataclasses.replace(outcome, comparison=findings)

        from adaptkit.tracking.tracker import Tracker

        for line in (*store.notices, *_unsent(store)):
            notice(line)
        request = experiment.request  # with the device and the precision that were found
        several = len(request.arms) * len(request.settings.seed) > 1
        with (
            Tracker(store) as tracker,
            plugins.watching(collector, "collector"),
            plugins.watching(tracker, "tracker"),
            tracker.grouped(request.group_name, request.shared_params()) if several else nullcontext(),
            shared_threads(seat.company().others, notice),
        ):
            reuse = feature_cache and features_allowed()
            recovery = Recovery(experiment=experiment, tracker=tracker, reuse=reuse, notice=notice, report=report)
            with resumable(recovery, tracking_uri):
                outcome = execute(
                    experiment,
                    plugins,
                    seat=seat,
                    tracker=tracker,
                    refresh_base=refresh_base,
                    feature_cache=feature_cache,
                    notice=notice,
                    recovery=recovery,
                )
                outcome = with_ids(outcome, tracker)
                recorded = close_group(outcome, judge_outcome(outcome, collector), tracker, report)
        return recorded


@contextmanager
def resumable(recovery: Recovery, tracking_uri: str | None) -> Iterator[None]:
    """Keep the run that groups this experiment's; tell whoever interrupts it, in the error's notes, how to go on."""
    try:
        with recovery.group():
            yield
    except KeyboardInterrupt as error:
        if (command := recovery.hint(tracking_uri)) is not None:
            error.add_note(f"Go on with:  {command}")
        raise


def _opened(tracking_uri: str | None, request: Request) -> Store:
    from adaptkit.tracking.store import open_store

    return open_store(tracking_uri, request.settings.experiment)


def _unsent(store: Store) -> list[str]:
    from adaptkit.tracking.journal import count_unsent

    count = count_unsent(store.shown)
    return [f"{count} earlier run{'s are' if count > 1 else ' is'} not all in MLflow: `adaptkit sync`"] if count else []


def check_folder(folder: Path) -> None:
    """Refuse, before anything is trained, a folder that the report could not be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"cannot write a report to {folder}: {error.strerror or error}") from None


def tuned_layer(run_id: str, layers: Sequence[Layer], tracking_uri: str | None) -> Layer:
    """Return what the tuning of this run chose, as the weakest of the layers that a user gives.

    Of the strategies that the layers name, or of all that were tuned where they name none. A learning rate that they
    give for all strategies goes before those that were chosen. Raises BadInput for a run that is no finished tuning,
    and for strategies that it has not tuned.
    """
    runs = open_runs(tracking_uri)
    record = runs.get(run_id)
    if record is None:
        raise BadInput(f"--from-tune: no run {run_id!r} in {runs.reader.address.shown}")
    found = StoredRun(runs, record)
    if found.kind != "sweep" or TUNING_TAG not in found.tags:
        raise BadInput(f"--from-tune: {found.title} is no tuning; `adaptkit tune` says the id of its own")
    if record.info.status != "FINISHED":
        raise BadInput(f"--from-tune: {found.title} is not finished; the same `adaptkit tune` goes on with it")
    chosen = {one["strategy"]: one for one in _content(found)}
    named = next((layer.values["strategy"] for layer in layers if "strategy" in layer.values), None)
    names = _names(named) if named is not None else list(chosen)
    missing = [name for name in names if name not in chosen]
    if missing:
        raise BadInput(
            *(f"--from-tune: {found.title} has not tuned {name}{suggestion(name, chosen)}" for name in missing)
        )
    values: dict[str, Any] = {"strategy": names}
    for name in names:
        values |= {f"{name}.{key}": value for key, value in chosen[name]["options"].items()}
        if LR not in chosen[name]["options"] and not any(LR in layer.values for layer in layers):
            values[f"{name}.{LR}"] = chosen[name]["lr"]
    return Layer(values, f"tuning {run_id}")


def _content(found: StoredRun) -> list[dict[str, Any]]:
    """Return what the run says of each strategy."""
    try:
        with found.file(TUNING_FILE) as path:
            content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["strategies"]
    except (ValueError, KeyError) as error:
        raise BadInput(f"--from-tune: {found.title} has no {TUNING_FILE} that could be read") from error
    return content


def _names(value: Any) -> list[str]:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
