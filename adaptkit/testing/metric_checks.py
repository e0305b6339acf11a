"""Checks of a metric on random answers of several classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from adaptkit.contracts import Metric
from adaptkit.testing.outcomes import CheckFailed, NotTried, described, require, watched


@dataclass(frozen=True)
class Scoring:
    """A metric, created by `create()`, and the number of classes of its answers."""

    create: Callable[[], Metric]
    classes: int

    def answers(self) -> tuple[NDArray[numpy.float64], NDArray[numpy.int64]]:
        """Return probabilities of 60 images and their true classes; every class occurs."""
        rng = numpy.random.default_rng(0)
        probabilities = rng.dirichlet(numpy.ones(self.classes), 60)
        return probabilities, numpy.arange(60) % self.classes

    def scored(self, probabilities: NDArray[numpy.float64], truth: NDArray[numpy.int64], **more: object) -> float:
        """Return the score; raise NotTried if `score` fails."""
        try:
            with watched():
                return float(self.create().score(probabilities, truth, **more))  # type: ignore[arg-type]
        except Exception as error:
            raise NotTried("score() fails") from error


def gives_a_number(scoring: Scoring) -> None:
    """Check that the score of usual answers is a finite number."""
    probabilities, truth = scoring.answers()
    groups = numpy.arange(60) % 3
    try:
        with watched():
            value = scoring.create().score(probabilities, truth, groups=groups)
    except Exception as error:
        raise CheckFailed(f"score() raises {described(error)}") from error
    require(isinstance(value, float), f"score() gives {type(value).__name__}, not float")
    require(bool(numpy.isfinite(value)), f"score() gives {value}")


def has_its_facts(scoring: Scoring) -> None:
    """Check that title, unit and direction have their types."""
    metric = scoring.create()
    for name, kind in (("title", str), ("unit", str), ("higher_is_better", bool)):
        value = getattr(metric, name, None)
        require(isinstance(value, kind), f"`{name}` must be of type {kind.__name__}, not {value!r}")


def prefers_the_truth(scoring: Scoring) -> None:
    """Check that certain and correct answers have a better score than certain and wrong ones."""
    _, truth = scoring.answers()
    classes = numpy.eye(scoring.classes)
    groups = numpy.arange(60) % 3
    right = scoring.scored(classes[truth], truth, groups=groups)
    wrong = scoring.scored(classes[(truth + 1) % scoring.classes], truth, groups=groups)
    better = right > wrong if scoring.create().higher_is_better else right < wrong
    require(better, f"correct answers have the score {right:.3g}, wrong ones {wrong:.3g}; is higher_is_better right?")


def does_not_depend_on_the_order(scoring: Scoring) -> None:
    """Check that the score stays the same if the images are listed in another order."""
    probabilities, truth = scoring.answers()
    groups, order = numpy.arange(60) % 3, numpy.random.default_rng(1).permutation(60)
    first = scoring.scored(probabilities, truth, groups=groups)
    second = scoring.scored(probabilities[order], truth[order], groups=groups[order])
    require(
        abs(first - second) <= 1e-9 * max(1.0, abs(first)), f"another order gives {second:.6g} instead of {first:.6g}"
    )


def weights_count_images(scoring: Scoring) -> None:
    """Check that a weight of 2 is the same as listing an image twice."""
    probabilities, truth = scoring.answers()
    groups, copies = numpy.arange(60) % 3, numpy.where(numpy.arange(60) < 20, 2, 1)
    weighted = scoring.scored(probabilities, truth, weights=copies.astype(float), groups=groups)
    twice = numpy.repeat(numpy.arange(60), copies)
    listed = scoring.scored(probabilities[twice], truth[twice], groups=groups[twice])
    require(
        abs(weighted - listed) <= 1e-6 * max(1.0, abs(listed)),
        f"with weights the score is {weighted:.6g}, with copies {listed:.6g}",
    )


def leaves_its_input(scoring: Scoring) -> None:
    """Check that the arrays are not changed."""
    probabilities, truth = scoring.answers()
    before = probabilities.copy(), truth.copy()
    scoring.scored(probabilities, truth, groups=numpy.arange(60) % 3)
    unchanged = bool((probabilities == before[0]).all() and (truth == before[1]).all())
    require(unchanged, "score() changes its arguments")


#: name of each check -> its function
CHECKS: dict[str, Callable[[Scoring], None]] = {
    "gives a number": gives_a_number,
    "has a title, a unit and a direction": has_its_facts,
    "prefers the truth": prefers_the_truth,
    "does not depend on the order": does_not_depend_on_the_order,
    "weights count images": weights_count_images,
    "leaves its input as it is": leaves_its_input,
}
