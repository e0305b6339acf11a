"""`adaptkit export`: write the model of a run in another format."""

from __future__ import annotations

from pathlib import Path

import click

from adaptkit.cli.options import FolderType, ImagePath, output_options, plugin_option, store_option
from adaptkit.system.signals import interruptible


@click.command()
@click.argument("run_id")
@click.option("--to", required=True, metavar="FORMAT", help="Format: merged, peft, torch-export, onnx or mlflow.")
@click.option("-o", "--output", required=True, type=FolderType(), metavar="DIR", help="New or empty folder.")
@click.option(
    "--images",
    multiple=True,
    type=ImagePath(),
    metavar="PATH",
    help="Images or folders to verify the export on. Repeatable.  [default: target test set of the run]",
)
@store_option
@plugin_option
@output_options
def export(
    run_id: str,
    to: str,
    output: Path,
    images: tuple[Path, ...],
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export the model of a run to another format.

    \b
    Examples:
      adaptkit export RUN_ID --to merged -o model
      adaptkit export RUN_ID --to mlflow -o served --images photos

    \b
    Formats:
      merged        safetensors of the plain backbone, with the adapter merged into its weights
      peft          a LoRA adapter for Hugging Face PEFT
      torch-export  a program that needs only torch
      onnx          for ONNX Runtime; needs onnx, onnxscript and onnxruntime
      mlflow        for `mlflow models serve` and mlflow.pyfunc

    The exported model is loaded and compared with the model of the run on real images. If the logits differ, the
    export fails and its files are removed.
    """
    from adaptkit.cli.views.console import messages, print_json, print_line
    from adaptkit.cli.views.console import output as results
    from adaptkit.models.formats.format import find_format

    find_format(to)

    from adaptkit.api.export import export as export_run

    console = messages()
    with interruptible():
        record = export_run(
            run_id,
            to,
            output,
            images=images,
            tracking_uri=tracking_uri,
            plugins=plugin,
            notice=lambda line: print_line(console, line),
        )
    if as_json:
        print_json(record.to_dict())
        return
    print_line(results(), f"Exported to {record.folder}: {', '.join(record.files)}")
    for verification in record.verifications:
        print_line(results(), f"Verified: {verification}")
    print_line(results(), f"How to use it: {Path(record.folder, 'README.md')}")
