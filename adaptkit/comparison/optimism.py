"""How much too high the accuracy of the best of several strategies is, because it was chosen with the same images."""

from __future__ import annotations

import numpy
from numpy.typing import ArrayLike

from adaptkit.comparison.statistics import resampling_weights

#: number of resamples of the images, and the seed with which they are drawn
RESAMPLES, SEED = 1_000, 0


def selection_optimism(correct: ArrayLike, *, resamples: int = RESAMPLES, seed: int = SEED) -> float:
    """Estimate how optimistic the accuracy of the best of several strategies is, as a fraction.

    `correct` is `[strategies, images]`: 1 for a correct prediction and 0 for a wrong one, or its mean over runs. The
    method is the bootstrap bias correction of Tsamardinos, Greasidou and Borboudakis (Machine Learning 107, 2018): draw
    the images with replacement, choose the best strategy on the drawn ones, and measure it on the images that were not
    drawn. The optimism is the accuracy of the best strategy on all images minus the mean of these measurements, or 0 if
    that is negative. It is 0 for a single strategy.
    """
    values = numpy.asarray(correct, dtype=float)
    strategies, images = values.shape
    if strategies < 2 or images < 2:
        return 0.0
    drawn = resampling_weights(images, seed, resamples)
    drawn = drawn[(drawn == 0).any(1)]
    best = (drawn @ values.T).argmax(1)
    held_out = numpy.average(values[best], axis=1, weights=drawn == 0)
    return max(0.0, float(values.mean(1).max() - held_out.mean()))
