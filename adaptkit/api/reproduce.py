"""Run a recorded run again from its record alone, and say whether it comes out the same."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from adaptkit.data.domains import Domains
from adaptkit.errors import BadInput
from adaptkit.experiment.prepare import Experiment, load_data, prepare
from adaptkit.models.run_images import rebuilt_request
from adaptkit.models.trained import given_plugins
from adaptkit.names import BASE_FINGERPRINT_TAG, CONFIG_FILE, SPLIT_FILE
from adaptkit.plugins.manager import Plugins
from adaptkit.reproduction.agreement import Compared, Difference, Reproduction, compare_results
from adaptkit.reproduction.record import (
    RunEnvironment,
    data_difference,
    drawn_images,
    read_results,
    recorded_data,
    require_possible,
    require_same_settings,
    require_same_split,
    require_split,
    settings_difference,
)
from adaptkit.reproduction.rerun import ANEW, run_again
from adaptkit.settings.request import Request
from adaptkit.system.hardware import find_device
from adaptkit.tracking.runs import StoredRun, open_runs

#: kinds of runs that can be run again
KINDS = ("adaptation", "base", "tuning")


def reproduce(
    run_id: str,
    *,
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
) -> Reproduction:
    """Run a finished run again from its record and compare both, as `adaptkit reproduce` does.

    `verdict` is identical, within tolerance or different. The run's data are looked for where they were, or in
    `data_dir`; it is computed on the device of its kind, or on `device`. A model that was given from Python is given
    again as `backbone`, with the weights that it had. The store is only read. Raises BadInput for a run that cannot be
    made again here, and RunFailed when it fails this time.
    """
    loaded = given_plugins(plugins, backbone)
    return reproduce_run(
        run_id,
        loaded,
        tracking_uri=tracking_uri,
        data_dir=None if data_dir is None else Path(data_dir),
        device=device,
        refresh_base=refresh_base,
        feature_cache=feature_cache,
    )


def reproduce_run(
    run_id: str,
    plugins: Plugins,
    *,
    tracking_uri: str | None = None,
    data_dir: Path | None = None,
    device: str | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
    notice: Callable[[str], None] = lambda line: None,
) -> Reproduction:
    """Run a finished run again and compare; `notice` hears lines to tell the user meanwhile."""
    found = open_runs(tracking_uri).find(run_id, (*KINDS, "imported"))
    require_possible(found)
    recorded = read_results(found)
    require_split(found)
    notices: list[str] = []

    def tell(line: str) -> None:
        notices.append(line)
        notice(line)

    changed: dict[str, Any] = {} if data_dir is None else {"data_dir": str(data_dir)}
    if device is not None:
        changed["device"] = find_device(device).type
    try:
        with rebuilt_request(found, plugins, changed) as request:
            _require_one(found, request)
            require_same_settings(found, request)  # first: other settings make other data
            if request.settings.split.file is not None and found.has(SPLIT_FILE):
                tell(
                    f"split.file {found.params.get('split.file')}: the run's own split.json says the same, and is taken"
                )
            domains = load_data(request)
    except BadInput as error:
        raise BadInput(*(f"{found.title}: {line}{_hint(found, line)}" for line in error.problems)) from None
    around = RunEnvironment(found, request, plugins)
    data = data_difference(found, domains, request, is_elsewhere=around.recorded != around.now)
    if data is not None and not data.within:
        return _judged(around, notices, data)
    if data is None:
        require_same_split(found, domains)
    experiment = _prepared(request, domains, asked=device)
    for line in experiment.plan.notices:
        if not line.startswith("split.file:"):  # said, with a better name
            tell(line)
    if difference := settings_difference(found, experiment):
        return _judged(around, notices, difference)
    threads = around.recorded.get("threads", "")
    made = run_again(
        found,
        experiment,
        plugins,
        threads=int(threads) if threads.isdigit() else None,
        refresh_base=refresh_base,
        feature_cache=feature_cache,
        notice=tell,
    )
    weights = "base" if found.kind == "base" else "adapter"
    agreement = compare_results(recorded, made.results, weights, drawn_images(found))
    wanted = found.tags.get(BASE_FINGERPRINT_TAG)
    first = [] if data is None else [data]
    if wanted != made.base_fingerprint:
        # Other last digits make another base: what follows from them decides.
        first.append(Difference("base", "fingerprint of the base", wanted, made.base_fingerprint, within=True))
    return dataclasses.replace(
        _judged(
            dataclasses.replace(around, text=made.environment, threads=made.threads, is_base_new=made.base == ANEW),
            notices,
            *first,
            *agreement.differences,
        ),
        base=made.base,
        compared=agreement.compared,
        largest=agreement.largest,
    )


def _judged(around: RunEnvironment, notices: Iterable[str], *found: Difference) -> Reproduction:
    """Return a reproduction with these differences, and those of the surroundings."""
    run = around.stored
    return Reproduction(
        run_id=run.run_id,
        name=run.name,
        kind=run.kind,
        data_fingerprint=recorded_data(run) or "",
        base_fingerprint=run.tags.get(BASE_FINGERPRINT_TAG),
        base=None,
        compared=Compared(),
        differences=found,
        environment_differences=tuple(around.differences()),
        environment={"recorded": around.recorded, "now": around.now},
        notices=tuple(notices),
    )


def _prepared(request: Request, domains: Domains, asked: str | None) -> Experiment:
    try:
        return prepare(request, domains=domains)
    except BadInput as error:
        hint = "; the run was computed there: --device auto takes what is here" if asked is None else ""
        raise BadInput(*(f"{line}{hint if line.startswith('device:') else ''}" for line in error.problems)) from None


def _require_one(found: StoredRun, request: Request) -> None:
    if len(request.arms) != 1 or len(request.settings.seed) != 1:
        raise BadInput("its config.yaml was altered: it does not describe one strategy and one seed")


def _hint(found: StoredRun, line: str) -> str:
    """Return what else to say of a problem with a run's settings."""
    if "unknown option" in line or "unknown key" in line:
        return "; the run knew it: its plugin, or adaptkit, has changed since"
    if not re.search(r"unknown (strategy|backbone|data set|shift) ", line):
        return ""
    if "'python'" in line:
        return "; it was given from Python: adaptkit.reproduce(run_id, backbone=model) takes it again"
    with found.file(CONFIG_FILE) as path:
        heading = path.read_text(encoding="utf-8").partition("\n")[0]
    named = re.findall(r"--plugin (\S+)", heading)
    return f"; the run was made with --plugin {' --plugin '.join(named)}" if named else "; is its plugin installed?"
