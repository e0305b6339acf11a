"""The table of a run's predictions, `predictions.csv`: how it is written and read."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy

from adaptkit.contracts import Predictions, RunResult
from adaptkit.plain_files import read_file

HEADING = ["test_set", "image", "truth", "prediction", "confidence", "base_prediction"]


def write_predictions(path: Path, result: RunResult, is_base: bool = False) -> None:
    """Write a row for each image of each test set; with nothing for what a base without a head of its own says."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADING)
        for name, found in result.predictions.items():
            base = found.predicted if is_base else found.base_predicted
            before = itertools.repeat("") if base is None else [result.classes[number] for number in base]
            columns = zip(found.image, found.truth, found.predicted, found.confidence, strict=True)
            for (image, truth, predicted, confidence), said in zip(columns, before, strict=False):
                names = result.classes[truth], result.classes[predicted]
                writer.writerow([name, int(image), *names, f"{confidence:.6f}", said])


def read_predictions(
    path: Path, classes: Sequence[str], tests: Sequence[str] = ("clean", "shifted")
) -> dict[str, Predictions]:
    """Return the predictions of these test sets from a run's `predictions.csv`; raise ValueError if one is missing."""
    try:
        lines = csv.reader(io.StringIO(read_file(path, None).decode(), newline=""))
        heading = next(lines, [])
        columns = list(zip(*lines, strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if heading != HEADING or len(columns) != len(HEADING):
        raise ValueError("not a table of predictions")
    index = {name: number for number, name in enumerate(classes)}
    sets = numpy.array(columns[0])
    # Not by numpy, which takes ten times as long to make numbers of texts.
    image, confidence = numpy.array(list(map(int, columns[1]))), numpy.array(list(map(float, columns[4])))
    truth, predicted = (numpy.array([index[name] for name in columns[number]]) for number in (2, 3))
    base = numpy.array([index[name] if name else -1 for name in columns[5]])
    found = {}
    for name in tests:
        rows = sets == name
        if not rows.any():
            raise ValueError(f"no {name} test set")
        before = base[rows] if (base[rows] >= 0).all() else None
        found[name] = Predictions(image[rows], truth[rows], predicted[rows], confidence[rows], before)
    return found
