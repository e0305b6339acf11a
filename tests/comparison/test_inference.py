"""Inference for each protocol against the formulas, written out again, and against hand calculations."""

from __future__ import annotations

import math

import numpy
import pytest
from scipy import stats

from adaptkit.comparison.inference import (
    Inference,
    infer_draws,
    infer_fits,
    infer_folds,
    infer_given,
    infer_runs,
    runs_needed,
    satterthwaite,
    units_needed,
)
from adaptkit.comparison.scores import Scored, mean_score
from adaptkit.comparison.statistics import holm


def rows(values: numpy.ndarray, units: numpy.ndarray | None = None) -> tuple[list[float], list[numpy.ndarray]]:
    """Return scores and influences of runs from their values of each image, `[runs, images]`."""
    scored: list[Scored] = [mean_score(one, units) for one in values]
    return [one.value for one in scored], [one.influence for one in scored]


def differences(runs: int, images: int, seed: int = 0) -> numpy.ndarray:
    """Return differences of correctness, `[runs, images]`."""
    return numpy.random.default_rng(seed).choice([-1, 0, 0, 0, 1], (runs, images)).astype(float)


def even(runs: int, units: int, folds: int = 5) -> numpy.ndarray:
    """Return fold numbers of equally large folds, `[runs, units]`."""
    return numpy.tile(numpy.arange(units) % folds, (runs, 1))


def test_folds() -> None:
    values, folds = differences(3, 200), even(3, 200)
    result = infer_folds(*rows(values), folds=folds, resolution=1 / 200)
    over_images = values.mean(0).var(ddof=1) / 200
    # Between folds beyond what single images explain: in one-way analysis of variance, (MSB - MSW) / images of a fold.
    extra = 0.0
    for repeat in values:
        sums = numpy.array([repeat[folds[0] == fold].sum() - 40 * repeat.mean() for fold in range(5)])
        extra += 5 / 4 * (sums**2).sum() / 200**2 - repeat.var(ddof=1) / 200
    assert result.error**2 == pytest.approx(max(5 / 4 * over_images + extra / 9, over_images))
    assert result.over_runs == pytest.approx(max(extra, 0.0) / 9)
    assert result.mean == pytest.approx(values.mean())
    assert result.p == pytest.approx(2 * stats.t.sf(abs(values.mean()) / result.error, result.df))
    assert result.half_width() == pytest.approx(stats.t.ppf(0.975, result.df) * result.error)


def test_folds_whose_trainings_differ_by_luck() -> None:
    rng = numpy.random.default_rng(4)
    folds = even(1, 500)
    luck = numpy.array([0.2, -0.2, 0.1, -0.1, 0.0])[folds]
    values = (rng.random((1, 500)) < 0.5 + luck).astype(float)
    lucky = infer_folds(*rows(values), folds=folds)
    shuffled = infer_folds(*rows(rng.permuted(values, axis=1)), folds=folds)
    assert lucky.error > 1.5 * shuffled.error
    assert lucky.df is not None and shuffled.df is not None and lucky.df < 6 < shuffled.df


def test_folds_with_groups() -> None:
    values, groups = differences(2, 60), numpy.repeat([0, 1, 2, 3], [30, 15, 10, 5])
    result = infer_folds(*rows(values, groups), folds=even(2, 4, 4))
    without = numpy.array([values.mean(0)[groups != g].mean() for g in range(4)])
    variance = 4 / 3 * 3 / 4 * ((without - without.mean()) ** 2).sum()  # the jackknife's, with the factor of 4 folds
    # Each fold is one group, so that groups explain all that differs between folds.
    assert (result.error, result.df) == (pytest.approx(math.sqrt(variance)), pytest.approx(3))


def test_groups_of_one_image_are_images() -> None:
    values = differences(1, 40)
    single = infer_folds(*rows(values, numpy.arange(40)), folds=even(1, 40))
    image = infer_folds(*rows(values), folds=even(1, 40))
    assert (single.mean, single.error, single.df) == (image.mean, pytest.approx(image.error), pytest.approx(image.df))


def test_given() -> None:
    values = differences(4, 100)
    result = infer_given(*rows(values), resolution=0.01)
    over_runs, over_images = values.mean(1).var(ddof=1) / 4, values.mean(0).var(ddof=1) / 100
    assert result.error == pytest.approx(math.sqrt(over_runs + over_images))
    df = (over_runs + over_images) ** 2 / (over_runs**2 / 3 + over_images**2 / 99)
    assert result.df == pytest.approx(df)


def test_given_with_one_run_covers_test_images() -> None:
    values = differences(1, 100)
    result = infer_given(*rows(values))
    assert result.error == pytest.approx(values[0].std(ddof=1) / 10)
    assert result.df == 99
    # The same as the paired t-test on images.
    assert result.p == pytest.approx(stats.ttest_1samp(values[0], 0).pvalue)


def test_draws() -> None:
    values = differences(6, 50) + numpy.array([[0.3, -0.2, 0.1, 0.0, -0.3, 0.2]]).T
    divisions = [0, 0, 0, 0, 1, 2]  # only division 0 has two runs
    result = infer_draws(*rows(values), divisions=divisions)
    assert result is not None
    first = values[:4]
    a = first.mean(1).var(ddof=1) / 4
    w = first.var(0, ddof=1).mean() / 50 / 4
    b = values.mean(0).var(ddof=1) / 50
    assert a > w
    assert result.error == pytest.approx(math.sqrt(a - w + b))
    assert result.df == pytest.approx((a - w + b) ** 2 / (a**2 / 3 + b**2 / 49))


def test_draws_average_over_divisions() -> None:
    values = differences(5, 50) + numpy.array([[0.3, -0.2, 0.1, 0.0, -0.3]]).T
    result = infer_draws(*rows(values), divisions=[0, 0, 0, 1, 1])
    assert result is not None
    a = numpy.mean([values[:3].mean(1).var(ddof=1) / 3, values[3:].mean(1).var(ddof=1) / 2])
    w = numpy.mean([values[:3].var(0, ddof=1).mean() / 50 / 3, values[3:].var(0, ddof=1).mean() / 50 / 2])
    assert result.over_runs == pytest.approx(a - w)


def test_draws_without_two_runs_of_a_division() -> None:
    assert infer_draws(*rows(differences(3, 50)), divisions=[0, 1, 2]) is None


def test_fits() -> None:
    values = differences(10, 80)  # two repeats of five folds, all evaluated on the same images
    result = infer_fits(*rows(values), folds=5)
    over_fits = (1 / 10 + 1 / 4) * values.mean(1).var(ddof=1)
    assert result.error == pytest.approx(math.sqrt(over_fits + values.mean(0).var(ddof=1) / 80))


def test_costs() -> None:
    seconds = [3.0, 3.5, 2.9]
    result = infer_runs(seconds)
    low, high = stats.ttest_1samp(seconds, 0).confidence_interval(0.95)
    assert (result.mean - (result.half_width() or 0), result.mean + (result.half_width() or 0)) == pytest.approx(
        (low, high)
    )
    assert infer_runs([3.0]).half_width() is None


@pytest.mark.parametrize("images", [20, 200])
def test_equal_predictions_still_have_an_error(images: int) -> None:
    # Two models that agree on all images are not shown to be equal on every other image.
    result = infer_folds(*rows(numpy.zeros((1, images))), folds=even(1, images), resolution=1 / images)
    assert result.error == pytest.approx(math.sqrt(5 / 4) / images)
    assert result.p == 1.0
    # That of one image that differs is as large.
    one = numpy.zeros((1, images))
    one[0, 0] = 1
    assert infer_folds(*rows(one), folds=even(1, images)).over_units ** 0.5 == pytest.approx(result.error)


def test_p_is_positive() -> None:
    assert 0 < (Inference(1.0, df=200, over_units=1e-8).p or 0.0) < 1e-100
    assert Inference(1.0).p is None


def test_satterthwaite() -> None:
    assert satterthwaite((2.0, 5), (0.0, 9)) == pytest.approx(5)
    assert satterthwaite((1.0, 4), (1.0, 4)) == pytest.approx(8)
    # Equal to Welch's degrees of freedom.
    rng = numpy.random.default_rng(1)
    a, b = rng.normal(0, 1, 8), rng.normal(0, 3, 5)
    welch = stats.ttest_ind(a, b, equal_var=False).df
    assert satterthwaite((a.var(ddof=1) / 8, 7), (b.var(ddof=1) / 5, 4)) == pytest.approx(welch)


def test_detectable_difference_is_found_in_80_percent() -> None:
    rng = numpy.random.default_rng(2)
    error, df = 0.01, 30
    size = Inference(0.0, df=df, over_units=error**2).detectable()
    assert size is not None
    t = (size + error * rng.normal(0, 1, 40_000)) / (error * numpy.sqrt(rng.chisquare(df, 40_000) / df))
    assert (t > stats.t.ppf(0.975, df)).mean() == pytest.approx(0.8, abs=0.015)


def test_needed_numbers_are_the_smallest_that_decide() -> None:
    difference = Inference(0.02, df=50, over_runs=1e-4, over_units=5e-5)
    limit = stats.t.ppf(0.975, 50)

    def t(runs: float, units: float) -> float:
        return 0.02 / math.sqrt(1e-4 * 3 / runs + 5e-5 * 100 / units)

    runs = runs_needed(difference, 3)
    assert runs is not None and t(runs, 100) >= limit > t(runs - 1, 100)
    alone = Inference(0.02, df=50, over_units=2e-4)
    units = units_needed(alone, 100)
    assert units is not None
    assert 0.02 / math.sqrt(2e-4 * 100 / units) >= limit > 0.02 / math.sqrt(2e-4 * 100 / (units - 1))
    # More pairs need more.
    assert (units_needed(alone, 100, pairs=6) or 0) > units


def test_needed_numbers_have_limits() -> None:
    assert units_needed(Inference(1e-7, df=50, over_units=1e-3), 100) is None
    assert units_needed(Inference(0.0, df=50, over_units=1e-3), 100) is None
    # No number of runs helps if the test images alone leave it open, and the other way round.
    assert runs_needed(Inference(0.02, df=50, over_runs=1e-4, over_units=1e-3), 3) is None
    assert units_needed(Inference(0.02, df=50, over_runs=1e-3, over_units=1e-4), 100) is None


def test_fewer_false_verdicts_with_holm_than_without() -> None:
    rng = numpy.random.default_rng(3)
    p = rng.random((4000, 6))
    assert (holm(p) < 0.05).any(1).mean() < 0.06 < 0.2 < (p < 0.05).any(1).mean()
