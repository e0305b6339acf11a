"""Go on with runs that stopped: in their own records, with the results of runs that nobody disturbed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from adaptkit.api.compare import judge_tracked
from adaptkit.api.run import close_group, judge_outcome, resumable, with_ids
from adaptkit.api.sync import require_sent
from adaptkit.comparison.collector import Collector
from adaptkit.comparison.records import Comparisons
from adaptkit.errors import AdaptkitError, BadInput
from adaptkit.experiment.adaptation import execute
from adaptkit.experiment.base import obtain_base
from adaptkit.experiment.base_cache import stored_base
from adaptkit.experiment.description import describe_run
from adaptkit.experiment.outcome import BaseSummary, Outcome
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.experiment.recovery import Recovery, read_record
from adaptkit.models.trained import given_plugins
from adaptkit.names import PARENT_TAG
from adaptkit.plugins.manager import Plugins
from adaptkit.resumption.group import ResumedGroup, gather
from adaptkit.resumption.interrupted import (
    InterruptedRun,
    changed_versions,
    count_again,
    find_all,
    find_resumable,
    open_stopped,
    require_same_start,
    require_unchanged,
    stored_progress,
)
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.settings.settings import flatten
from adaptkit.system.core_sharing import Seat
from adaptkit.tracking.journal import forget_sent
from adaptkit.tracking.runs import RunFinder
from adaptkit.tracking.store import Store, errors_as_lines
from adaptkit.tracking.tracker import Tracker

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Watch:
    """Who hears of runs that go on: `notice` lines to tell the user, `shown` the plugins, while the runs are made."""

    notice: Callable[[str], None] = lambda line: None
    shown: Callable[[Plugins], AbstractContextManager[None]] = lambda plugins: nullcontext()


@dataclass(frozen=True)
class Attempt:
    """What became of one of several runs: its outcome, or why it did not go on."""

    run_id: str
    name: str
    outcome: Outcome | None
    error: str | None


def resume(
    run_id: str,
    *,
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
) -> Outcome:
    """Go on with a run that stopped, as `adaptkit resume` does, and return its results.

    It ends with the metrics (but times and memory) and the adapter of a run that nobody disturbed, in its own record.
    The id of a run that groups others stands for all that its command would still have done. Plugins' files are known;
    `plugins` given as objects, and a model given as `backbone`, must be given again. Raises BadInput for a run that
    cannot go on.
    """
    return resume_run(open_stopped(tracking_uri), run_id, tracking_uri, plugins, backbone)


def resume_all(
    tracking_uri: str | None = None, plugins: Iterable[str | Path | object] = (), watch: Watch = Watch()
) -> Iterator[Attempt]:
    """Go on with every run of this machine in a store that stopped; one that cannot go on does not stop the others."""
    runs, given = open_stopped(tracking_uri), list(plugins)
    require_sent(tracking_uri)
    tried: set[str] = set()
    # Anew each time: what goes on with a run that groups others may end the run of its base.
    while left := [run_id for run_id in find_all(runs) if run_id not in tried]:
        run_id = left[0]
        tried.add(run_id)
        found = runs.get(run_id)
        name = str(found.info.run_name) if found is not None else run_id
        try:
            outcome = resume_run(runs, run_id, tracking_uri, given, watch=watch)
        except AdaptkitError as error:
            yield Attempt(run_id, name, None, "; ".join(error.problems))
            continue
        failed = [f"{run.label} seed={run.seed}: {run.error}" for run in outcome.failed]
        lost = [outcome.tracking_error] if outcome.tracking_error else []
        yield Attempt(run_id, name, outcome, "; ".join([*failed, *lost]) or None)


def resume_run(
    runs: RunFinder,
    run_id: str,
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    watch: Watch = Watch(),
) -> Outcome:
    """Go on with a run of an open store; `tracking_uri` is how the store was named."""
    require_sent(tracking_uri)
    found = find_resumable(runs, run_id)
    try:
        with _in_folder(found.record.folder), Seat() as seat, _threads(found.record.threads):
            experiment, loaded = _prepared(found, plugins, backbone, watch)
            return _go_on(found, experiment, loaded, seat, tracking_uri, watch)
    except KeyboardInterrupt as error:
        if not getattr(error, "__notes__", ()):  # it came before anything was trained
            error.add_note(f"Go on with:  adaptkit resume {run_id}")
        raise
    finally:
        found.claim.release()


def _prepared(
    found: InterruptedRun, plugins: Iterable[str | Path | object], backbone: nn.Module | None, watch: Watch
) -> tuple[Experiment, Plugins]:
    """Return the experiment that a run is part of, which is what it was, and its plugins."""
    record = found.record
    require_unchanged(found)
    if told := changed_versions(record):
        watch.notice(f"{record.name}: {told}: the last digits may differ")
    loaded = given_plugins([*record.plugin_files, *plugins], backbone)
    values: dict[str, Any] = dict(flatten(yaml.safe_load(record.config)))
    try:
        experiment = prepare(resolve([Layer(values)], loaded))
    except BadInput as error:
        raise BadInput(*(f"{found.stored.title} cannot be resumed: {problem}" for problem in error.problems)) from None
    require_same_start(found, experiment)
    return experiment, loaded


def _go_on(
    found: InterruptedRun, experiment: Experiment, plugins: Plugins, seat: Seat, tracking_uri: str | None, watch: Watch
) -> Outcome:
    record, store = found.record, _store_of(found)
    with ExitStack() as held:
        begun = gather(found, experiment, held)
        if begun.base_fingerprints:
            _require_base(found, begun, experiment, plugins, seat, watch)
        is_group = record.kind == "comparison"
        tracker, collector = held.enter_context(Tracker(store, resumed=begun.resumed)), Collector()
        report = None if record.report is None else Path(record.report)
        recovery = Recovery(
            experiment=experiment,
            tracker=tracker,
            reuse=record.reuse,
            notice=watch.notice,
            report=report,
            resumed=begun.resumed,
            claims=begun.claims,
            parent=record.parent,
        )
        for one in begun.resumed.values():
            count_again(store.client, one.run_id)
        held.enter_context(plugins.watching(collector, "collector"))
        held.enter_context(plugins.watching(tracker, "tracker"))
        held.enter_context(watch.shown(plugins))
        if is_group:
            count_again(store.client, found.stored.run_id)
            request, goes_on = experiment.request, stored_progress(store.client, found.stored.record)
            held.enter_context(tracker.grouped(request.group_name, request.shared_params(), goes_on))
        held.enter_context(resumable(recovery, tracking_uri))
        if record.kind == "base":
            outcome = _base_alone(experiment, plugins, tracker=tracker, recovery=recovery, watch=watch)
        else:
            outcome = execute(
                experiment,
                plugins,
                seat=seat,
                tracker=tracker,
                feature_cache=record.reuse,
                notice=watch.notice,
                recovery=recovery,
                done=begun.done,
            )
        outcome = with_ids(outcome, tracker)
        findings = _judged(outcome, store) if is_group else judge_outcome(outcome, collector)
        ended = close_group(outcome, findings, tracker, report if is_group else None)
    found.claim.discard()
    forget_sent({record.local_id, *(one.local_id for one in begun.records.values())})  # for a store that was moved
    if record.kind == "base":
        watch.notice(f"The base is there: typed again, the same command goes on from it: {record.command}")
    elif record.parent is not None and read_record(record.parent) is not None:
        parent = found.stored.tags.get(PARENT_TAG)
        watch.notice(f"It is one run of several; go on with the others:  adaptkit resume {parent}")
    return ended


def _judged(outcome: Outcome, store: Store) -> Comparisons | None:
    """Return what the store says of a group's runs, those that were made before included; None if none has finished."""
    if all(run.status != "finished" for run in outcome.runs):
        return None
    return judge_tracked([run.run_id for run in outcome.runs if run.run_id], tracking_uri=store.uri, alone=True)


def _require_base(
    found: InterruptedRun, begun: ResumedGroup, experiment: Experiment, plugins: Plugins, seat: Seat, watch: Watch
) -> None:
    """See that the base of the runs is there, and what it was; train it anew where it is gone."""
    base = stored_base(experiment.base_key)
    if base is None:
        watch.notice(f"{found.record.name}: its base is gone from the cache: it is trained anew")
        unwatched = dataclasses.replace(plugins, watched=False)
        base = obtain_base(experiment, unwatched, notice=watch.notice).base
    if others := begun.base_fingerprints - {base.fingerprint}:
        was = sorted(others)[0]
        raise BadInput(
            f"{found.stored.title} cannot be resumed: its base was {was[:12]}, and is {base.fingerprint[:12]}"
        )
    for arm in experiment.request.arms:
        for seed in experiment.request.settings.seed:
            described = describe_run(experiment, base, base_run_id=None, arm=arm, seed=seed, company=seat.company())
            begun.require_same(found, described)


def _base_alone(
    experiment: Experiment, plugins: Plugins, *, tracker: Tracker, recovery: Recovery, watch: Watch
) -> Outcome:
    obtained = obtain_base(experiment, plugins, tracker=tracker, notice=watch.notice, recovery=recovery)
    base = obtained.base
    reached = base.epochs[-1].test_accuracy if base.epochs else None
    return Outcome(
        plan=dataclasses.replace(experiment.plan, base_cached=obtained.cached),
        base=BaseSummary(
            fingerprint=base.fingerprint,
            run_id=obtained.run_id,
            cached=obtained.cached,
            test_accuracy=reached,
            shifted_accuracy=None,
            epochs=base.epochs,
        ),
        runs=(),
        data_fingerprint=experiment.domains.fingerprint,
    )


def _store_of(found: InterruptedRun) -> Store:
    """Return the store as runs are written to it: in the experiment in which the run is."""
    address, client = found.stored.runs.reader.address, found.stored.runs.reader.client
    with errors_as_lines(address):
        experiment = client.get_experiment(found.stored.record.info.experiment_id)
    return Store(address.uri, client, experiment.experiment_id, experiment.name, (), address.ui_command)


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    """Be in the folder in which a run began, as long as it is there: relative paths start in it."""
    with contextlib.chdir(folder) if Path(folder).is_dir() else nullcontext():
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads: the last digits of results depend on them."""
    before = torch.get_num_threads()
    if count == before:  # even setting the same number would change how torch divides work
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
