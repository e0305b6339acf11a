"""`adaptkit resume`: resume interrupted runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import plugin_option, progress_options, report_option, store_option
from adaptkit.errors import BadInput
from adaptkit.system.imports import uncollected
from adaptkit.system.signals import interruptible

if TYPE_CHECKING:
    from adaptkit.api.resume import Attempt, ResumeRequest, Watch


@click.command()
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID]...")
@click.option("--all", "every", is_flag=True, help="Resume every interrupted run of this machine.")
@store_option
@plugin_option
@report_option
@progress_options
def resume(
    run_ids: tuple[str, ...],
    every: bool,
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    report: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Resume interrupted runs.

    \b
    Examples:
      adaptkit resume 4c2d9bd0c6a14bd4a4ae4cd3f2d9aa7b
      adaptkit resume --all

    Each run continues from its last checkpoint, in its MLflow run. Its metrics (except times and memory) and its
    adapter are the same as without the interruption. The id of a parent run resumes all unfinished runs of its
    command. Without --report, a report goes to the folder of the interrupted command, if that named one. The exit code
    is 1 if a run fails.
    """
    if every == bool(run_ids):
        raise BadInput("name the ids of runs, or use --all for every interrupted run" + (", not both" if every else ""))
    if report is not None and (every or len(set(run_ids)) > 1):
        raise BadInput("--report: each comparison has its own report; resume one run at a time")
    from adaptkit.cli.views.console import messages, print_line

    console = messages()

    def notice(line: str) -> None:
        if not quiet:
            print_line(console, line)

    with uncollected():
        from adaptkit.api.resume import ResumeRequest, Watch
        from adaptkit.cli.run import show_progress
        from adaptkit.system.hardware import keep_freed_memory

    keep_freed_memory()
    watch = Watch(notice, lambda plugins: show_progress(plugins, console, quiet))
    with interruptible():
        if every:
            _resume_all(tracking_uri, plugin, watch=watch, as_json=as_json, quiet=quiet)
        else:
            request = ResumeRequest(
                tracking_uri=tracking_uri, plugins=plugin, report=None if report is None else report.absolute()
            )
            _resume_named(run_ids, request, watch=watch, as_json=as_json, quiet=quiet)


def _resume_named(run_ids: tuple[str, ...], request: ResumeRequest, watch: Watch, as_json: bool, quiet: bool) -> None:
    from adaptkit.api.resume import resume_run
    from adaptkit.cli.run import print_results, raise_failures
    from adaptkit.cli.views.console import print_json
    from adaptkit.resumption.interrupted import open_stopped

    runs = open_stopped(request.tracking_uri)
    outcomes = []
    for run_id in dict.fromkeys(run_ids):
        outcomes.append(resume_run(runs, run_id, request=request, watch=watch))
        if not as_json:
            print_results(outcomes[-1], quiet)
    if as_json:
        documents = [outcome.to_dict() for outcome in outcomes]
        print_json(documents[0] if len(run_ids) == 1 else {"resumed": documents})
    for outcome in outcomes:
        raise_failures(outcome)


def _resume_all(tracking_uri: str | None, plugin: tuple[str, ...], watch: Watch, as_json: bool, quiet: bool) -> None:
    from adaptkit.api.resume import ResumeRequest, resume_all
    from adaptkit.cli.run import print_results
    from adaptkit.cli.views.console import messages, output, print_json, print_line
    from adaptkit.experiment.recovery import damaged_records

    for folder in damaged_records():
        print_line(messages(), f"the checkpoints of a run in {folder} are damaged: remove the folder")
    attempts = []
    for attempt in resume_all(ResumeRequest(tracking_uri=tracking_uri, plugins=plugin), watch):
        attempts.append(attempt)
        if attempt.outcome is not None and not as_json:
            print_results(attempt.outcome, quiet)
    if as_json:
        print_json({"resumed": [_plain(attempt) for attempt in attempts]})
    elif not attempts:
        click.echo("Nothing to resume: this store has no interrupted run of this machine.")
    else:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("run", "id", "state"):
            table.add_column(heading, overflow="fold")
        for attempt in attempts:
            table.add_row(attempt.name, attempt.run_id, attempt.error or "finished")
        output().print(table)
    if any(attempt.error is not None for attempt in attempts):
        sys.exit(1)


def _plain(attempt: Attempt) -> dict[str, Any]:
    return {
        "run_id": attempt.run_id,
        "name": attempt.name,
        "error": attempt.error,
        "outcome": None if attempt.outcome is None else attempt.outcome.to_dict(),
    }
