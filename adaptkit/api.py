"""Run an experiment from Python, or from the command line: the same steps for both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptkit.config import flatten, read_config
from adaptkit.experiment.execution import execute
from adaptkit.experiment.preparation import prepare
from adaptkit.outcome import Outcome, Plan
from adaptkit.plugins import Plugins, load_plugins
from adaptkit.request import Request
from adaptkit.resolve import Layer, option_keys, resolve


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
    **keys: Any,
) -> Outcome:
    """Run an experiment and return its results, as `adaptkit run` does.

    `options` are strategy options (`{"rank": 4}` or `{"lora.rank": 4}`), `settings` any keys (`{"base.epochs": 2}`),
    `keys` those without a dot (`seed="0-4"`, `shift="rotate=30"`). `plugins` are files or objects with hooks.
    Raises BadInput before anything is trained or tracked; a run that fails later is a record with its error.
    """
    given = dict(keys) | ({"strategy": strategy} if strategy is not None else {}) | option_keys(options or {})
    if preset is not None:
        given["preset"] = preset
    layers = [Layer(dict(flatten(given))), Layer(dict(flatten(settings or {})))]
    if config is not None:
        layers.append(Layer(read_config(Path(config)), str(config)))
    things = list(plugins)
    loaded = load_plugins(
        [thing for thing in things if isinstance(thing, str | Path)],
        [thing for thing in things if not isinstance(thing, str | Path)],
    )
    request = resolve(layers, loaded)
    return run_request(request, loaded, tracking_uri=tracking_uri, track=track, refresh_base=refresh_base)


def run_request(
    request: Request,
    plugins: Plugins,
    *,
    tracking_uri: str | None = None,
    track: bool = True,
    refresh_base: bool = False,
    planned: Callable[[Plan], None] = lambda plan: None,
    notice: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run a checked request; `planned` hears the plan, `notice` lines to tell the user, before training."""
    experiment = prepare(request, refresh_base=refresh_base)
    if not track:
        planned(experiment.plan)
        return execute(experiment, plugins, refresh_base=refresh_base, notice=notice)

    from adaptkit.tracking.store import open_store
    from adaptkit.tracking.tracker import Tracker

    store = open_store(tracking_uri, request.settings.experiment)
    planned(experiment.plan)
    for line in store.notices:
        notice(line)
    tracker = Tracker(store)
    plugins.manager.register(tracker, name="tracker")
    try:
        outcome = execute(experiment, plugins, tracker, refresh_base=refresh_base, notice=notice)
    finally:
        plugins.manager.unregister(tracker)
    return dataclasses.replace(
        outcome,
        experiment=store.experiment_name,
        tracking_uri=store.without_secrets(store.uri),
        ui_command=store.ui_command,
        ui_url=store.runs_url(),
        notices=store.notices,
        tracking_error=tracker.fault,
    )
