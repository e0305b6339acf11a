"""`adaptkit compare`: compare tracked runs."""

from __future__ import annotations

from pathlib import Path

import click

from adaptkit.cli.options import FolderType, metric_option, plugin_option, progress_options, store_option
from adaptkit.errors import BadInput
from adaptkit.names import REPORT_FILE
from adaptkit.plugins.loading import load_plugins
from adaptkit.system.signals import interruptible


@click.command()
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID]...")
@click.option(
    "--experiment",
    metavar="NAME",
    help="Experiment to compare all runs of.  [default: $MLFLOW_EXPERIMENT_NAME or adaptkit]",
)
@click.option(
    "--where",
    metavar="CONDITION",
    help="Compare only runs that match an MLflow filter, e.g. \"lr = '0.001'\"; plain names are parameters.",
)
@metric_option("those of the runs")
@click.option(
    "--margin", type=float, metavar="X", help="Largest difference that counts as a tie, in points.  [default: 1]"
)
@click.option(
    "--output", "--report", type=FolderType(), metavar="DIR", help="Write the report and its figures to this folder."
)
@store_option
@plugin_option
@click.option("--no-track", is_flag=True, help="Do not record the comparison in MLflow.")
@progress_options
def compare(
    run_ids: tuple[str, ...],
    experiment: str | None,
    where: str | None,
    metric: str | None,
    margin: float | None,
    output: Path | None,
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    no_track: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare tracked runs: which strategy is better, and how certain that is.

    \b
    Examples:
      adaptkit compare
      adaptkit compare --where "strategy != 'scratch'" --output report
      adaptkit compare RUN_ID RUN_ID --metric final/retention --json

    Without ids, all runs of the experiment are compared. The id of a parent run selects all its runs. The comparison
    and its report are recorded in MLflow.
    """
    from adaptkit.api.compare import judge_tracked, publish
    from adaptkit.cli.views.console import messages, print_json, print_line
    from adaptkit.cli.views.console import output as results
    from adaptkit.cli.views.results import print_findings
    from adaptkit.tracking.address import resolve

    problems = [
        f"{option}: the value is empty; leave the option out for its default"
        for option, value in (("--experiment", experiment), ("--metric", metric))
        if value == ""
    ]
    if run_ids and (experiment or where):
        problems.append("select runs by their ids, or with --experiment and --where, not both")
    if margin is not None and not 0 <= margin < float("inf"):
        problems.append(f"--margin: must be at least 0, not {margin:g}")
    if problems:
        raise BadInput(*problems)
    plugins = load_plugins(plugin)
    plugins.require_sound()
    with interruptible():
        findings = judge_tracked(
            run_ids,
            experiment=experiment,
            where=where,
            metrics=tuple(name.strip() for name in (metric or "").split(",") if name.strip()),
            margin=margin,
            tracking_uri=tracking_uri,
            plugins=plugins,
            curves=output is not None or not no_track,
        )
        if as_json:
            print_json(findings.to_dict())
        else:
            print_findings(results(), findings)
        recorded = publish(findings, report=output, tracking_uri=tracking_uri, track=not no_track)
    if quiet:
        return
    console = messages()
    if output is not None:
        print_line(console, f"Report:    {output / REPORT_FILE}")
    first = "" if resolve(tracking_uri).is_server else "`adaptkit ui`, then "
    for page in recorded:
        print_line(console, f"In MLflow: {first}{page}")
