"""Write the artifacts of a run: configuration, environment, reports, predictions and figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from adaptkit.comparison.metrics import DOMAINS
from adaptkit.events import Predictions, RunResult, RunStart
from adaptkit.names import (
    CLASSIFICATION_REPORT,
    CONFIG_FILE,
    CONFUSION_FIGURE,
    CURVES_FILE,
    ENVIRONMENT_FILE,
    RELIABILITY_FILE,
    SAMPLES_FILE,
)
from adaptkit.tracking.environment import environment
from adaptkit.tracking.predictions import write_predictions


def write_artifacts(folder: Path, run: RunStart, result: RunResult) -> None:
    """Write all artifacts of a run to a folder without subfolders, which MLflow's compare page does not show."""
    # A late import: it loads matplotlib.
    from adaptkit.reports.figures.run import draw_confusion, draw_curves, draw_reliability, draw_samples, save

    (folder / CONFIG_FILE).write_text(result.config, encoding="utf-8")
    (folder / ENVIRONMENT_FILE).write_text(environment(), encoding="utf-8")
    for name, predictions in result.predictions.items():
        _write_report(folder / f"{CLASSIFICATION_REPORT}{name}", predictions, result.classes)
        figure = draw_confusion(predictions, result.classes, f"{run.name}: {DOMAINS[name]} test set")
        save(figure, folder / f"{CONFUSION_FIGURE}{name}.png")
    # A base that was not trained has neither epochs nor predictions.
    if result.predictions:
        write_predictions(folder, result, is_base=run.kind == "base")
    if result.epochs:
        save(draw_curves(result.epochs, run.name), folder / CURVES_FILE)
    if result.samples:
        save(draw_samples(result, run.name), folder / SAMPLES_FILE)
    if result.calibration is not None:
        save(draw_reliability(result.calibration, run.name), folder / RELIABILITY_FILE)
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
