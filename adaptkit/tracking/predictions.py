"""The table of a run's predictions, `predictions.csv`: how it is written and read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy

from adaptkit.contracts import Predictions, RunResult

HEADING = ["test_set", "image", "truth", "prediction", "confidence", "base_prediction"]


def write_predictions(path: Path, result: RunResult) -> None:
    """Write a row for each image of each test set."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADING)
        for name, found in result.predictions.items():
            base = found.base_predicted if found.base_predicted is not None else found.predicted
            columns = (found.image, found.truth, found.predicted, found.confidence, base)
            for image, truth, predicted, confidence, before in zip(*columns, strict=True):
                names = result.classes[truth], result.classes[predicted]
                writer.writerow([name, int(image), *names, f"{confidence:.6f}", result.classes[before]])


def read_predictions(path: Path, classes: Sequence[str]) -> dict[str, Predictions]:
    """Return the predictions of each test set from a run's `predictions.csv`; raise ValueError if it is none."""
    with path.open(newline="", encoding="utf-8") as stream:
        lines = csv.reader(stream)
        heading = next(lines, [])
        columns = list(zip(*lines, strict=True))
    if heading != HEADING or not columns:
        raise ValueError("not a table of predictions")
    index = {name: number for number, name in enumerate(classes)}
    sets = numpy.array(columns[0])
    # Not by numpy, which takes ten times as long to make numbers of texts.
    image, confidence = numpy.array(list(map(int, columns[1]))), numpy.array(list(map(float, columns[4])))
    truth, predicted, base = (numpy.array([index[name] for name in columns[number]]) for number in (2, 3, 5))
    found = {}
    for name in ("clean", "shifted"):
        rows = sets == name
        if not rows.any():
            raise ValueError(f"no {name} test set")
        found[name] = Predictions(image[rows], truth[rows], predicted[rows], confidence[rows], base[rows])
    return found
