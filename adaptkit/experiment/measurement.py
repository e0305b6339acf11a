"""Compute the metrics of a finished adaptation run: accuracies, parameters and times."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptkit.comparison.metrics import find_measures
from adaptkit.contracts import Strategy
from adaptkit.errors import RunFailed, plugin_fault
from adaptkit.events import Epoch, Predictions
from adaptkit.experiment.prepare import Experiment
from adaptkit.names import (
    FINAL_BASE_TEST_ACCURACY,
    FINAL_GAIN,
    FINAL_RETENTION,
    FINAL_SHIFTED_ACCURACY,
    FINAL_TEST_ACCURACY,
    FINAL_ZERO_SHOT_ACCURACY,
    PARAMS_TOTAL,
    PARAMS_TRAINABLE,
    PARAMS_TRAINABLE_ADAPTER,
    PARAMS_TRAINABLE_BASE,
    PARAMS_TRAINABLE_FRACTION,
    PARAMS_TRAINABLE_HEAD,
    SEVERITY_ACCURACY,
    SEVERITY_AREA,
    SEVERITY_ZERO_SHOT,
    TIME_ALL_FOLDS_SECONDS,
    TIME_EVALUATION_SECONDS,
    TIME_TRAIN_SECONDS,
    TIME_TUNING_SECONDS,
)
from adaptkit.plugins.manager import Plugins, PluginWarning, is_strict
from adaptkit.settings.severities import area, written
from adaptkit.training.evaluation import predict_logits
from adaptkit.training.objective import accuracy, predict_classes
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import Origin

#: largest difference between logits that count as equal; relative for logits above 1
RELOAD_TOLERANCE = 1e-4
#: images on which the merged model is compared with the adapted one
MERGED = 64


def scores(
    experiment: Experiment,
    predictions: Mapping[str, Predictions],
    base_logits: Mapping[str, Tensor],
    plugins: Plugins,
) -> dict[str, float]:
    """Return the final metrics of predictions; those that compare with the base only if it has the same classes."""
    shifted = predictions["shifted"]
    target = target_scores(shifted, len(experiment.domains.classes), plugins)
    if "clean" not in predictions:
        return target
    clean = predictions["clean"].accuracy
    zero_shot, base_clean = (accuracy(base_logits[name], experiment.tests[name][1]) for name in ("shifted", "clean"))
    return {
        FINAL_TEST_ACCURACY: clean,
        **target,
        FINAL_ZERO_SHOT_ACCURACY: zero_shot,
        FINAL_BASE_TEST_ACCURACY: base_clean,
        FINAL_GAIN: shifted.accuracy - zero_shot,
        FINAL_RETENTION: clean - base_clean,
    }


def target_scores(shifted: Predictions, classes: int, plugins: Plugins) -> dict[str, float]:
    """Return every metric of predictions on the target by its name in MLflow, except those that are not defined.

    A metric of a plugin that fails is left out with a warning.
    """
    from adaptkit.comparison.evidence import answers_of

    answers, values = answers_of(shifted, classes), {}
    for key, measure in find_measures(plugins).items():
        try:
            value = answers.score(measure)
        except Exception as error:  # a plugin's own
            if is_strict():
                raise
            warnings.warn(
                f"{plugin_fault(error, type(measure), f'metric {measure.name}')}", PluginWarning, stacklevel=2
            )
            continue
        if math.isfinite(value):
            values[key] = value
    return values | {FINAL_SHIFTED_ACCURACY: shifted.accuracy}


def parameters(model: nn.Module, origin: Origin) -> dict[str, float]:
    """Return the numbers of all and of trained parameters of an adapted model."""
    counts, shares = origin.counts(model), origin.shares(model)
    return {
        PARAMS_TOTAL: counts.total,
        PARAMS_TRAINABLE: counts.trainable,
        PARAMS_TRAINABLE_FRACTION: counts.fraction,
        PARAMS_TRAINABLE_HEAD: shares.head,
        PARAMS_TRAINABLE_ADAPTER: shares.adapter,
        PARAMS_TRAINABLE_BASE: shares.base,
    }


def times(epochs: Sequence[Epoch], *, folds: int = 1, tuning: Sequence[float] = ()) -> dict[str, float]:
    """Return the seconds of training and evaluation of one model; with folds also the seconds of all.

    `tuning` are the seconds of the trials of each fit, if the fits are tuned: their mean is the cost of one model.
    """
    evaluation = sum(epoch.evaluation_seconds for epoch in epochs)
    total = sum(epoch.seconds for epoch in epochs)
    single = {TIME_TRAIN_SECONDS: total - evaluation, TIME_EVALUATION_SECONDS: evaluation}
    if tuning:
        single[TIME_TUNING_SECONDS] = sum(tuning) / len(tuning)
    return single if folds == 1 else single | {TIME_ALL_FOLDS_SECONDS: folds * total + sum(tuning)}


def merged(experiment: Experiment, model: nn.Module, strategy: Strategy) -> nn.Module:
    """Return a copy of an adapted model with the adapter merged into the base's layers, if the strategy can merge.

    Raises RunFailed if the merged model gives other logits.
    """
    plain = copy.deepcopy(model)
    if hasattr(strategy, "merge"):
        strategy.merge(plain)
        images = experiment.first_images(MERGED)
        merged_logits, logits = (predict_logits(one, images) for one in (plain, model))
        require_same(merged_logits, logits, name=f"strategy {strategy.name}: the merged model")
    return plain


def require_same(logits: Tensor, trained: Tensor, *, name: str, hint: str = "") -> None:
    """Raise RunFailed unless these logits equal the trained model's up to rounding."""
    if not bool(torch.isfinite(trained).all()):
        raise RunFailed(f"{name}'s logits are not finite, nor are the trained model's; a lower learning rate may help")
    gap = (logits - trained).abs().max().item()
    if not gap <= RELOAD_TOLERANCE * max(1.0, trained.abs().max().item()):
        raise RunFailed(f"{name}'s logits differ from the trained model's by {gap:.3g}{hint}")


def correct_over(
    experiment: Experiment, model: nn.Module, shifted: Tensor, rows: Tensor | None = None
) -> dict[float, int]:
    """Return the number of target test images that a trained model has right at each severity of the shift.

    `shifted` are its logits on these images under the shift itself, which has severity 1; `rows` are their positions,
    None for all images. Only the images of one severity are in memory at a time. The model must be in evaluation mode.
    """
    labels, precision = experiment.shifted[1], experiment.request.settings.precision
    labels = labels if rows is None else labels[rows.to(labels.device)]
    by_severity = {}
    for severity, shifts in experiment.request.severities.items():
        logits = shifted
        if severity != 1:
            # In its own stream, so that a shift that draws from the global generators does not change later draws.
            with RandomStream(0):
                views = experiment.domains.test_under(shifts).to(experiment.device)
                logits = predict_logits(model, views, precision)
                logits = logits if rows is None else logits[rows.to(logits.device)]
        by_severity[severity] = int((predict_classes(logits) == labels.to(logits.device)).sum())
    return by_severity


def severity_metrics(accuracies: Mapping[float, float], zero_shot: Mapping[float, float]) -> dict[str, float]:
    """Return a run's metrics over severities: accuracies, and the area under them if it is defined."""
    metrics = {f"{SEVERITY_ACCURACY}{written(severity)}": value for severity, value in accuracies.items()}
    metrics |= {f"{SEVERITY_ZERO_SHOT}{written(severity)}": value for severity, value in zero_shot.items()}
    severity_area = area(tuple(accuracies), tuple(accuracies.values()))
    return metrics if severity_area is None else metrics | {SEVERITY_AREA: severity_area}


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
