"""Compare tracked runs from Python, or from the command line: the same steps for both."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.comparison.metrics import DEFAULT_METRIC
from adaptkit.comparison.records import Comparisons
from adaptkit.errors import BadInput
from adaptkit.settings.settings import DEFAULT_EXPERIMENT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compare(
    runs: str | Sequence[str] = (),
    *,
    experiment: str | None = None,
    where: str | None = None,
    metric: str = DEFAULT_METRIC,
    margin: float | None = None,
    output: str | Path | None = None,
    tracking_uri: str | None = None,
    track: bool = True,
) -> Comparisons:
    """Compare tracked runs and return what they say, as `adaptkit compare` does.

    `runs` are MLflow run ids (a parent's stands for its runs); without any, all adaptation runs of `experiment` are
    compared. `where` is a condition in MLflow's filter language, `margin` of a tie in points (in the metric's unit, for
    one that is no accuracy). The report goes to the folder `output`, and to MLflow unless `track` is False.
    Raises BadInput for runs that cannot be compared.
    """
    findings = judge_tracked(
        (runs,) if isinstance(runs, str) else tuple(runs),
        experiment=experiment,
        where=where,
        metric=metric,
        margin=margin,
        tracking_uri=tracking_uri,
    )
    publish(findings, output=None if output is None else Path(output), tracking_uri=tracking_uri, track=track)
    return findings


def judge_tracked(
    run_ids: Sequence[str] = (),
    *,
    experiment: str | None = None,
    where: str | None = None,
    metric: str = DEFAULT_METRIC,
    margin: float | None = None,
    tracking_uri: str | None = None,
    curves: bool = True,
    alone: bool = False,
) -> Comparisons:
    """Read runs from a store and judge them; without `curves`, their histories are not read.

    Raises BadInput when no two arms can be compared, unless they may stand `alone`.
    """
    from adaptkit.comparison.judge import judge_runs, require_pairs
    from adaptkit.tracking.reader import open_reader

    reader = open_reader(tracking_uri)
    runs = reader.read(reader.find(run_ids, experiment, where))
    if not runs:
        asked = f"experiment {experiment or DEFAULT_EXPERIMENT!r}" if not run_ids else "these runs"
        condition = f" under {where!r}" if where else ""
        raise BadInput(
            f"no adaptation runs in {asked}{condition} of {reader.address.shown}: `adaptkit run -s NAME` makes one"
        )
    if curves:
        runs = reader.with_curves(runs)
    findings = judge_runs(runs, metric=metric, margin=margin)
    if not alone:
        require_pairs(findings)
    return findings


def draw(findings: Comparisons) -> dict[str, Figure]:
    """Return the figures of a comparison by name, as the report shows them; a second comparison's names end in `_2`."""
    from adaptkit.reports.figures.comparison import draw_comparison

    return {
        drawing.stem if comparison.number == 1 else f"{drawing.stem}_{comparison.number}": drawing.figure
        for comparison in findings.comparisons
        for drawing in draw_comparison(comparison)
    }


def publish(
    findings: Comparisons, *, output: Path | None = None, tracking_uri: str | None = None, track: bool = True
) -> tuple[str, ...]:
    """Write the report to a folder, to MLflow or to both; return the pages of the runs made there."""
    if output is None and not track:
        return ()
    from adaptkit.reports.report import write_report

    with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
        files = write_report(output or Path(temporary), findings)
        if not track:
            return ()
        from adaptkit.tracking.parent import record_findings

        return record_findings(findings, files, tracking_uri)
