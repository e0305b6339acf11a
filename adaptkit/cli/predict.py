"""`adaptkit predict`: classify images with the model of a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptkit.cli.options import ImagePath, output_options, plugin_option, store_option
from adaptkit.errors import BadInput
from adaptkit.system.signals import interruptible
from adaptkit.system.streams import printable

if TYPE_CHECKING:
    from adaptkit.models.preprocessing import Prediction

#: number of table rows to print at a time
PAGE = 200


@click.command()
@click.argument("run_id")
@click.argument("paths", nargs=-1, required=True, type=ImagePath(), metavar="PATH...")
@click.option("--top-k", type=click.IntRange(min=1), default=1, metavar="N", help="Classes per image.  [default: 1]")
@click.option("--csv", "as_csv", is_flag=True, help="Print a CSV table.")
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
    top_k: int,
    as_json: bool,
    as_csv: bool,
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
      adaptkit predict RUN_ID photos --top-k 3 --csv > predictions.csv

    The run must be finished. For a folder, all images in it and in its subfolders are classified. Images are converted
    to the channels and the size of the model, as in training. Files that are not images are listed at the end, and the
    exit code is 2.
    """
    if as_json and as_csv:
        raise BadInput("--json and --csv: choose one")
    from adaptkit.api.predict import PredictRequest, stream_predictions
    from adaptkit.cli.views.console import messages, print_line

    bad: list[str] = []
    with interruptible():
        request = PredictRequest(
            run=run_id,
            images=paths,
            top_k=top_k,
            batch_size=batch_size,
            device=device,
            tracking_uri=tracking_uri,
            plugins=plugin,
        )
        classes, predictions = stream_predictions(request, bad.append)
        if as_json:
            _print_json(run_id, classes, predictions)
        elif as_csv:
            _print_csv(predictions, min(top_k, len(classes)))
        else:
            _print_table(predictions)
    if bad and not skip_bad_images:
        raise BadInput(*bad, f"{_files(len(bad))} could not be read; --skip-bad-images skips them")
    for line in bad:
        print_line(messages(), f"Skipped: {line}")


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _shown(path: Path) -> str:
    """Return a path as printable text, also if its bytes are not valid UTF-8."""
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


def _print_json(run_id: str, classes: Iterable[str], predictions: Iterator[Prediction]) -> None:
    """Print one JSON document, one prediction at a time: a folder may have millions of images."""
    head = json.dumps({"run_id": run_id, "classes": list(classes)}, indent=2)
    click.echo(f'{head[:-2]},\n  "predictions": [', nl=False)
    for number, prediction in enumerate(predictions):
        (name, confidence), *_ = prediction.ranked
        row = {
            "path": _shown(prediction.path),
            "class": name,
            "confidence": round(confidence, 6),
            "top": [{"class": other, "confidence": round(share, 6)} for other, share in prediction.ranked],
        }
        click.echo(f"{',' if number else ''}\n    {json.dumps(row)}", nl=False)
    click.echo("\n  ]\n}")


def _print_csv(predictions: Iterator[Prediction], count: int) -> None:
    """Print a row for each image, with two columns for each of the `count` best classes."""
    names = ["path", "class", "confidence"]
    names += [f"{name}_{rank}" for rank in range(2, count + 1) for name in ("class", "confidence")]
    click.echo(_csv_row(names), nl=False)
    for prediction in predictions:
        ranked = [cell for name, share in prediction.ranked for cell in (name, f"{share:.6f}")]
        click.echo(_csv_row([_shown(prediction.path), *ranked]), nl=False)


def _csv_row(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(printable, cells))
    return text.getvalue()


def _print_table(predictions: Iterator[Prediction]) -> None:
    """Print a table, one page at a time."""
    from rich.table import Table
    from rich.text import Text

    from adaptkit.cli.views.console import output

    console = output()
    width, first = 0, True
    while page := list(islice(predictions, PAGE)):
        width = max(width, *(len(printable(_shown(prediction.path), keep="")) for prediction in page))
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=first)
        table.add_column("image", overflow="fold", min_width=min(width, console.width // 2))
        table.add_column("class", overflow="fold")
        table.add_column("confidence", justify="right", min_width=10)
        if len(page[0].ranked) > 1:
            table.add_column("then", overflow="fold")
        for prediction in page:
            (name, confidence), *others = prediction.ranked
            cells = [printable(_shown(prediction.path), keep=""), name, f"{confidence:.1%}"]
            if others:
                cells.append(", ".join(f"{other} {share:.1%}" for other, share in others))
            table.add_row(*(Text(printable(cell)) for cell in cells))
        console.print(table)
        first = False
