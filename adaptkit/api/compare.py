"""Compare tracked runs, draw the figures of a comparison, and record it with its report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.comparison.findings import Comparison, Comparisons
from adaptkit.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from adaptkit.plugins.manager import Plugins


def compare(
    runs: str | Sequence[str] = (),
    *,
    experiment: str | None = None,
    where: str | None = None,
    metric: str | Sequence[str] | None = None,
    margin: float | None = None,
    plugins: Iterable[str | Path | object] = (),
    report: str | Path | None = None,
    tracking_uri: str | None = None,
    track: bool = True,
) -> Comparisons:
    """Compare tracked runs: which strategy is better, by how much, and how certain that is.

    This is the Python form of `adaptkit compare`.

    Parameters
    ----------
    runs : str or sequence of str, optional
        Run ids; the id of a parent run stands for its runs. Default: all adaptation runs of `experiment`.
    experiment : str, optional
        MLflow experiment. Default: MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID, else "adaptkit".
    where : str, optional
        Condition in MLflow's filter language, such as "strategy != 'scratch'".
    metric : str or sequence of str, optional
        Metrics to compare by: "balanced_accuracy" and the like (`adaptkit metrics` lists them), or names in MLflow such
        as "final/retention". The first decides, and the others are shown. Default: those of the runs.
    margin : float, optional
        Difference within which strategies are tied, in points (in the unit of the metric if it is not an accuracy).
        Default: 1 point.
    plugins : iterable of path or object, optional
        Plugin files, or objects with hooks, that provide metrics.
    report : path, optional
        Folder for a report of the comparison.
    tracking_uri : str, optional
        MLflow store. Default: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.
    track : bool, optional
        Whether the comparison and its report are recorded in MLflow. Default: True.

    Returns
    -------
    Comparisons
        A list of comparisons: one for each base and data set.

    Raises
    ------
    BadInput
        If no runs match, or if they cannot be compared.

    Examples
    --------
    >>> comparisons = adaptkit.compare()
    >>> for comparison in comparisons:
    ...     print(comparison.sentences[-1])
    This holds for this base, ...
    """
    from adaptkit.models.trained import given_plugins

    comparisons = judge_tracked(
        (runs,) if isinstance(runs, str) else tuple(runs),
        experiment=experiment,
        where=where,
        metrics=(metric,) if isinstance(metric, str) else tuple(metric or ()),
        margin=margin,
        tracking_uri=tracking_uri,
        plugins=given_plugins(plugins),
    )
    publish(comparisons, report=None if report is None else Path(report), tracking_uri=tracking_uri, track=track)
    return comparisons


def judge_tracked(
    run_ids: Sequence[str] = (),
    *,
    experiment: str | None = None,
    where: str | None = None,
    metrics: Sequence[str] = (),
    margin: float | None = None,
    tracking_uri: str | None = None,
    plugins: Plugins | None = None,
    curves: bool = True,
    alone: bool = False,
) -> Comparisons:
    """Read runs from a store and compare them; their histories are read only with `curves`.

    `plugins` provide the metrics; None: only the built-in ones.

    Raises BadInput if no two strategies can be compared, unless `alone` allows comparisons of a single strategy.
    """
    from adaptkit.comparison.judge import judge_runs, require_pairs
    from adaptkit.comparison.metrics import find_measures
    from adaptkit.tracking.reader import open_reader
    from adaptkit.tracking.store import experiment_name

    reader = open_reader(tracking_uri)
    runs = reader.read(reader.find(run_ids, experiment, where))
    if not runs:
        name = experiment_name(reader.client, reader.address, experiment)
        searched = f"experiment {name!r}" if not run_ids else "these runs"
        if where and reader.find(run_ids, experiment, None):
            raise BadInput(f"no run of {searched} matches --where {where!r}")
        raise BadInput(f"no adaptation runs in {searched} of {reader.address.shown}: `adaptkit run -s NAME` makes one")
    if curves:
        runs = reader.with_curves(runs)
    comparisons = judge_runs(runs, metrics=metrics, margin=margin, measures=find_measures(plugins))
    if not alone:
        require_pairs(comparisons)
    return comparisons


def draw(comparisons: Comparison | Comparisons) -> dict[str, Figure]:
    """Draw the figures of a comparison, as its report shows them.

    Parameters
    ----------
    comparisons : Comparison or Comparisons
        Result of `adaptkit.compare`, or `comparison` or `comparisons` of an outcome.

    Returns
    -------
    dict of str to matplotlib.figure.Figure
        Figures by name. Names of a second comparison end in `_2`.

    Examples
    --------
    >>> outcome = adaptkit.run(["head", "lora"], seeds="0-1", preset="quick")
    >>> figures = adaptkit.draw(outcome.comparison)
    >>> figures["accuracy_over_training"].savefig("accuracy.png")
    """
    from adaptkit.reports.figures.comparison import draw_comparison

    return {
        drawing.stem if comparison.number == 1 else f"{drawing.stem}_{comparison.number}": drawing.figure
        for comparison in ([comparisons] if isinstance(comparisons, Comparison) else comparisons)
        for drawing in draw_comparison(comparison)
    }


def publish(
    comparisons: Comparisons, *, report: Path | None = None, tracking_uri: str | None = None, track: bool = True
) -> tuple[str, ...]:
    """Write the report to a folder, to MLflow or to both; return the MLflow pages of the new comparison runs."""
    if report is None and not track:
        return ()
    from adaptkit.reports.report import write_report

    with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
        files = write_report(report or Path(temporary), comparisons)
        if not track:
            return ()
        from adaptkit.tracking.parent import record_findings

        return record_findings(comparisons, files, tracking_uri)
