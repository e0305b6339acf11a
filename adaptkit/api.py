"""Run an experiment from Python, or from the command line: the same steps for both."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.cache import features_allowed
from adaptkit.concluding import close_group, files_of, judge_outcome, with_ids
from adaptkit.config import flat_settings
from adaptkit.config_files import read_config
from adaptkit.errors import BadInput
from adaptkit.experiment.execution import execute
from adaptkit.experiment.hardware import shared_threads
from adaptkit.experiment.keeping import Keeping
from adaptkit.experiment.preparation import prepare
from adaptkit.experiment.sharing import Seat
from adaptkit.loading import load_plugins
from adaptkit.outcome import Outcome, Plan
from adaptkit.plugins import Plugins
from adaptkit.reports.collector import Collector
from adaptkit.request import Request
from adaptkit.resolve import Layer, option_keys, resolve

if TYPE_CHECKING:
    from adaptkit.tracking.store import Store


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
        from adaptkit.tuned_settings import tuned_layer

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
        from adaptkit.backbones.given import given_backbone

        things.append(given_backbone(given["backbone"]))
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
                outcome = execute(experiment, plugins, seat, None, refresh_base, feature_cache, notice)
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
            keeping = Keeping(experiment, tracker, reuse, notice, report)
            with resumable(keeping, tracking_uri):
                outcome = execute(experiment, plugins, seat, tracker, refresh_base, feature_cache, notice, keeping)
                outcome = with_ids(outcome, tracker)
                recorded = close_group(outcome, judge_outcome(outcome, collector), tracker, report)
        return recorded


@contextmanager
def resumable(keeping: Keeping, tracking_uri: str | None) -> Iterator[None]:
    """Keep the run that groups this experiment's; tell whoever interrupts it, in the error's notes, how to go on."""
    try:
        with keeping.group():
            yield
    except KeyboardInterrupt as error:
        if (command := keeping.hint(tracking_uri)) is not None:
            error.add_note(f"Go on with:  {command}")
        raise


def _opened(tracking_uri: str | None, request: Request) -> Store:
    from adaptkit.tracking.store import open_store

    return open_store(tracking_uri, request.settings.experiment)


def _unsent(store: Store) -> list[str]:
    from adaptkit.tracking.journal import waiting_for

    count = waiting_for(store.shown)
    return [f"{count} earlier run{'s are' if count > 1 else ' is'} not all in MLflow: `adaptkit sync`"] if count else []


def check_folder(folder: Path) -> None:
    """Refuse, before anything is trained, a folder that the report could not be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"cannot write a report to {folder}: {error.strerror or error}") from None
