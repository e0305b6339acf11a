"""The command that puts a PEFT adapter into the store."""

from __future__ import annotations

import json
from pathlib import Path

import click

from adaptkit.cli.options import FolderType, json_option, plugin_option
from adaptkit.names import FINAL_SHIFTED_ACCURACY, FINAL_TEST_ACCURACY
from adaptkit.system.signals import interruptible


@click.command("import-peft")
@click.argument("folder", type=FolderType(), metavar="DIR")
@click.option("--onto", required=True, metavar="RUN_ID", help="The run whose base, classes and data it is for.")
@click.option("--name", metavar="NAME", help="Name of the run.  [default: imported DIR]")
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"
)
@plugin_option
@json_option
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def import_peft(
    folder: Path,
    onto: str,
    name: str | None,
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    as_json: bool,
    traceback: bool,
) -> None:
    """Put a PEFT folder into the store as a finished run.

    \b
    Example:
      adaptkit import-peft my_adapter --onto RUN_ID

    The adapter is put onto the base of a run, or onto a base run, and evaluated on its test sets. `predict` and
    `export` take the new run like any other; `compare` leaves it alone.
    """
    from adaptkit.api.import_peft import import_peft as import_folder
    from adaptkit.cli.views.console import messages, output

    console = messages()
    with interruptible():
        record = import_folder(
            folder,
            onto,
            name=name,
            tracking_uri=tracking_uri,
            plugins=plugin,
            notice=lambda line: console.print(line, markup=False, soft_wrap=True),
        )
    if as_json:
        click.echo(json.dumps(record.to_dict(), indent=2))
        return
    shown = output()
    shown.print(f"Imported as run {record.run_id} ({record.name})", markup=False, soft_wrap=True)
    both = FINAL_TEST_ACCURACY in record.metrics
    titles = {
        FINAL_TEST_ACCURACY: "clean test",
        FINAL_SHIFTED_ACCURACY: "shifted test" if both else "target's test set",
    }
    for key, title in titles.items():
        if key in record.metrics:
            shown.print(f"  accuracy, {title}: {record.metrics[key]:.1%}", markup=False, soft_wrap=True)
