"""Re-run a recorded run from its record, and check that the results match."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from adaptkit.data.domains import Domains
from adaptkit.errors import BadInput
from adaptkit.experiment.prepare import Experiment, prepare
from adaptkit.names import BASE_FINGERPRINT_TAG
from adaptkit.reproduction.agreement import Compared, Difference, Reproduction, compare_results
from adaptkit.reproduction.record import (
    RunEnvironment,
    data_difference,
    drawn_images,
    read_results,
    recorded_data,
    require_possible,
    require_same_split,
    require_split,
    settings_difference,
)
from adaptkit.reproduction.repetition import RepetitionRequest, rebuilt, repetition
from adaptkit.reproduction.rerun import TRAINED, run_again
from adaptkit.settings.request import Request
from adaptkit.tracking.runs import open_runs

#: kinds of runs that can be re-run
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
    """Re-run a finished run from its record, and check that the results match.

    This is the Python form of `adaptkit reproduce`. The store is only read.

    Parameters
    ----------
    run_id : str
        A finished run.
    tracking_uri : str, optional
        MLflow store. Default: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.
    plugins : iterable of path or object, optional
        Plugin files, or objects with hooks.
    backbone : torch.nn.Module, optional
        The model that `adaptkit.run` received as `backbone`, with the same weights.
    data_dir : path, optional
        Folder of data sets. Default: as in the run.
    device : {"auto", "cpu", "cuda", "mps"}, optional
        Device that computes. Default: as in the run.
    refresh_base : bool, optional
        Train the base even if the cache holds it.
    feature_cache : bool, optional
        Whether features of frozen layers are computed once and reused. Default: True.

    Returns
    -------
    Reproduction
        `verdict` is "identical", "within tolerance" or "different".

    Raises
    ------
    BadInput
        If the run cannot be repeated here, for example because its data have changed.
    RunFailed
        If the new run fails.

    Examples
    --------
    >>> adaptkit.reproduce(run_id).verdict
    'identical'
    """
    return reproduce_run(ReproduceRequest(run=run_id, refresh_base=refresh_base, **repetition(locals())))


@dataclass(frozen=True, kw_only=True)
class ReproduceRequest(RepetitionRequest):
    """A run to repeat, and how; with `refresh_base`, its base is trained again."""

    refresh_base: bool = False


def reproduce_run(repeated: ReproduceRequest, notice: Callable[[str], None] = lambda line: None) -> Reproduction:
    """Re-run a finished run and compare the results; call `notice(message)` for each message."""
    stored = open_runs(repeated.tracking_uri).find(repeated.run, (*KINDS, "imported", "final"))
    plugins = repeated.plugins
    require_possible(stored)
    recorded = read_results(stored)
    require_split(stored)
    notices: list[str] = []

    def report(message: str) -> None:
        notices.append(message)
        notice(message)

    request, domains = rebuilt(stored, repeated, report)
    environment = RunEnvironment(stored, request, plugins)
    data = data_difference(stored, domains, request, is_elsewhere=environment.recorded != environment.now)
    if data is not None and not data.within:
        return _judged(environment, notices, data)
    if data is None:
        require_same_split(stored, domains)
    experiment = _prepared(request, domains, device=repeated.device)
    for line in experiment.plan.notices:
        if not line.startswith("split.file:"):  # reported above, with the original name
            report(line)
    if difference := settings_difference(stored, experiment):
        return _judged(environment, notices, difference)
    threads = environment.recorded.get("threads", "")
    rerun = run_again(
        stored,
        experiment,
        plugins,
        threads=int(threads) if threads.isdigit() else None,
        refresh_base=repeated.refresh_base,
        feature_cache=repeated.feature_cache,
        notice=report,
    )
    weights = "base" if stored.kind == "base" else "adapter"
    agreement = compare_results(recorded, rerun.results, weights=weights, drawn=drawn_images(stored))
    base_fingerprint = stored.tags.get(BASE_FINGERPRINT_TAG)
    first = [] if data is None else [data]
    if base_fingerprint != rerun.base_fingerprint:
        # Different last digits change the fingerprint of the base; the comparison of the results decides.
        first.append(
            Difference(
                kind="base",
                what="fingerprint of the base",
                recorded=base_fingerprint,
                now=rerun.base_fingerprint,
                within=True,
            )
        )
    return dataclasses.replace(
        _judged(
            dataclasses.replace(
                environment, text=rerun.environment, threads=rerun.threads, is_base_new=rerun.base == TRAINED
            ),
            notices,
            *first,
            *agreement.differences,
        ),
        base=rerun.base,
        compared=agreement.compared,
        largest=agreement.largest,
    )


def _judged(environment: RunEnvironment, notices: Iterable[str], *differences: Difference) -> Reproduction:
    """Return a reproduction with these differences and those of the environment."""
    run = environment.stored
    return Reproduction(
        run_id=run.run_id,
        name=run.name,
        kind=run.kind,
        data_fingerprint=recorded_data(run) or "",
        base_fingerprint=run.tags.get(BASE_FINGERPRINT_TAG),
        base=None,
        compared=Compared(),
        differences=differences,
        environment_differences=tuple(environment.differences()),
        environment={"recorded": environment.recorded, "now": environment.now},
        notices=tuple(notices),
    )


def _prepared(request: Request, domains: Domains, device: str | None) -> Experiment:
    try:
        return prepare(request, domains=domains)
    except BadInput as error:
        hint = "; the run used this device: choose another one with --device auto" if device is None else ""
        raise BadInput(*(f"{line}{hint if line.startswith('device:') else ''}" for line in error.problems)) from None
