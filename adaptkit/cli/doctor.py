"""Say what is wrong with this machine, its plugins and its store, and how to mend it."""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from adaptkit.cli.options import json_option, parse_duration, plugin_option
from adaptkit.errors import BadInput
from adaptkit.system.streams import printable


@click.command()
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"
)
@click.option("--end-stale-runs", is_flag=True, help="End runs whose process is gone, as killed.")
@click.option(
    "--older-than", metavar="TIME", help="With --end-stale-runs: silent ones of other machines, too, after 2h or 1d."
)
@plugin_option
@json_option
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def doctor(
    tracking_uri: str | None,
    end_stale_runs: bool,
    older_than: str | None,
    plugin: tuple[str, ...],
    as_json: bool,
    traceback: bool,
) -> None:
    """Look at versions, device, cache, plugins, store and unfinished runs; exits with 1 if anything is wrong.

    Its output can be pasted into a report: it names no passwords.

    \b
    Example: adaptkit doctor
    """
    from adaptkit.api.doctor import diagnose

    seconds = None if older_than is None else parse_duration("--older-than", older_than)
    if seconds is not None and not end_stale_runs:
        raise BadInput("--older-than: says which runs --end-stale-runs ends; give both")
    found = []
    for finding in diagnose(tracking_uri, plugin, end_stale_runs, seconds):
        found.append(finding)
        if not as_json:
            click.echo(printable(f"{finding.state:<5}  {finding.name:<11}  {finding.text}"))
            if finding.mend is not None:
                word = "to mend it" if finding.state == "wrong" else "hint"
                click.echo(printable(f"{'':<20}{word}: {finding.mend}"))
    wrong = sum(finding.state == "wrong" for finding in found)
    if as_json:
        click.echo(json.dumps({"findings": [dataclasses.asdict(one) for one in found], "wrong": wrong}, indent=2))
    if wrong:
        sys.exit(1)
