"""Measure a finished adaptation run: its accuracies against the base's, and what it costs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adaptkit.contracts import Epoch, Predictions, Strategy
from adaptkit.errors import RunFailed
from adaptkit.experiment.preparation import Experiment
from adaptkit.training.evaluation import inference_ratio, predict_logits, share_right
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
    found = {"final/shifted_accuracy": shifted.accuracy, "final/shifted_macro_f1": float(f1)}
    if "clean" not in predictions:
        return found
    clean = predictions["clean"].accuracy
    zero_shot, base_clean = (share_right(base_logits[name], experiment.tests[name][1]) for name in ("shifted", "clean"))
    return {
        "final/test_accuracy": clean,
        **found,
        "final/zero_shot_accuracy": zero_shot,
        "final/base_test_accuracy": base_clean,
        "final/gain": shifted.accuracy - zero_shot,
        "final/retention": clean - base_clean,
    }


def parameters(model: nn.Module, origin: Origin) -> dict[str, float]:
    """Return the numbers of parameters of an adapted model, and which of them are trained."""
    counts, shares = count(model), origin.shares(model)
    return {
        "params/total": counts.total,
        "params/trainable": counts.trainable,
        "params/trainable_fraction": counts.fraction,
        "params/trainable_head": shares.head,
        "params/trainable_adapter": shares.adapter,
        "params/trainable_base": shares.base,
    }


def times(experiment: Experiment, epochs: Sequence[Epoch], merged: nn.Module, base: nn.Module) -> dict[str, float]:
    """Return the seconds of training and evaluation, and the merged model's time for a pass over the base's."""
    evaluation = sum(epoch.evaluation_seconds for epoch in epochs)
    images = next(iter(experiment.tests.values()))[0]
    return {
        "time/train_seconds": sum(epoch.seconds for epoch in epochs) - evaluation,
        "time/evaluation_seconds": evaluation,
        "time/inference_ratio": inference_ratio(merged, base, images),
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
