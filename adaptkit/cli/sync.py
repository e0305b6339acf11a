"""`adaptkit sync`: upload results that were queued while the tracking server was unreachable."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptkit.cli.options import output_options, store_option
from adaptkit.system.signals import interruptible

if TYPE_CHECKING:
    from adaptkit.api.sync import Synced


@click.command()
@store_option
@click.option("--dry-run", is_flag=True, help="List the queued results of all stores, without uploading.")
@click.option("--discard-refused", is_flag=True, help="Delete queued results of runs that the store refuses.")
@output_options
def sync(tracking_uri: str | None, dry_run: bool, discard_refused: bool, as_json: bool) -> None:
    """Upload results that were queued while the tracking server was unreachable.

    \b
    Examples:
      adaptkit sync
      adaptkit sync --tracking-uri http://HOST:5000
      adaptkit sync --dry-run

    Each run keeps a journal on this machine until the store has all its results. Results that the store already has are
    not stored twice. The exit code is 1 if results are still queued.
    """
    from adaptkit.api.sync import queued_runs
    from adaptkit.api.sync import sync as send
    from adaptkit.cli.views.console import print_json

    runs: list[Synced] = []
    if dry_run:
        runs = queued_runs()
    else:
        with interruptible():
            for run in send(tracking_uri, discard_refused):
                runs.append(run)
                if not as_json:
                    click.echo(_line(run, discard_refused))
    discarded = [run for run in runs if run.refused and discard_refused]
    queued = [run for run in runs if (run.error is not None or run.elsewhere) and run not in discarded]
    if as_json:
        print_json({"runs": [dataclasses.asdict(run) for run in runs], "left": len(queued)})
    elif dry_run:
        for run in runs:
            queue = _events(run.events) if run.events else "its end (killed)"
            click.echo(f"{run.name}: {queue} for {run.store}, experiment {run.experiment}")
    if not runs and not as_json:
        click.echo("Nothing to upload.")
    if queued:
        sys.exit(1)


def _line(run: Synced, discarded: bool) -> str:
    """Return the result of one run, with a hint about records that are still queued."""
    from adaptkit.tracking.address import sqlite_address

    if run.elsewhere:
        uri = run.store if "://" in run.store else sqlite_address(Path(run.store)).uri
        return f"{run.name}: for another store; upload it with: adaptkit sync --tracking-uri {shlex.quote(uri)}"
    uploaded = f"{run.name}: {_events(run.events)} uploaded"
    if run.refused:
        discard = "`adaptkit sync --discard-refused` deletes its queue"
        if discarded:
            return f"{run.name}: discarded: {run.error}"
        if f"{run.run_id} not found" in (run.error or ""):
            return f"{run.name}: refused: {run.error}; {discard}"
        restore = f"`mlflow runs restore --run-id {run.run_id}`" if run.run_id else "restoring it in MLflow"
        hint = f"if the run was deleted, {restore} brings it back, or {discard}"
        return f"{uploaded}, the others are refused: {run.error}; {hint}"
    if run.error is not None:
        return f"{uploaded}, the others stay queued: {run.error}"
    ended = f"; the run ended as {run.status}" if run.status else ""
    return f"{uploaded}{ended} ({run.run_id})"


def _events(count: int) -> str:
    return f"{count} record{'s' * (count != 1)}"
