"""Test final models over severities of the shift: views of the shifted test's images under multiples of its amounts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from adaptkit.experiment.preparation import Experiment
from adaptkit.severity import ACCURACY, AREA, ZERO_SHOT, area, written
from adaptkit.training.evaluation import predict_logits, share_right
from adaptkit.training.seeding import RandomStream


def accuracies_over(experiment: Experiment, model: nn.Module, shifted: Tensor) -> dict[float, float]:
    """Return a final model's accuracy at each severity; `shifted` are its logits on the shifted test, severity 1.

    The images of one severity are made at a time, and features of none are kept. The model must be set for evaluation.
    """
    labels, precision = experiment.shifted[1], experiment.request.settings.precision
    found = {}
    for severity, shifts in experiment.request.severities.items():
        logits = shifted
        if severity != 1:
            # A stream of its own: a shift that draws from the global generators changes nothing that comes after.
            with RandomStream(0):
                views = experiment.domains.test_under(shifts).to(experiment.device)
                logits = predict_logits(model, views, precision)
        found[severity] = share_right(logits, labels)
    return found


def severity_metrics(accuracies: Mapping[float, float], zero_shot: Mapping[float, float]) -> dict[str, float]:
    """Return the metrics of a run over severities, none without any."""
    found = {f"{ACCURACY}{written(severity)}": value for severity, value in accuracies.items()}
    found |= {f"{ZERO_SHOT}{written(severity)}": value for severity, value in zero_shot.items()}
    whole = area(tuple(accuracies), tuple(accuracies.values()))
    return found if whole is None else found | {AREA: whole}


def write_severities(path: Path, accuracies: Mapping[float, float], zero_shot: Mapping[float, float]) -> None:
    """Write a run's severity.json."""
    severities = tuple(accuracies)
    plain = {
        "severities": severities,
        "accuracy": list(accuracies.values()),
        "zero_shot": list(zero_shot.values()) or None,
        "area": area(severities, tuple(accuracies.values())),
        "zero_shot_area": area(severities, tuple(zero_shot.values())) if zero_shot else None,
    }
    path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
