"""`adaptkit predict`: classify images with the model of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adaptkit.cli.options import ImagePath, NamedPath, output_options, plugin_option, store_option
from adaptkit.errors import BadInput
from adaptkit.system.signals import interruptible

FORMATS = ("csv", "parquet", "json")


@click.command()
@click.argument("run_id")
@click.argument("paths", nargs=-1, required=True, type=ImagePath(), metavar="PATH...")
@click.option(
    "--top-k", type=click.IntRange(min=1), metavar="N", help="Classes per image, in the table and JSON.  [default: 1]"
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    metavar="|".join(FORMATS),
    help="Write the probability of every class, a row for each image.  [default: a table of the best class]",
)
@click.option("--csv", "as_csv", is_flag=True, help="Short for --format csv.")
@click.option(
    "--output", type=NamedPath(), metavar="FILE", help="Write to this file; its suffix is the default of --format."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, metavar="N", help="Batch size.  [default: 64]")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    metavar="auto|cpu|cuda|mps",
    help="Device to compute on.  [default: auto]",
)
@store_option
@plugin_option
@click.option("--skip-bad-images", is_flag=True, help="Skip files that are not images, and exit with 0.")
@output_options
def predict(
    run_id: str,
    paths: tuple[Path, ...],
    top_k: int | None,
    format_name: str | None,
    as_json: bool,
    as_csv: bool,
    output: Path | None,
    batch_size: int,
    device: str,
    tracking_uri: str | None,
    plugin: tuple[str, ...],
    skip_bad_images: bool,
) -> None:
    """Classify images with the model of a run.

    \b
    Examples:
      adaptkit predict RUN_ID picture.jpg
      adaptkit predict RUN_ID photos --csv > predictions.csv
      adaptkit predict RUN_ID photos --output predictions.parquet

    The run must be finished. A comparison, or a run with folds, stands for its latest refit. For a folder, all images
    in it and in its subfolders are classified. Images are converted to the channels and the size of the model, as in
    training. With --format, each image has a row, in the order of the images: `path`, `prediction`, and `p_CLASS`, the
    probability of each class, as in predictions.csv of a run. Images that cannot be read are listed at the end, and the
    exit code is 2. Files of other formats in a folder are named and not read.
    """
    chosen = _format(format_name, as_csv=as_csv, as_json=as_json, output=output)
    if top_k is not None and chosen in ("csv", "parquet"):
        raise BadInput(f"--top-k: {chosen} has a column for every class; leave --top-k out")
    from adaptkit.api.predict import PredictRequest, stream_predictions
    from adaptkit.cli.views.console import messages, print_line
    from adaptkit.cli.views.predictions import print_table, write_rows
    from adaptkit.data.sets.file_pixels import not_read

    bad: list[str] = []
    others: list[Path] = []
    with interruptible():
        request = PredictRequest(
            run=run_id,
            images=paths,
            top_k=top_k or 1,
            batch_size=batch_size,
            device=device,
            tracking_uri=tracking_uri,
            plugins=plugin,
        )
        used, predictions = stream_predictions(request, bad.append, others.append)
        if used.run_id != run_id:
            print_line(messages(), f"Model: {used.title}, the refit of {run_id}")
        if chosen is None:
            print_table(predictions)
        else:
            head = {"run_id": used.run_id, "strategy": used.strategy, "classes": list(used.classes)}
            write_rows(chosen, output, predictions, classes=used.classes, head=head, with_top=top_k is not None)
    if others:
        print_line(messages(), f"Note: {not_read(list(map(str, others)))}")
    if bad and not skip_bad_images:
        raise BadInput(*bad, f"{_files(len(bad))} could not be read; --skip-bad-images skips them")
    for line in bad:
        print_line(messages(), f"Skipped: {line}")


def _format(name: str | None, *, as_csv: bool, as_json: bool, output: Path | None) -> str | None:
    """Return the format of the rows, or None for the table; raise BadInput if options contradict each other."""
    given = {"--format": name, "--csv": "csv" if as_csv else None, "--json": "json" if as_json else None}
    named = {option: value for option, value in given.items() if value is not None}
    if len(set(named.values())) > 1:
        raise BadInput(f"{' and '.join(named)}: choose one")
    chosen = next(iter(named.values()), None)
    if output is not None:
        if output.exists() and not output.is_file():
            raise BadInput(f"--output: {output} is not a file")
        suffix = output.suffix[1:].lower()
        chosen = chosen or (suffix if suffix in FORMATS else None)
        if chosen is None:
            raise BadInput(f"--output: {output} does not end in .csv, .parquet or .json; choose a --format")
    elif chosen == "parquet" and sys.stdout.isatty():
        raise BadInput("--format parquet cannot be printed on a terminal; name a file with --output FILE")
    return chosen


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"
