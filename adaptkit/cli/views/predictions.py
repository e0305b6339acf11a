"""Show the predictions of `adaptkit predict`: a table on a terminal, or rows as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from adaptkit.cli.views.console import output
from adaptkit.errors import BadInput
from adaptkit.models.preprocessing import Prediction
from adaptkit.system.files import replacing
from adaptkit.system.streams import print_file, printable
from adaptkit.tracking.predictions import PATH, PROBABILITY, probability_text

#: number of rows to print or write at a time: a folder may have millions of images
PAGE = 200
#: column of the predicted class
PREDICTION = "prediction"


def print_table(predictions: Iterator[Prediction]) -> None:
    """Print a table of the most likely classes, one page at a time."""
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


def write_rows(
    format_name: str,
    path: Path | None,
    predictions: Iterator[Prediction],
    *,
    classes: Sequence[str],
    head: Mapping[str, Any],
    with_top: bool,
) -> None:
    """Write a row for each image as csv, parquet or json, to a file (None: to standard output).

    A JSON document begins with the keys of `head`, and its rows have the key `top` if `with_top`.
    """
    if format_name == "parquet":
        with _file(path) as place:
            _write_parquet(place, predictions, classes)
        return
    with _text(path) as write:
        if format_name == "csv":
            _write_csv(write, predictions, classes)
        else:
            _write_json(write, predictions, head, with_top=with_top)


def _write_csv(write: Callable[[str], object], predictions: Iterator[Prediction], classes: Sequence[str]) -> None:
    stream = csv.writer(_Lines(write), lineterminator="\n")
    stream.writerow(map(printable, [PATH, PREDICTION, *(f"{PROBABILITY}{name}" for name in classes)]))
    for prediction in predictions:
        shares = map(probability_text, prediction.probabilities.values())
        stream.writerow([printable(_shown(prediction.path)), printable(prediction.label), *shares])


def _write_json(
    write: Callable[[str], object], predictions: Iterator[Prediction], head: Mapping[str, Any], *, with_top: bool
) -> None:
    """Write one document, one prediction at a time."""
    write(f'{json.dumps(head, indent=2)[:-2]},\n  "predictions": [')
    for number, prediction in enumerate(predictions):
        row: dict[str, Any] = {PATH: _shown(prediction.path), PREDICTION: prediction.label}
        row |= {f"{PROBABILITY}{name}": _rounded(share) for name, share in prediction.probabilities.items()}
        if with_top:
            row["top"] = [{"class": name, "confidence": _rounded(share)} for name, share in prediction.ranked]
        write(f"{',' if number else ''}\n    {json.dumps(row)}")
    write("\n  ]\n}\n")


def _write_parquet(path: Path, predictions: Iterator[Prediction], classes: Sequence[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    texts, numbers = pyarrow.string(), pyarrow.float32()
    columns = [(PATH, texts), (PREDICTION, texts), *((f"{PROBABILITY}{name}", numbers) for name in classes)]
    schema = pyarrow.schema(columns)
    with parquet.ParquetWriter(path, schema) as writer:
        while page := list(islice(predictions, 50 * PAGE)):
            shares = [[prediction.probabilities[name] for prediction in page] for name in classes]
            cells = [[_shown(prediction.path) for prediction in page], [prediction.label for prediction in page]]
            writer.write_table(pyarrow.table([*map(pyarrow.array, cells), *map(pyarrow.array, shares)], schema=schema))


def _rounded(share: float) -> float:
    return float(probability_text(share))


def _shown(path: Path) -> str:
    """Return a path as text that UTF-8 can encode, also if its bytes are not valid UTF-8."""
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


class _Lines:
    """A file for `csv.writer` that passes each line on."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write


@contextmanager
def _text(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Provide a function that writes text to a file, or to standard output."""
    if path is None:
        yield sys.stdout.write
        sys.stdout.flush()
        return
    with _file(path) as place, place.open("w", encoding="utf-8", newline="") as stream:
        yield stream.write


@contextmanager
def _file(path: Path | None) -> Iterator[Path]:
    """Provide a temporary file that replaces `path` at the end of the block, or that is written to standard output."""
    if path is None:
        with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
            yield Path(folder, "rows")
            print_file(Path(folder, "rows"))
        return
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from None
