"""The command that takes a run's model out of the store."""

from __future__ import annotations

import json
from pathlib import Path

import click

from adaptkit.cli.options import FolderType, Pictures, json_option, plugin_option
from adaptkit.system.signals import interruptible


@click.command()
@click.argument("run_id")
@click.option("--to", required=True, metavar="FORMAT", help="merged, peft, torch-export, onnx or mlflow.")
@click.option("-o", "--output", required=True, type=FolderType(), metavar="DIR", help="A new or empty folder.")
@click.option(
    "--images",
    multiple=True,
    type=Pictures(),
    metavar="PATH",
    help="Pictures or folders to verify the export on.  [default: the run's shifted test set]  Repeatable.",
)
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"
)
@plugin_option
@json_option
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def export(
    run_id: str,
    to: str,
    output: Path,
    images: tuple[Path, ...],
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    as_json: bool,
    traceback: bool,
) -> None:
    """Write a run's model into a folder, in a format that others read.

    \b
    Examples:
      adaptkit export RUN_ID --to merged -o model
      adaptkit export RUN_ID --to mlflow -o served --images photos

    \b
    Formats:
      merged        safetensors of the plain backbone, the adapter folded in
      peft          a LoRA adapter for Hugging Face PEFT
      torch-export  a program that torch alone runs
      onnx          for ONNX Runtime; needs onnx, onnxscript and onnxruntime
      mlflow        for `mlflow models serve` and mlflow.pyfunc

    What was written is read again and compared with the run's model on real images; if its logits differ, the export
    fails and nothing is left.
    """
    from adaptkit.cli.views.console import messages
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
            notice=lambda line: console.print(line, markup=False, soft_wrap=True),
        )
    if as_json:
        click.echo(json.dumps(record.to_dict(), indent=2))
        return
    shown = results()
    shown.print(f"Exported to {record.folder}: {', '.join(record.files)}", markup=False, soft_wrap=True)
    for verification in record.verifications:
        shown.print(f"Verified: {verification}", markup=False, soft_wrap=True)
    shown.print(f"How to use it: {Path(record.folder, 'README.md')}", markup=False, soft_wrap=True)
