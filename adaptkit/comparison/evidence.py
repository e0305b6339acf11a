"""Infer scores of strategies and their differences from compared runs, by the protocol that the runs share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy

from adaptkit.comparison.inference import (
    Inference,
    infer_draws,
    infer_fits,
    infer_folds,
    infer_given,
    infer_runs,
)
from adaptkit.comparison.metrics import ACCURACIES, BASE_RELATIVE, Measures, find_measures, is_cost
from adaptkit.comparison.records import ComparedRun, Estimate
from adaptkit.comparison.scores import Answers, Integers, Scored, mean_score, right, score
from adaptkit.events import Predictions
from adaptkit.names import DIVISION_TAG, FINAL_SHIFTED_ACCURACY, HELD_OUT_TAG
from adaptkit.settings.request import OVERLAPPING

#: the scores of a run: one, or one for each fit if every fit is evaluated on the same test images
Scores = tuple[Scored, ...]


@dataclass(frozen=True)
class Design:
    """How the runs of a comparison use labels: the protocol and its folds, and the number of groups of images.

    `held_out` are the values of the column whose values are held out, in the order of the folds. `measures` are the
    metrics that are computed from predictions.
    """

    protocol: str
    folds: int
    groups: int | None
    held_out: tuple[str, ...]
    measures: Measures = field(repr=False)

    def tested_on(self, key: str) -> str | None:
        """Return the test set whose predictions determine a metric; None for other metrics."""
        return "shifted" if key in self.measures else ACCURACIES.get(key)

    def repeats(self, runs: Sequence[object]) -> bool:
        """Return whether training is repeated with other images or seeds, so that a verdict is about strategies."""
        return self.protocol == "folds" or len(runs) > 1


def find_design(run: ComparedRun, measures: Measures | None = None) -> Design:
    """Return the design of the comparison that a run is a part of."""
    target = run.predictions["shifted"]
    return Design(
        protocol=run.settings.get("protocol", OVERLAPPING),
        folds=0 if target.fold is None else int(target.fold.max()) + 1,
        groups=None if target.groups is None else len(set(target.groups)),
        held_out=tuple(json.loads(run.tags.get(HELD_OUT_TAG, "[]"))),
        measures=find_measures() if measures is None else measures,
    )


def score_run(run: ComparedRun, key: str, design: Design, *, domain: int | None = None) -> Scores | None:
    """Return the scores of a run by a metric; None if the metric cannot be computed from predictions.

    With `domain`, only images of this fold count.
    """
    test = design.tested_on(key)
    if test is None:
        return None
    predictions = run.predictions[test]
    parts: list[tuple[Predictions, Integers | None]]
    if domain is not None:
        parts = [(_rows(predictions, domain), None)]
    elif predictions.fold is not None and test == "clean":
        parts = [(_rows(predictions, fold), None) for fold in range(int(predictions.fold.max()) + 1)]
    else:
        parts = [(predictions, _units(predictions, design))]
    scored = [_score(part, key, len(run.classes), design, units=units) for part, units in parts]
    found = tuple(one for one in scored if one is not None)
    return found if len(found) == len(parts) else None


def _rows(predictions: Predictions, fold: int) -> Predictions:
    """Return the predictions of one fold, without ids."""
    rows = predictions.fold == fold
    base = predictions.base_predicted
    return Predictions(
        image=predictions.image[rows],
        truth=predictions.truth[rows],
        predicted=predictions.predicted[rows],
        confidence=predictions.confidence[rows],
        base_predicted=None if base is None else base[rows],
        probabilities=None if predictions.probabilities is None else predictions.probabilities[rows],
        groups=None if predictions.groups is None else tuple(numpy.array(predictions.groups)[rows].tolist()),
    )


def _units(predictions: Predictions, design: Design) -> Integers | None:
    """Return the number of the group of each image, or of its held-out value; None if images are independent."""
    if design.held_out:
        return numpy.asarray(predictions.fold, dtype=numpy.int64)
    if predictions.groups is None:
        return None
    return numpy.unique(numpy.array(predictions.groups), return_inverse=True)[1].astype(numpy.int64)


def _folds_of_units(predictions: Predictions, design: Design) -> Integers:
    """Return the number of the fold of each unit."""
    folds, units = numpy.asarray(predictions.fold, dtype=numpy.int64), _units(predictions, design)
    return folds if units is None else folds[numpy.unique(units, return_index=True)[1]]


def _score(predictions: Predictions, key: str, classes: int, design: Design, units: Integers | None) -> Scored | None:
    answers = answers_of(predictions, classes)
    if key not in ACCURACIES:
        return score(design.measures[key], answers, units)
    values = right(answers)
    if key in BASE_RELATIVE and predictions.base_predicted is not None:
        values -= predictions.base_predicted == predictions.truth
    return mean_score(values, units)


def answers_of(predictions: Predictions, classes: int) -> Answers:
    """Return predictions in the form of which metrics compute scores."""
    groups = predictions.groups
    return Answers(
        predicted=numpy.asarray(predictions.predicted, dtype=numpy.int64),
        truth=numpy.asarray(predictions.truth, dtype=numpy.int64),
        classes=classes,
        probabilities=None if predictions.probabilities is None else numpy.asarray(predictions.probabilities, float),
        groups=None if groups is None else numpy.unique(numpy.array(groups), return_inverse=True)[1],
    )


def subtract(a: Scores, b: Scores) -> Scores:
    """Return the differences of the scores of two paired runs."""
    return tuple(one - other for one, other in zip(a, b, strict=True))


def infer(scores: Sequence[Scores], runs: Sequence[ComparedRun], key: str, design: Design) -> Inference:
    """Estimate the mean score of runs, or the mean difference of `runs` and their partners, for new images."""
    rows = [row for one in scores for row in one]
    values, influence = [row.value for row in rows], numpy.stack([row.influence for row in rows])
    resolution = 1 / _images(runs[0], str(design.tested_on(key)))
    if design.protocol == "folds" and design.tested_on(key) == "clean":
        return infer_fits(values, influence, folds=design.folds, resolution=resolution)
    if design.protocol == "folds":
        folds = [_folds_of_units(run.predictions["shifted"], design) for run in runs]
        return infer_folds(values, influence, folds=folds, resolution=resolution)
    divisions = [int(run.tags.get(DIVISION_TAG, 0)) for run in runs]
    drawn = infer_draws(values, influence, divisions=divisions, resolution=resolution) if covers_pools(runs) else None
    return drawn or infer_given(values, influence, resolution=resolution)


def infer_domain(scores: Sequence[Scores]) -> Inference:
    """Estimate as `infer` does for the images of one held-out value: its models share their training images."""
    rows = [row for one in scores for row in one]
    influence = numpy.stack([row.influence for row in rows])
    return infer_given([row.value for row in rows], influence, resolution=1 / influence.shape[1])


def covers_pools(runs: Sequence[ComparedRun]) -> bool:
    """Return whether runs tell what other pools of labelled images would give: some are disjoint draws of one."""
    divisions = [run.tags.get(DIVISION_TAG) for run in runs if run.settings.get("protocol") == "draws"]
    return len(divisions) > len(set(divisions))


def _images(run: ComparedRun, test: str) -> int:
    """Return the number of different images that are evaluated."""
    predictions = run.predictions[test]
    is_repeated = predictions.fold is not None and test == "clean"
    return int(numpy.sum(predictions.fold == 0)) if is_repeated else len(predictions.truth)


def estimate_arm(runs: Sequence[ComparedRun], key: str, design: Design) -> Estimate:
    """Return the mean of a metric over the runs of an arm, with its interval for new images.

    A metric that cannot be computed from predictions has the interval of independent measurements if it is a cost, and
    none otherwise.
    """
    values = [run.metrics[key] for run in runs]
    if is_cost(key):
        return estimate_cost(values)
    scored = score_runs(runs, key, design)
    return as_estimate(Inference(0.0) if scored is None else infer(scored, runs, key, design), values)


def score_runs(runs: Sequence[ComparedRun], key: str, design: Design) -> list[Scores] | None:
    """Return the scores of all runs; None if one of them has none."""
    scored = [score_run(run, key, design) for run in runs]
    found = [scores for scores in scored if scores is not None]
    return found if len(found) == len(scored) else None


def estimate_cost(values: Sequence[float]) -> Estimate:
    """Return the mean of independent measurements of a cost, with its interval."""
    return as_estimate(infer_runs(values), values)


def estimate_accuracy(values: Sequence[float], images: int, design: Design) -> Estimate:
    """Return the mean accuracy of runs on the same images, of which only the numbers of correct ones are known.

    Over images, the variance is that of a binomial distribution.
    """
    right = numpy.arange(images) < numpy.mean(values) * images
    influence, resolution = [mean_score(right).influence], 1 / images
    if design.protocol == "folds":
        folds = [numpy.arange(images) % design.folds]
        return as_estimate(infer_folds(values, influence, folds=folds, resolution=resolution), values)
    return as_estimate(infer_given(values, influence, resolution=resolution), values)


def as_estimate(inference: Inference, values: Sequence[float]) -> Estimate:
    """Return the mean of the values of runs with the interval of an inference."""
    mean, half = float(numpy.mean(values)), inference.half_width()
    return Estimate(
        mean=mean,
        n=len(values),
        sd=float(numpy.std(values, ddof=1)) if len(values) > 1 else None,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        df=inference.df,
    )


def estimate_domains(runs: Sequence[ComparedRun], design: Design) -> dict[str, Estimate]:
    """Return the target accuracy of an arm on the images of each held-out value, with its interval."""
    accuracies = {}
    for number, name in enumerate(design.held_out):
        scored = [score_run(run, FINAL_SHIFTED_ACCURACY, design, domain=number) for run in runs]
        found = [scores for scores in scored if scores is not None]
        accuracies[name] = as_estimate(infer_domain(found), [scores[0].value for scores in found])
    return accuracies
