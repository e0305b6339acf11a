"""Write the files that belong to a run: reports, predictions, figures, the config that repeats it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from adaptkit.contracts import Predictions, Run, RunResult
from adaptkit.tracking.environment import environment
from adaptkit.tracking.predictions import write_predictions


def write_artifacts(folder: Path, run: Run, result: RunResult) -> None:
    """Write all artifacts of a run into a folder: at its root, since MLflow's compare page shows only those."""
    # Only now: matplotlib need not be there before a figure is drawn.
    from adaptkit.reports.figures import draw_confusion, draw_curves, draw_samples, save, test_name

    (folder / "config.yaml").write_text(result.config, encoding="utf-8")
    (folder / "environment.txt").write_text(environment(), encoding="utf-8")
    for name, predictions in result.predictions.items():
        _write_report(folder / f"classification_report_{name}", predictions, result.classes)
        figure = draw_confusion(predictions, result.classes, f"{run.name}: {test_name(name, result)}")
        save(figure, folder / f"confusion_{name}.png")
    # A base that was not trained has no history, and says nothing yet.
    if result.predictions:
        write_predictions(folder / "predictions.csv", result, is_base=run.kind == "base")
    if result.epochs:
        save(draw_curves(result.epochs, run.name), folder / "curves.png")
    if result.samples:
        save(draw_samples(result, run.name), folder / "samples.png")
    for name, path in result.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _write_report(stem: Path, predictions: Predictions, classes: tuple[str, ...]) -> None:
    from sklearn.metrics import classification_report

    options = {"labels": range(len(classes)), "target_names": list(classes), "zero_division": 0}
    text = classification_report(predictions.truth, predictions.predicted, digits=4, **options)
    stem.with_suffix(".txt").write_text(text, encoding="utf-8")
    report = classification_report(predictions.truth, predictions.predicted, output_dict=True, **options)
    report["accuracy"] = predictions.accuracy  # left out by scikit-learn when a class is absent
    stem.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
