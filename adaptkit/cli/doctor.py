"""`adaptkit doctor`: diagnose problems with the machine, the plugins and the store."""

from __future__ import annotations

import dataclasses
import sys

import click

from adaptkit.cli.options import output_options, parse_duration, plugin_option, store_option
from adaptkit.errors import BadInput
from adaptkit.system.streams import printable


@click.command()
@store_option
@click.option("--end-stale-runs", is_flag=True, help="Mark runs as killed whose process no longer exists.")
@click.option(
    "--older-than",
    metavar="TIME",
    help="With --end-stale-runs: also runs of other machines without a heartbeat for this time: 2h, 1d.",
)
@plugin_option
@output_options
def doctor(
    tracking_uri: str | None,
    end_stale_runs: bool,
    older_than: str | None,
    plugin: tuple[str, ...],
    as_json: bool,
) -> None:
    """Diagnose problems with this installation and suggest fixes.

    \b
    Example: adaptkit doctor

    The command checks versions, device, cache, plugins, store and unfinished runs. The exit code is 1 if a check
    fails. The output contains no passwords, so that you can paste it into a bug report.
    """
    from adaptkit.api.doctor import diagnose
    from adaptkit.cli.views.console import print_json

    seconds = None if older_than is None else parse_duration("--older-than", older_than)
    if seconds is not None and not end_stale_runs:
        raise BadInput("--older-than: requires --end-stale-runs; add it")
    findings = []
    for finding in diagnose(tracking_uri, plugin, end_stale_runs=end_stale_runs, older_than=seconds):
        findings.append(finding)
        if not as_json:
            click.echo(printable(f"{finding.state:<5}  {finding.name:<11}  {finding.text}"))
            if finding.mend is not None:
                word = "fix" if finding.state == "wrong" else "hint"
                click.echo(printable(f"{'':<20}{word}: {finding.mend}"))
    wrong = sum(finding.state == "wrong" for finding in findings)
    if as_json:
        print_json({"findings": [dataclasses.asdict(finding) for finding in findings], "wrong": wrong})
    if wrong:
        sys.exit(1)
