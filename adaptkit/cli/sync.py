"""Send to the tracking store what could not be sent while it was away."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from typing import TYPE_CHECKING

import click

from adaptkit.cli.options import json_option
from adaptkit.system.signals import interruptible

if TYPE_CHECKING:
    from adaptkit.api.sync import Synced


@click.command()
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"
)
@click.option("--dry-run", is_flag=True, help="Only list what is left, whatever store it is for.")
@click.option("--discard-refused", is_flag=True, help="Give up what the store will never take, as of deleted runs.")
@json_option
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def sync(tracking_uri: str | None, dry_run: bool, discard_refused: bool, as_json: bool, traceback: bool) -> None:
    """Send to MLflow what runs could not send while the store was away; exits with 1 if anything is still left.

    Runs keep a journal on this machine until the store has all of it. What is sent twice counts once.

    \b
    Examples:
      adaptkit sync
      adaptkit sync --tracking-uri http://HOST:5000
      adaptkit sync --dry-run
    """
    from adaptkit.api.sync import left
    from adaptkit.api.sync import sync as send

    found: list[Synced] = []
    if dry_run:
        found = left()
    else:
        with interruptible():
            for one in send(tracking_uri, discard_refused):
                found.append(one)
                if not as_json:
                    click.echo(_line(one, discard_refused))
    given_up = [one for one in found if one.refused and discard_refused]
    failed = [one for one in found if (one.error is not None or one.elsewhere) and one not in given_up]
    if as_json:
        click.echo(json.dumps({"runs": [dataclasses.asdict(one) for one in found], "left": len(failed)}, indent=2))
    elif dry_run:
        for one in found:
            what = _events(one.events) if one.events else "its end, as killed,"
            click.echo(f"{one.name}: {what} for {one.store}, experiment {one.experiment}")
    if not found and not as_json:
        click.echo("Nothing is left to send.")
    if failed:
        sys.exit(1)


def _line(one: Synced, discarded: bool) -> str:
    if one.elsewhere:
        uri = one.store if "://" in one.store else f"sqlite:///{one.store}"
        return f"{one.name}: left, since it is for another store: adaptkit sync --tracking-uri {shlex.quote(uri)}"
    if one.refused:
        if discarded:
            return f"{one.name}: given up: {one.error}"
        if f"{one.run_id} not found" in (one.error or ""):
            return f"{one.name}: refused: {one.error}; `adaptkit sync --discard-refused` gives its record up"
        restore = f"`mlflow runs restore --run-id {one.run_id}`" if one.run_id else "restore it in MLflow"
        return (
            f"{one.name}: {_events(one.events)} sent, the others are refused: {one.error}; if the run was deleted, "
            f"{restore} brings it back, or `adaptkit sync --discard-refused` gives its record up"
        )
    if one.error is not None:
        return f"{one.name}: {_events(one.events)} sent, the others are kept: {one.error}"
    ended = f"; the run ended as {one.status}" if one.status else ""
    return f"{one.name}: {_events(one.events)} sent{ended} ({one.run_id})"


def _events(count: int) -> str:
    return f"{count} record{'s' * (count != 1)}"
