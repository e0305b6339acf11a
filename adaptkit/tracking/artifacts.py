"""Write and read the artifacts of a run: configuration, environment, reports, predictions and figures."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy

from adaptkit.comparison.metrics import DOMAINS
from adaptkit.events import Predictions, RunResult, RunStart
from adaptkit.names import (
    CLASSIFICATION_REPORT,
    CONFIG_FILE,
    CONFUSION_FIGURE,
    CURVES_FILE,
    ENVIRONMENT_FILE,
    PREDICTIONS_FILE,
    SAMPLES_FILE,
)
from adaptkit.system.files import read_file
from adaptkit.tracking.environment import environment

HEADING = ["test_set", "image", "truth", "prediction", "confidence", "base_prediction"]


def write_predictions(path: Path, result: RunResult, is_base: bool = False) -> None:
    """Write a row for each image of each test set.

    The last column holds the prediction of the base; it is empty if the base has no head for these classes.
    """
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADING)
        for name, rows in result.predictions.items():
            base = rows.predicted if is_base else rows.base_predicted
            base_names = itertools.repeat("") if base is None else [result.classes[number] for number in base]
            columns = zip(rows.image, rows.truth, rows.predicted, rows.confidence, strict=True)
            for (image, truth, predicted, confidence), base_name in zip(columns, base_names, strict=False):
                names = result.classes[truth], result.classes[predicted]
                writer.writerow([name, int(image), *names, f"{confidence:.6f}", base_name])


def read_predictions(
    path: Path, classes: Sequence[str], tests: Sequence[str] = ("clean", "shifted")
) -> dict[str, Predictions]:
    """Read the predictions for these test sets from a run's `predictions.csv`; raise ValueError if one is missing."""
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
    # Python converts the strings to numbers: numpy takes ten times as long.
    image, confidence = numpy.array(list(map(int, columns[1]))), numpy.array(list(map(float, columns[4])))
    truth, predicted = (numpy.array([index[name] for name in columns[number]]) for number in (2, 3))
    base = numpy.array([index[name] if name else -1 for name in columns[5]])
    predictions = {}
    for name in tests:
        rows = sets == name
        if not rows.any():
            raise ValueError(f"no {name} test set")
        predictions[name] = Predictions(
            image=image[rows],
            truth=truth[rows],
            predicted=predicted[rows],
            confidence=confidence[rows],
            base_predicted=base[rows] if (base[rows] >= 0).all() else None,
        )
    return predictions


def write_artifacts(folder: Path, run: RunStart, result: RunResult) -> None:
    """Write all artifacts of a run to a folder without subfolders, which MLflow's compare page does not show."""
    # A late import: it loads matplotlib.
    from adaptkit.reports.figures.run import draw_confusion, draw_curves, draw_samples, save

    (folder / CONFIG_FILE).write_text(result.config, encoding="utf-8")
    (folder / ENVIRONMENT_FILE).write_text(environment(), encoding="utf-8")
    for name, predictions in result.predictions.items():
        _write_report(folder / f"{CLASSIFICATION_REPORT}{name}", predictions, result.classes)
        figure = draw_confusion(predictions, result.classes, f"{run.name}: {DOMAINS[name]} test set")
        save(figure, folder / f"{CONFUSION_FIGURE}{name}.png")
    # A base that was not trained has neither epochs nor predictions.
    if result.predictions:
        write_predictions(folder / PREDICTIONS_FILE, result, is_base=run.kind == "base")
    if result.epochs:
        save(draw_curves(result.epochs, run.name), folder / CURVES_FILE)
    if result.samples:
        save(draw_samples(result, run.name), folder / SAMPLES_FILE)
    for name, path in result.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _write_report(stem: Path, predictions: Predictions, classes: tuple[str, ...]) -> None:
    from sklearn.metrics import classification_report

    options = {"labels": range(len(classes)), "zero_division": 0}
    labels = predictions.truth, predictions.predicted
    text = classification_report(*labels, digits=4, target_names=list(classes), **options)
    stem.with_suffix(".txt").write_text(text, encoding="utf-8")
    # With numbers as names, a class with the name of an average remains.
    averages = classification_report(*labels, output_dict=True, **options)
    by_class = {name: averages.pop(str(number)) for number, name in enumerate(classes)}
    averages["accuracy"] = predictions.accuracy  # scikit-learn omits it if a class is absent
    # As in the reports of scikit-learn, each class also has a key next to the averages, unless an average has its name.
    report = {**by_class, **averages, "classes": by_class}
    stem.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
