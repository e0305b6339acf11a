"""Signs that a run has not learned: classes that are never predicted, a loss that does not fall, chance accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
from scipy import special

from adaptkit.errors import listed
from adaptkit.events import Epoch, Predictions
from adaptkit.names import BASE_WARNINGS_TAG, WARNINGS_TAG

#: the loss of the first epoch is far above that of a guess from this factor on
FAR_ABOVE = 1.5
#: a loss below this part of that of a guess does not have to fall any more
LEARNED = 0.1
#: level of the one-sided test of the training accuracy
LEVEL = 0.05


def run_warnings(
    epochs: Sequence[Epoch],
    predictions: Predictions | None,
    *,
    classes: Sequence[str],
    trained: Sequence[int],
    balanced: bool = False,
) -> tuple[str, ...]:
    """Return a short warning for each sign that a run has not learned; empty if there is none.

    `predictions` are those for the target, None if the model is not evaluated. `trained` are the images of each class
    in one training. With `balanced`, all classes count equally in the loss.
    """
    found = [_never_predicted(predictions, classes), _loss_starts_high(epochs, len(classes))]
    signs = [warning for warning in found if warning is not None]
    return (*signs, *training_warnings(epochs, classes=classes, trained=trained, balanced=balanced))


def training_warnings(
    epochs: Sequence[Epoch], *, classes: Sequence[str], trained: Sequence[int], balanced: bool = False
) -> tuple[str, ...]:
    """Return a warning for each sign in its epochs that a training has not learned, whatever the model starts from."""
    found = [
        _loss_does_not_fall(epochs, len(classes)),
        _trains_at_chance(epochs, classes, trained=trained, balanced=balanced),
    ]
    return tuple(warning for warning in found if warning is not None)


def warning_tags(warnings: Sequence[str], *, of_base: Sequence[str] = ()) -> dict[str, str]:
    """Return the tags of a run for its warnings and for those of its base; no tag without warnings."""
    found = {WARNINGS_TAG: warnings, BASE_WARNINGS_TAG: of_base}
    return {tag: "\n".join(lines) for tag, lines in found.items() if lines}


def _never_predicted(predictions: Predictions | None, classes: Sequence[str]) -> str | None:
    if predictions is None:
        return None
    counts = numpy.bincount(predictions.truth, minlength=len(classes))
    predicted = set(numpy.unique(predictions.predicted).tolist())
    missing = [number for number, count in enumerate(counts.tolist()) if count and number not in predicted]
    if not missing:
        return None
    images = int(counts[missing].sum())
    return f"never predicted: {listed([repr(classes[number]) for number in missing])} ({images:,} evaluated images)"


def _loss_does_not_fall(epochs: Sequence[Epoch], classes: int) -> str | None:
    if len(epochs) < 2 or epochs[-1].loss < max(epochs[0].loss, LEARNED * math.log(classes)):
        return None
    return f"the loss did not fall: {epochs[0].loss:.3g} in the first epoch, {epochs[-1].loss:.3g} in the last"


def _loss_starts_high(epochs: Sequence[Epoch], classes: int) -> str | None:
    guess = math.log(classes)
    if not epochs or epochs[0].loss <= FAR_ABOVE * guess:
        return None
    return (
        f"the loss of the first epoch is {epochs[0].loss:.3g}, far above the {guess:.3g} of a guess, as it is if "
        "the base does not fit these images or the learning rate is too high"
    )


def _trains_at_chance(
    epochs: Sequence[Epoch], classes: Sequence[str], *, trained: Sequence[int], balanced: bool
) -> str | None:
    """Return a warning if the training accuracy is not shown to be above chance, by an exact binomial test.

    Chance is always answering the class with the most training images; if all classes count equally, a random class.
    """
    images, largest = sum(trained), max(trained)
    chance = 1 / sum(count > 0 for count in trained) if balanced else largest / images
    if not epochs:
        return None
    right = round(epochs[-1].train_accuracy * images)
    if special.bdtrc(right - 1, images, chance) < LEVEL:
        return None
    how = "a random answer" if balanced else f"always answering {classes[list(trained).index(largest)]!r}"
    return (
        f"training accuracy {100 * epochs[-1].train_accuracy:.1f} %, not shown to be above the {100 * chance:.1f} % "
        f"of {how}"
    )
