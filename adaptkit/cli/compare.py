"""The command that compares tracked runs."""

from __future__ import annotations

from pathlib import Path

import click

from adaptkit.cli.options import FolderType, json_option
from adaptkit.errors import BadInput
from adaptkit.system.signals import interruptible


@click.command()
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID]...")
@click.option("--experiment", metavar="NAME", help="Compare all its adaptation runs.  [default: adaptkit]")
@click.option(
    "--where",
    metavar="CONDITION",
    help="Only runs under a condition in MLflow's filter language; bare names are params.",
)
@click.option("--metric", metavar="NAME", help="What to compare by.  [default: final/shifted_accuracy]")
@click.option(
    "--margin", type=float, metavar="X", help="Difference within which arms are tied, in points.  [default: 1]"
)
@click.option("--output", type=FolderType(), metavar="DIR", help="Write the report and its figures to a folder.")
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"
)
@click.option("--no-track", is_flag=True, help="Record no comparison run in MLflow.")
@json_option
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def compare(
    run_ids: tuple[str, ...],
    experiment: str | None,
    where: str | None,
    metric: str | None,
    margin: float | None,
    output: Path | None,
    tracking_uri: str | None,
    no_track: bool,
    as_json: bool,
    traceback: bool,
) -> None:
    """Say which strategy is better, by how much, how sure, and at what cost, from tracked runs.

    \b
    Examples:
      adaptkit compare
      adaptkit compare --where "strategy != 'scratch'" --output report
      adaptkit compare RUN_ID RUN_ID --metric final/retention --json

    Without run ids, all runs of the experiment are compared; the id of a run that groups others stands for these. The
    comparison is recorded in MLflow with its report.
    """
    from adaptkit.api.compare import judge_tracked, publish
    from adaptkit.cli.views.console import messages
    from adaptkit.cli.views.console import output as results
    from adaptkit.cli.views.results import print_findings
    from adaptkit.comparison.metrics import DEFAULT_METRIC
    from adaptkit.tracking.address import resolve

    problems = [
        f"{option}: no value; leave the option out for its default"
        for option, value in (("--experiment", experiment), ("--metric", metric))
        if value == ""
    ]
    if run_ids and (experiment or where):
        problems.append("name runs by their ids, or by --experiment and --where, not both")
    if margin is not None and not 0 <= margin < float("inf"):
        problems.append(f"--margin: must be at least 0, not {margin:g}")
    if problems:
        raise BadInput(*problems)
    with interruptible():
        findings = judge_tracked(
            run_ids,
            experiment=experiment,
            where=where,
            metric=metric or DEFAULT_METRIC,
            margin=margin,
            tracking_uri=tracking_uri,
            curves=output is not None or not no_track,
        )
        if as_json:
            click.echo(findings.to_json())
        else:
            print_findings(results(), findings)
        recorded = publish(findings, report=output, tracking_uri=tracking_uri, track=not no_track)
    console = messages()
    if output is not None:
        console.print(f"Report:    {output / 'report.html'}", markup=False, soft_wrap=True)
    first = "" if resolve(tracking_uri).is_server else "`adaptkit ui`, then "
    for page in recorded:
        console.print(f"In MLflow: {first}{page}", markup=False, soft_wrap=True)
