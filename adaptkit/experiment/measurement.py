"""Measure a finished adaptation run: its accuracies against the base's, and what it costs."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptkit.contracts import Strategy
from adaptkit.errors import RunFailed
from adaptkit.events import Epoch, Predictions
from adaptkit.experiment.prepare import Experiment
from adaptkit.names import (
    FINAL_BASE_TEST_ACCURACY,
    FINAL_GAIN,
    FINAL_RETENTION,
    FINAL_SHIFTED_ACCURACY,
    FINAL_SHIFTED_MACRO_F1,
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
    TIME_EVALUATION_SECONDS,
    TIME_INFERENCE_RATIO,
    TIME_TRAIN_SECONDS,
)
from adaptkit.settings.severities import area, written
from adaptkit.training.evaluation import inference_ratio, predict_logits, share_right
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import Origin, count

#: Logits may differ from the trained model's by this much; large ones by this share.
RELOAD_TOLERANCE = 1e-4
#: images on which the merged model is held against the adapted one
MERGED = 64


def accuracies(
    experiment: Experiment, predictions: Mapping[str, Predictions], base_logits: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the final accuracies; those that the base has a part in only where it knows the classes."""
    from sklearn.metrics import f1_score  # only now: nobody waits for it before training

    shifted = predictions["shifted"]
    f1 = f1_score(shifted.truth, shifted.predicted, average="macro", zero_division=0)
    found = {FINAL_SHIFTED_ACCURACY: shifted.accuracy, FINAL_SHIFTED_MACRO_F1: float(f1)}
    if "clean" not in predictions:
        return found
    clean = predictions["clean"].accuracy
    zero_shot, base_clean = (share_right(base_logits[name], experiment.tests[name][1]) for name in ("shifted", "clean"))
    return {
        FINAL_TEST_ACCURACY: clean,
        **found,
        FINAL_ZERO_SHOT_ACCURACY: zero_shot,
        FINAL_BASE_TEST_ACCURACY: base_clean,
        FINAL_GAIN: shifted.accuracy - zero_shot,
        FINAL_RETENTION: clean - base_clean,
    }


def parameters(model: nn.Module, origin: Origin) -> dict[str, float]:
    """Return the numbers of parameters of an adapted model, and which of them are trained."""
    counts, shares = count(model), origin.shares(model)
    return {
        PARAMS_TOTAL: counts.total,
        PARAMS_TRAINABLE: counts.trainable,
        PARAMS_TRAINABLE_FRACTION: counts.fraction,
        PARAMS_TRAINABLE_HEAD: shares.head,
        PARAMS_TRAINABLE_ADAPTER: shares.adapter,
        PARAMS_TRAINABLE_BASE: shares.base,
    }


def times(experiment: Experiment, epochs: Sequence[Epoch], merged: nn.Module, base: nn.Module) -> dict[str, float]:
    """Return the seconds of training and evaluation, and the merged model's time for a pass over the base's."""
    evaluation = sum(epoch.evaluation_seconds for epoch in epochs)
    images = next(iter(experiment.tests.values()))[0]
    return {
        TIME_TRAIN_SECONDS: sum(epoch.seconds for epoch in epochs) - evaluation,
        TIME_EVALUATION_SECONDS: evaluation,
        TIME_INFERENCE_RATIO: inference_ratio(merged, base, images),
    }


def merged(experiment: Experiment, model: nn.Module, strategy: Strategy) -> nn.Module:
    """Return a copy of an adapted model with the adapter folded in, where the strategy can; raise RunFailed if that
    is another model.
    """
    plain = copy.deepcopy(model)
    if hasattr(strategy, "merge"):
        strategy.merge(plain)
        some = experiment.some(MERGED)
        ours, theirs = (predict_logits(one, some) for one in (plain, model))
        require_same(ours, theirs, f"strategy {strategy.name}: the merged model")
    return plain


def require_same(logits: Tensor, trained: Tensor, whose: str, hint: str = "") -> None:
    """Raise RunFailed if these are not the trained model's logits."""
    if not bool(torch.isfinite(trained).all()):
        raise RunFailed(f"{whose}'s logits are not finite, nor are the trained model's; a lower learning rate may help")
    gap = (logits - trained).abs().max().item()
    if not gap <= RELOAD_TOLERANCE * max(1.0, trained.abs().max().item()):
        raise RunFailed(f"{whose}'s logits differ from the trained model's by {gap:.3g}{hint}")


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
    found = {f"{SEVERITY_ACCURACY}{written(severity)}": value for severity, value in accuracies.items()}
    found |= {f"{SEVERITY_ZERO_SHOT}{written(severity)}": value for severity, value in zero_shot.items()}
    whole = area(tuple(accuracies), tuple(accuracies.values()))
    return found if whole is None else found | {SEVERITY_AREA: whole}


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
