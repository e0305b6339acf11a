"""Results of single classes on the target test set, and the choice of classes to show when there are many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from adaptkit.comparison.records import ArmResult, ComparedRun
from adaptkit.comparison.statistics import confusion, f1_scores

Floats = NDArray[numpy.float64]

#: maximum number of classes for which a comparison keeps confusion matrices, whose size is the square of the number
MOST_CONFUSION = 100


def class_f1(runs: Sequence[ComparedRun]) -> Floats:
    """Return the F1 of each class, `[runs, classes]`."""
    classes = len(runs[0].classes)
    predictions = [run.predictions["shifted"] for run in runs]
    return numpy.stack([f1_scores(confusion(one.truth, one.predicted, classes)) for one in predictions])


def mean_confusion(runs: Sequence[ComparedRun]) -> Floats:
    """Return the mean share of each true class (row) that was predicted as each class (column)."""
    classes = len(runs[0].classes)
    predictions = [run.predictions["shifted"] for run in runs]
    counts = [confusion(one.truth, one.predicted, classes) for one in predictions]
    rows = numpy.maximum(counts[0].sum(1, keepdims=True), 1)
    mean: Floats = numpy.mean([count / rows for count in counts], axis=0)
    return mean


def confusion_of(arm: ArmResult) -> Floats:
    """Return the mean confusion of an arm, and compute it from the runs if the comparison does not keep it."""
    return numpy.array(arm.confusion) if arm.confusion else mean_confusion(arm.runs)


def select_differing_classes(arms: Sequence[ArmResult], most: int) -> list[int]:
    """Return the classes whose F1 differs most among the arms, in class order.

    For a single arm, return the classes with the lowest F1.
    """
    scores = numpy.array([arm.class_f1 for arm in arms])
    weight = scores.max(0) - scores.min(0) if len(arms) > 1 else -scores[0]
    return sorted(numpy.argsort(-weight, kind="stable")[:most].tolist())


def select_confused_classes(cells: Sequence[NDArray[numpy.generic]], most: int) -> list[int]:
    """Return the classes of the largest off-diagonal cells of these matrices `[classes, classes]`, in class order.

    Among equal cells, the first ones are used. If too few classes are confused, the first classes fill the list.
    """
    size = numpy.max([numpy.abs(matrix) for matrix in cells], axis=0).astype(float)
    size = numpy.maximum(size, size.T)
    rows, columns = numpy.nonzero(numpy.triu(size, 1))
    order = numpy.argsort(-size[rows, columns], kind="stable")
    pairs = zip(rows[order].tolist(), columns[order].tolist(), strict=True)
    chosen: dict[int, None] = {}
    for pair in (*pairs, *((index, index) for index in range(len(size)))):
        if len(chosen.keys() | set(pair)) <= most:
            chosen.update(dict.fromkeys(pair))
        if len(chosen) == most:
            break
    return sorted(chosen)
