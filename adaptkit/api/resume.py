"""Resume interrupted runs from their last checkpoints, in their own MLflow runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from adaptkit.api.compare import judge_tracked
from adaptkit.api.request import require_report_folder
from adaptkit.api.run import close_group, judge_outcome, refitted, resumable, with_ids
from adaptkit.api.sync import require_sent
from adaptkit.comparison.collector import Collector
from adaptkit.comparison.findings import Comparisons
from adaptkit.errors import AdaptkitError, BadInput
from adaptkit.experiment.adaptation import execute
from adaptkit.experiment.base import obtain_base
from adaptkit.experiment.base_cache import usable_base
from adaptkit.experiment.description import describe_run
from adaptkit.experiment.outcome import BaseSummary, RunOutcome
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
    end_dead_refits,
    find_all,
    find_resumable,
    open_stopped,
    require_same_start,
    require_unchanged,
    stored_progress,
)
from adaptkit.settings.request import recorded
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.settings.settings import flatten
from adaptkit.system.core_sharing import Seat
from adaptkit.tracking.journal import forget_sent
from adaptkit.tracking.runs import RunFinder
from adaptkit.tracking.tracker import Tracker

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.tracking.store import Store


@dataclass(frozen=True)
class Watch:
    """Callbacks of resumed runs: `notice(message)`, and `shown(plugins)`, a context around the training."""

    notice: Callable[[str], None] = lambda message: None
    shown: Callable[[Plugins], AbstractContextManager[None]] = lambda plugins: nullcontext()


@dataclass(frozen=True)
class Attempt:
    """Result of resuming one of several runs: its outcome, or the error that stopped it."""

    run_id: str
    name: str
    outcome: RunOutcome | None
    error: str | None


def resume(
    run_id: str,
    *,
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    report: str | Path | None = None,
) -> RunOutcome:
    """Resume an interrupted run from its last checkpoint, in its own MLflow run.

    This is the Python form of `adaptkit resume`. Except for times and memory, the results are those of a run that was
    not interrupted.

    Parameters
    ----------
    run_id : str
        An interrupted run. The id of a parent run resumes all the runs that its command had not finished.
    tracking_uri : str, optional
        MLflow store. Default: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.
    plugins : iterable of path or object, optional
        Plugins that the run received as objects. Plugin files are loaded again without being named here.
    backbone : torch.nn.Module, optional
        The model that `adaptkit.run` received as `backbone`, if it did.
    report : path, optional
        Folder for a report of the comparison. Default: that of the interrupted command, if any.

    Returns
    -------
    RunOutcome
        `runs` holds one record for each run, `comparison` compares the strategies.

    Raises
    ------
    BadInput
        If the run cannot be resumed, for example because its data have changed.

    Examples
    --------
    >>> outcome = adaptkit.resume(interrupted_run_id)
    >>> outcome.runs[0].status
    'finished'
    """
    request = ResumeRequest(
        tracking_uri=tracking_uri,
        plugins=tuple(plugins),
        backbone=backbone,
        report=None if report is None else Path(report).absolute(),
    )
    return resume_run(open_stopped(tracking_uri), run_id, request)


@dataclass(frozen=True, kw_only=True)
class ResumeRequest:
    """How to resume runs: their store, the Python objects that must be passed again, and the folder of the report.

    The path of the folder is absolute, because runs are resumed in the folder in which they started.
    """

    tracking_uri: str | None = None
    plugins: tuple[str | Path | object, ...] = ()
    backbone: nn.Module | None = None
    report: Path | None = None


def resume_all(request: ResumeRequest = ResumeRequest(), watch: Watch = Watch()) -> Iterator[Attempt]:
    """Resume every interrupted run of this machine in a store; a run that fails does not stop the others."""
    runs = open_stopped(request.tracking_uri)
    require_sent(request.tracking_uri)
    tried: set[str] = set()
    # Search again each time: resuming a parent run may finish the run of its base.
    while left := [run_id for run_id in find_all(runs) if run_id not in tried]:
        run_id = left[0]
        tried.add(run_id)
        record = runs.get(run_id)
        name = str(record.info.run_name) if record is not None else run_id
        try:
            outcome = resume_run(runs, run_id, request=request, watch=watch)
        except AdaptkitError as error:
            yield Attempt(run_id=run_id, name=name, outcome=None, error="; ".join(error.problems))
            continue
        failed = [f"{run.label} seed={run.seed}: {run.error}" for run in outcome.failed]
        lost = [outcome.tracking_error] if outcome.tracking_error else []
        refit = [outcome.refit_error] if outcome.refit_error and not (failed or lost or outcome.is_undecided) else []
        yield Attempt(run_id=run_id, name=name, outcome=outcome, error="; ".join([*failed, *lost, *refit]) or None)


def resume_run(
    runs: RunFinder, run_id: str, request: ResumeRequest = ResumeRequest(), watch: Watch = Watch()
) -> RunOutcome:
    """Resume one run of an open store, and the refit that its command was to make."""
    require_sent(request.tracking_uri)
    require_report_folder(request.report)
    interrupted = find_resumable(runs, run_id)
    record = interrupted.record
    try:
        with _in_folder(record.folder), _threads(record.threads):
            with Seat() as seat:
                experiment, plugins = _prepared(interrupted, request, watch)
                outcome, recovery = _continued(
                    interrupted, experiment, plugins, seat=seat, request=request, watch=watch
                )
            if not record.refit:
                return outcome
            end_dead_refits(interrupted.stored)
            uri = interrupted.stored.runs.reader.address.uri  # a path may have been relative to another folder
            with watch.shown(plugins):
                return refitted(
                    outcome,
                    recovery,
                    plugins=plugins,
                    tracking_uri=uri,
                    feature_cache=record.reuse,
                    calibrate=record.calibrate,
                )
    except KeyboardInterrupt as error:
        if not getattr(error, "__notes__", ()):  # interrupted before training
            error.add_note(f"To resume:  adaptkit resume {run_id}")
        raise
    finally:
        interrupted.claim.release()


def _prepared(interrupted: InterruptedRun, request: ResumeRequest, watch: Watch) -> tuple[Experiment, Plugins]:
    """Prepare the experiment that a run belongs to, and check that its inputs are unchanged."""
    record = interrupted.record
    require_unchanged(interrupted)
    if versions := changed_versions(record):
        watch.notice(f"{record.name}: {versions}: the last digits may differ")
    plugins = given_plugins([*record.plugin_files, *request.plugins], request.backbone)
    values = recorded(dict(flatten(yaml.safe_load(record.config))))
    try:
        experiment = prepare(resolve([Layer(values)], plugins))
    except BadInput as error:
        raise _not_resumable(interrupted, *error.problems) from None
    require_same_start(interrupted, experiment)
    return experiment, plugins


def _not_resumable(interrupted: InterruptedRun, *problems: str) -> BadInput:
    return BadInput(*(f"{interrupted.stored.title} cannot be resumed: {problem}" for problem in problems))


def _continued(
    interrupted: InterruptedRun,
    experiment: Experiment,
    plugins: Plugins,
    *,
    seat: Seat,
    request: ResumeRequest,
    watch: Watch,
) -> tuple[RunOutcome, Recovery]:
    """Make the runs that are not finished; return the outcome, and the records of the runs."""
    record, store = interrupted.record, interrupted.stored.store()
    with ExitStack() as stack:
        group = gather(interrupted, experiment, stack)
        if group.base_fingerprints:
            _require_base(interrupted, group, experiment, plugins=plugins, seat=seat, watch=watch)
        is_group = record.kind == "comparison"
        tracker, collector = stack.enter_context(Tracker(store, resumed=group.resumed)), Collector()
        report = request.report or (None if record.report is None else Path(record.report))
        recovery = Recovery(
            experiment=experiment,
            tracker=tracker,
            reuse=record.reuse,
            notice=watch.notice,
            report=report,
            resumed=group.resumed,
            claims=group.claims,
            parent=record.parent,
            refit=record.refit,
            calibrate=record.calibrate,
        )
        for resumed in group.resumed.values():
            count_again(store.client, resumed.run_id)
        stack.enter_context(plugins.watching(collector, "collector"))
        stack.enter_context(plugins.watching(tracker, "tracker"))
        stack.enter_context(watch.shown(plugins))
        if is_group:
            count_again(store.client, interrupted.stored.run_id)
            checked, recorded = experiment.request, stored_progress(store.client, interrupted.stored.record)
            stack.enter_context(tracker.grouped(checked.group_name, checked.shared_params(), recorded))
        stack.enter_context(resumable(recovery, request.tracking_uri))
        stack.enter_context(recovery.group())
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
                done=group.done,
            )
        outcome = with_ids(outcome, tracker)
        comparisons = (
            _judged(outcome, store, plugins) if is_group or group.done else judge_outcome(outcome, collector, plugins)
        )
        ended = close_group(outcome, comparisons, tracker=tracker, report=report if is_group else request.report)
    if not record.refit:
        interrupted.claim.discard()
    elif not recovery.kept:  # its only run had ended before
        recovery.kept.append((interrupted.claim, lambda: interrupted.stored.run_id))
    # If the store was moved, journals for its former address remain. Their events have been sent.
    forget_sent({record.local_id, *(resumed.local_id for resumed in group.records.values())})
    if record.kind == "base":
        watch.notice(f"The base is trained. Run the same command again to continue: {record.command}")
    elif record.parent is not None and read_record(record.parent) is not None:
        parent = interrupted.stored.tags.get(PARENT_TAG)
        watch.notice(f"This run is one of several. To resume the others:  adaptkit resume {parent}")
    return ended, recovery


def _judged(outcome: RunOutcome, store: Store, plugins: Plugins) -> Comparisons:
    """Compare all runs of a command, including those that finished before the interruption."""
    if all(run.status != "finished" for run in outcome.runs):
        return Comparisons()
    done = [run.run_id for run in outcome.runs if run.run_id]
    return judge_tracked(done, tracking_uri=store.uri, plugins=plugins, alone=True)


def _require_base(
    interrupted: InterruptedRun,
    begun: ResumedGroup,
    experiment: Experiment,
    *,
    plugins: Plugins,
    seat: Seat,
    watch: Watch,
) -> None:
    """Check that the base is still the same; train it again if the cache has lost it."""
    base = usable_base(experiment.base_key, experiment.request, experiment.domains)
    if base is None:
        watch.notice(f"{interrupted.record.name}: the cache no longer holds its base; it is trained again")
        unwatched = dataclasses.replace(plugins, watched=False)
        base = obtain_base(experiment, unwatched, notice=watch.notice).base
    if others := begun.base_fingerprints - {base.fingerprint}:
        before = sorted(others)[0][:12]
        raise _not_resumable(interrupted, f"its base was {before}, and is {base.fingerprint[:12]}")
    for arm in experiment.request.arms:
        for seed in experiment.request.settings.seed:
            described = describe_run(experiment, base, base_run_id=None, arm=arm, seed=seed, occupancy=seat.occupancy())
            begun.require_same(interrupted, described)


def _base_alone(
    experiment: Experiment, plugins: Plugins, *, tracker: Tracker, recovery: Recovery, watch: Watch
) -> RunOutcome:
    obtained = obtain_base(experiment, plugins, tracker=tracker, notice=watch.notice, recovery=recovery)
    base = obtained.base
    return RunOutcome(
        plan=dataclasses.replace(experiment.plan, base_cached=obtained.cached),
        base=BaseSummary(
            fingerprint=base.fingerprint,
            run_id=obtained.run_id,
            cached=obtained.cached,
            test_accuracy=base.epochs[-1].test_accuracy if base.epochs else None,
            shifted_accuracy=None,
            epochs=base.epochs,
        ),
        runs=(),
        data_fingerprint=experiment.domains.fingerprint,
    )


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    """Change to the folder in which a run started, if it exists, so that relative paths stay valid."""
    with contextlib.chdir(folder) if Path(folder).is_dir() else nullcontext():
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with this number of threads, because the last digits of results depend on it."""
    before = torch.get_num_threads()
    if count == before:  # setting even the same number changes how torch divides work
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
