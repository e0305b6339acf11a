"""The command that goes on with runs that stopped."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from adaptkit.cli.options import json_option, plugin_option
from adaptkit.errors import BadInput
from adaptkit.system.imports import uncollected
from adaptkit.system.signals import interruptible

if TYPE_CHECKING:
    from adaptkit.api.resume import Attempt, Watch
    from adaptkit.experiment.outcome import RunOutcome


@click.command()
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID]...")
@click.option("--all", "every", is_flag=True, help="Go on with every run of this machine that stopped.")
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"
)
@plugin_option
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print the results only.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def resume(
    run_ids: tuple[str, ...],
    every: bool,
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    traceback: bool,
) -> None:
    """Go on with runs that were interrupted or killed, in their own MLflow runs, from their last checkpoints.

    They end with the metrics (but times and memory) and the adapters of runs that nobody disturbed. The id of a run
    that groups others stands for all that its command would still have done.

    \b
    Examples:
      adaptkit resume 4c2d9bd0c6a14bd4a4ae4cd3f2d9aa7b
      adaptkit resume --all

    Exits with 1 if one of them fails.
    """
    if every == bool(run_ids):
        raise BadInput("name runs by their ids, or all that stopped with --all" + (", not both" if every else ""))
    from adaptkit.cli.views.console import messages

    console = messages()

    def tell(line: str) -> None:
        if not quiet:
            console.print(line, markup=False, soft_wrap=True)

    with uncollected():
        from adaptkit.api.resume import Watch
        from adaptkit.cli.run import shown
        from adaptkit.system.hardware import keep_freed_memory

    keep_freed_memory()
    watch = Watch(tell, lambda plugins: shown(plugins, console, quiet))
    with interruptible():
        if every:
            _resume_all(tracking_uri, plugin, watch, as_json, quiet)
        else:
            _resume_named(run_ids, tracking_uri, plugin, watch, as_json, quiet)


def _resume_named(
    run_ids: tuple[str, ...],
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    watch: Watch,
    as_json: bool,
    quiet: bool,
) -> None:
    from adaptkit.api.resume import ResumeRequest, resume_run
    from adaptkit.cli.run import raise_failures
    from adaptkit.resumption.interrupted import open_stopped

    runs = open_stopped(tracking_uri)
    request = ResumeRequest(tracking_uri=tracking_uri, plugins=plugin)
    outcomes = []
    for run_id in dict.fromkeys(run_ids):
        outcomes.append(resume_run(runs, run_id, request, watch))
        if not as_json:
            _print(outcomes[-1], quiet)
    if as_json:
        plain = [outcome.to_dict() for outcome in outcomes]
        click.echo(json.dumps(plain[0] if len(run_ids) == 1 else {"resumed": plain}, indent=2, default=str))
    for outcome in outcomes:
        raise_failures(outcome)


def _resume_all(tracking_uri: str | None, plugin: tuple[str, ...], watch: Watch, as_json: bool, quiet: bool) -> None:
    from adaptkit.api.resume import ResumeRequest, resume_all
    from adaptkit.cli.views.console import messages, output
    from adaptkit.experiment.recovery import damaged_records

    for folder in damaged_records():
        line = f"what is kept of a run in {folder} is damaged: it cannot be resumed; remove the folder"
        messages().print(line, markup=False, soft_wrap=True)
    attempts = []
    for attempt in resume_all(ResumeRequest(tracking_uri=tracking_uri, plugins=plugin), watch):
        attempts.append(attempt)
        if attempt.outcome is not None and not as_json:
            _print(attempt.outcome, quiet)
    if as_json:
        click.echo(json.dumps({"resumed": [_plain(attempt) for attempt in attempts]}, indent=2, default=str))
    elif not attempts:
        click.echo("Nothing to resume: no run of this machine that this store knows of has stopped.")
    else:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("run", "id", "now"):
            table.add_column(heading, overflow="fold")
        for attempt in attempts:
            table.add_row(attempt.name, attempt.run_id, attempt.error or "finished")
        output().print(table)
    if any(attempt.error is not None for attempt in attempts):
        sys.exit(1)


def _print(outcome: RunOutcome, quiet: bool) -> None:
    from adaptkit.cli.run import print_way_to_runs
    from adaptkit.cli.views.console import messages, output
    from adaptkit.cli.views.results import print_outcome

    print_outcome(output(), outcome)
    if not quiet:
        print_way_to_runs(messages(), outcome)


def _plain(attempt: Attempt) -> dict[str, Any]:
    return {
        "run_id": attempt.run_id,
        "name": attempt.name,
        "error": attempt.error,
        "outcome": None if attempt.outcome is None else attempt.outcome.to_dict(),
    }
