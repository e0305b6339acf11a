"""Runs with made-up predictions, to compare without training and without a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
from numpy.typing import NDArray

from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.judge import judge_runs
from adaptkit.comparison.metrics import required
from adaptkit.comparison.records import ComparedRun
from adaptkit.events import Predictions

IMAGES = 200
TRUTH = numpy.arange(IMAGES) % 4
CLASSES = ("a", "b", "c", "d")


def predictions(wrong: NDArray[numpy.bool_], **more: Any) -> Predictions:
    """Return predictions that are wrong for these images."""
    index = numpy.arange(len(wrong))
    truth = index % 4
    predicted = numpy.where(wrong, (truth + 1) % 4, truth)
    return Predictions(index, truth=truth, predicted=predicted, confidence=index, base_predicted=truth, **more)


def make_run(
    strategy: str,
    seed: int,
    wrong: NDArray[numpy.bool_],
    *,
    protocol: str,
    tags: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    clean: Predictions | None = None,
    trainable: float = 10.0,
    **more: Any,
) -> ComparedRun:
    """Return a finished run that is wrong about these target images."""
    target = predictions(wrong, **more)
    metrics = dict.fromkeys(required(True), 1.0)
    metrics |= {"final/shifted_accuracy": target.accuracy, "params/trainable": trainable}
    source = clean or sources(None if protocol != "folds" else int(more["fold"].max()) + 1)
    return ComparedRun(
        name=f"{strategy} seed={seed}",
        run_id=None,
        strategy=strategy,
        arm=strategy,
        options={},
        settings={"protocol": protocol, "dataset": "photos", "target": "folder:scans", **(settings or {})},
        seed=seed,
        status="finished",
        started=seed,
        metrics=metrics | {"final/test_accuracy": source.accuracy},
        tags={"adaptkit.drawn_images": "160", "adaptkit.pool_images": "200", **(tags or {})},
        classes=CLASSES,
        predictions={"shifted": target, "clean": source},
    )


def sources(folds: int | None, wrong: NDArray[numpy.bool_] | None = None) -> Predictions:
    """Return predictions for 50 source images, by the model of each fold."""
    index = numpy.tile(numpy.arange(50), folds or 1)
    truth = index % 4
    predicted = truth if wrong is None else numpy.where(wrong, (truth + 1) % 4, truth)
    fold = None if folds is None else numpy.repeat(numpy.arange(folds), 50)
    return Predictions(index, truth=truth, predicted=predicted, confidence=index, base_predicted=truth, fold=fold)


def chance(seed: int, share: float, images: int = IMAGES) -> NDArray[numpy.bool_]:
    """Return which images a model is wrong about, by chance."""
    wrong: NDArray[numpy.bool_] = numpy.random.default_rng(seed).random(images) < share
    return wrong


def judged(runs: list[ComparedRun], metric: str = "final/shifted_accuracy") -> Comparison:
    (comparison,) = judge_runs(runs, metrics=[metric])
    return comparison


def folds_of(seed: int) -> NDArray[numpy.int64]:
    return numpy.random.default_rng(seed).permutation(IMAGES) % 5
