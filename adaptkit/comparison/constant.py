"""The best constant answer, which a model must beat before it can be recommended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy

from adaptkit.comparison.evidence import Design, answers_of, infer, score_runs, subtract
from adaptkit.comparison.inference import ALPHA, Inference
from adaptkit.comparison.metrics import DEFAULT_METRIC
from adaptkit.comparison.records import ArmResult, ComparedRun, Constant, Metric
from adaptkit.comparison.scores import Answers, Floats
from adaptkit.comparison.statistics import holm
from adaptkit.events import Predictions

#: the constant answer that gives every image the shares of the classes as probabilities
SHARES = "the shares of the classes"
#: largest number of classes that are all tried as constant answers
MOST_CLASSES = 20


def find_constant(run: ComparedRun, metric: Metric, design: Design) -> Constant | None:
    """Return the best constant answer to the evaluated target images; None if it has no score, or no error."""
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
    if not metric.higher_is_better and score <= 0:
        return None  # an error of 0, such as the calibration error of the shares, cannot be beaten and says nothing
    return Constant(score=score, answer=name, metric=metric)


def find_constants(run: ComparedRun, metrics: Iterable[Metric], design: Design) -> dict[str, Constant]:
    """Return the best constant answers by metric, as far as they have a score."""
    found = {metric.key: find_constant(run, metric, design) for metric in dict.fromkeys(metrics)}
    return {key: constant for key, constant in found.items() if constant is not None}


def choose_guard(constants: Mapping[str, Constant], metric: Metric) -> Constant | None:
    """Return the constant answer that a strategy must beat: by the deciding metric, or else by the accuracy.

    None for metrics that are not about the target.
    """
    return constants.get(metric.key) or (constants.get(DEFAULT_METRIC) if metric.test == "shifted" else None)


def beating_constant(arms: Sequence[ArmResult], constant: Constant | None, design: Design) -> list[ArmResult]:
    """Return the arms with the finding whether each is shown to be better than the constant answer.

    As for pairs, the p-values are corrected for the number of arms.
    """
    if constant is None:
        return list(arms)
    metric = constant.metric
    sign = 1 if metric.higher_is_better else -1
    tests: list[Inference | None] = []
    for arm in arms:
        reached = score_runs(arm.runs, metric.key, design)
        baseline = score_runs([_answering(run, constant) for run in arm.runs], metric.key, design)
        if reached is None or baseline is None:
            tests.append(None)
            continue
        differences = [subtract(one, other) for one, other in zip(reached, baseline, strict=True)]
        tests.append(infer(differences, arm.runs, metric.key, design))
    corrected = iter(holm([test.p or 1.0 for test in tests if test is not None]).tolist())
    return [
        arm
        if test is None
        else dataclasses.replace(arm, beats_constant=next(corrected) < ALPHA and sign * test.mean > 0)
        for arm, test in zip(arms, tests, strict=True)
    ]


def _constant_answers(predictions: Predictions, classes: Sequence[str]) -> Iterator[tuple[str, Answers]]:
    """Yield the candidates by name: each class, or of many classes the most frequent one, and the shares of classes."""
    answers = answers_of(predictions, len(classes))
    shares = _shares(answers)
    tried = range(len(classes)) if len(classes) <= MOST_CLASSES else [int(shares.argmax())]
    for number in tried:
        if shares[number] > 0:
            yield classes[number], _constant(answers, _certain(number, answers))
    yield SHARES, _constant(answers, shares)


def _shares(answers: Answers) -> Floats:
    shares: Floats = numpy.bincount(answers.truth, minlength=answers.classes) / len(answers.truth)
    return shares


def _certain(number: int, answers: Answers) -> Floats:
    certain = numpy.zeros(answers.classes)
    certain[number] = 1
    return certain


def _constant(answers: Answers, shares: Floats) -> Answers:
    count = len(answers.truth)
    return dataclasses.replace(
        answers,
        predicted=numpy.full(count, int(shares.argmax())),
        probabilities=numpy.broadcast_to(shares, (count, len(shares))),
    )


def _answering(run: ComparedRun, constant: Constant) -> ComparedRun:
    """Return the run as if its model gave the constant answer."""
    predictions = run.predictions["shifted"]
    answers = answers_of(predictions, len(run.classes))
    is_certain = constant.answer != SHARES
    shares = _certain(run.classes.index(constant.answer), answers) if is_certain else _shares(answers)
    answers = _constant(answers, shares)
    changed = dataclasses.replace(predictions, predicted=answers.predicted, probabilities=answers.probabilities)
    return dataclasses.replace(run, predictions={**run.predictions, "shifted": changed})
