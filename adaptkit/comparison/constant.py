"""The best constant answer, which a model must beat before it can be recommended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy

from adaptkit.comparison.evidence import Design, answers_of, infer, score_run, subtract
from adaptkit.comparison.inference import ALPHA
from adaptkit.comparison.records import ArmResult, ComparedRun, Constant, Metric
from adaptkit.comparison.scores import Answers, Floats
from adaptkit.comparison.statistics import holm
from adaptkit.events import Predictions

#: the constant answer that gives every image the shares of the classes as probabilities
SHARES = "the shares of the classes"


def find_constant(run: ComparedRun, metric: Metric, design: Design) -> Constant | None:
    """Return the best constant answer to the evaluated target images; None if a constant answer has no score."""
    measure = design.measures.get(metric.key)
    if measure is None:
        return None
    sign = 1 if metric.higher_is_better else -1
    candidates = _constant_answers(run.predictions["shifted"], run.classes)
    found = [(answers.score(measure), name) for name, answers in candidates]
    known = [(score, name) for score, name in found if numpy.isfinite(score)]
    if not known:
        return None
    score, name = max(known, key=lambda pair: sign * pair[0])
    return Constant(score=score, answer=name)


def beating_constant(arms: Sequence[ArmResult], metric: Metric, design: Design) -> list[ArmResult]:
    """Return the arms with the finding whether each is shown to be better than the best constant answer.

    As for pairs, the p-values are corrected for the number of arms.
    """
    constant = find_constant(arms[0].runs[0], metric, design)
    if constant is None:
        return list(arms)
    sign = 1 if metric.higher_is_better else -1
    tests = []
    for arm in arms:
        differences = []
        for run in arm.runs:
            reached, baseline = (score_run(one, metric.key, design) for one in (run, _answering(run, constant)))
            if reached is not None and baseline is not None:
                differences.append(subtract(reached, baseline))
        tests.append(infer(differences, arm.runs, metric.key, design) if differences else None)
    corrected = iter(holm([test.p or 1.0 for test in tests if test is not None]).tolist())
    return [
        arm
        if test is None
        else dataclasses.replace(arm, beats_constant=next(corrected) < ALPHA and sign * test.mean > 0)
        for arm, test in zip(arms, tests, strict=True)
    ]


def _constant_answers(predictions: Predictions, classes: Sequence[str]) -> Iterator[tuple[str, Answers]]:
    """Yield each constant answer with its name: one class each, then the shares of all classes."""
    answers, count = answers_of(predictions, len(classes)), len(predictions.truth)
    shares: Floats = numpy.bincount(answers.truth, minlength=len(classes)) / count
    for number, name in enumerate(classes):
        if shares[number] > 0:
            yield name, _constant(answers, numpy.eye(len(classes))[number])
    yield SHARES, _constant(answers, shares)


def _constant(answers: Answers, shares: Floats) -> Answers:
    count = len(answers.truth)
    return dataclasses.replace(
        answers,
        predicted=numpy.full(count, int(shares.argmax())),
        probabilities=numpy.tile(shares, (count, 1)),
    )


def _answering(run: ComparedRun, constant: Constant) -> ComparedRun:
    """Return the run as if its model gave the constant answer."""
    predictions = run.predictions["shifted"]
    answers = dict(_constant_answers(predictions, run.classes))[constant.answer]
    changed = dataclasses.replace(predictions, predicted=answers.predicted, probabilities=answers.probabilities)
    return dataclasses.replace(run, predictions={**run.predictions, "shifted": changed})
