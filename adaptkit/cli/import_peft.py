"""`adaptkit import-peft`: import an adapter of Hugging Face PEFT as a run."""

from __future__ import annotations

from pathlib import Path

import click

from adaptkit.cli.options import FolderType, output_options, plugin_option, store_option
from adaptkit.names import FINAL_SHIFTED_ACCURACY, FINAL_TEST_ACCURACY
from adaptkit.system.signals import interruptible


@click.command("import-peft")
@click.argument("folder", type=FolderType(), metavar="DIR")
@click.option("--onto", required=True, metavar="RUN_ID", help="Run whose base, classes and data the adapter uses.")
@click.option("--name", metavar="NAME", help="Name of the run.  [default: imported DIR]")
@store_option
@plugin_option
@output_options
def import_peft(
    folder: Path,
    onto: str,
    name: str | None,
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    as_json: bool,
) -> None:
    """Import a LoRA adapter of Hugging Face PEFT as a run.

    \b
    Example: adaptkit import-peft my_adapter --onto RUN_ID

    The adapter is applied to the base of the run (an adaptation run or a base run) and evaluated on its test sets.
    `predict` and `export` accept the new run like any other; `compare` ignores it.
    """
    from adaptkit.api.import_peft import import_peft as import_folder
    from adaptkit.cli.views.console import messages, output, print_json, print_line

    console = messages()
    with interruptible():
        record = import_folder(
            folder,
            onto,
            name=name,
            tracking_uri=tracking_uri,
            plugins=plugin,
            notice=lambda line: print_line(console, line),
        )
    if as_json:
        print_json(record.to_dict())
        return
    print_line(output(), f"Imported as run {record.run_id} ({record.name})")
    for key, title in ((FINAL_TEST_ACCURACY, "source accuracy"), (FINAL_SHIFTED_ACCURACY, "target accuracy")):
        if key in record.metrics:
            print_line(output(), f"  {title}: {record.metrics[key]:.1%}")
