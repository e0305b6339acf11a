"""Statistics of a comparison: values against scipy, scikit-learn and hand calculations; error rates by simulation."""

from __future__ import annotations

import math
from itertools import combinations, permutations
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score

from adaptkit.comparison.records import Estimate
from adaptkit.comparison.statistics import (
    PairedTest,
    confusion,
    estimate,
    f1_scores,
    holm,
    images_needed,
    mcnemar,
    paired_t,
    percentile_intervals,
    ppt,
    resampling_weights,
    sampling_error,
    seeds_needed,
    supported,
    verdicts,
)

MARGIN = 0.01
IMAGE = 1 / 1500
FAMILIES = 20_000
#: with 3 seeds, Holm's error is 4.8 % (in a million families); 20,000 families cannot distinguish this from 5 %
MANY_FAMILIES = {3: 100_000}
#: standard deviation of the effect of a seed on all arms; pairing removes it
SEEDS_SPREAD = 0.02

Floats = NDArray[numpy.float64]


def near(value: object, rel: float = 1e-9) -> Any:
    """Return a value that compares equal up to rounding."""
    return pytest.approx(value, rel=rel, abs=1e-15)


def numbers(result: PairedTest) -> list[float]:
    """Return the test of one pair as mean, standard deviation, interval and p."""
    return [float(result.mean), float(result.sd), float(result.low), float(result.high), float(result.p)]


# --- one arm


def test_estimate_mean_and_t_interval() -> None:
    values = [0.81, 0.84, 0.79, 0.86, 0.80]
    result = estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (result.mean, result.n, result.sd) == (near(0.82), 5, near(math.sqrt(0.0034 / 4)))
    assert (result.low, result.high) == (near(low), near(high))
    # t(.975, 4) = 2.776445
    assert result.half_width == near(2.776445 * math.sqrt(0.0034 / 4 / 5), rel=1e-6)


def test_estimate_of_one_or_equal_values() -> None:
    assert estimate([0.8]) == Estimate(0.8, 1)
    assert estimate([0.8]).half_width is None
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, 3, sd=0.0, low=0.5, high=0.5)


# --- paired t


def test_paired_t_against_scipy() -> None:
    rng = numpy.random.default_rng(0)
    for seeds in (2, 3, 5, 12):
        a, b = rng.normal(0.80, 0.02, seeds), rng.normal(0.81, 0.02, seeds)
        result, expected = paired_t(a - b, IMAGE), stats.ttest_rel(a, b)
        low, high = stats.ttest_1samp(a - b, 0).confidence_interval(0.95)
        assert (float(result.mean), float(result.sd)) == (near((a - b).mean()), near((a - b).std(ddof=1)))
        assert (float(result.low), float(result.high)) == (near(low), near(high))
        assert float(result.p) == near(expected.pvalue)


def test_paired_t_sign() -> None:
    differences = numpy.array([0.01, 0.03, -0.01, 0.02])
    there, back = paired_t(differences), paired_t(-differences)
    assert (back.mean, back.low, back.high) == (-there.mean, -there.high, -there.low)
    assert (back.sd, back.p) == (there.sd, there.p)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("resolution", [0.0, IMAGE])
def test_paired_t_of_zeros(seeds: int, resolution: float) -> None:
    result = paired_t([0.0] * seeds, resolution)
    assert numbers(result) == [0, 0, 0, 0, 1]
    assert verdicts(result.mean, low=result.low, high=result.high, p=result.p, margin=MARGIN) == "tie"


@pytest.mark.parametrize("images", [1, 3, 15, -2])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_paired_t_of_equal_differences(images: int, seeds: int) -> None:
    result = paired_t([images * IMAGE] * seeds, IMAGE)
    error = IMAGE / math.sqrt(seeds)
    half = stats.t.ppf(0.975, seeds - 1) * error
    assert (float(result.mean), float(result.sd)) == (near(images * IMAGE), near(IMAGE))
    assert (float(result.low), float(result.high)) == (near(images * IMAGE - half), near(images * IMAGE + half))
    assert float(result.p) == near(2 * stats.t.sf(abs(images) * math.sqrt(seeds), seeds - 1))
    assert 0 < result.p < 1 and result.low < result.high


def test_paired_t_of_equal_differences_by_hand() -> None:
    # Two seeds, one degree of freedom, the Cauchy distribution: p = 1 - 2 atan(t) / pi, t = 3 sqrt 2.
    result = paired_t([3 * IMAGE, 3 * IMAGE], IMAGE)
    assert float(result.p) == near(1 - 2 * math.atan(3 * math.sqrt(2)) / math.pi)
    # t(.975, 1) = tan(.475 pi)
    assert float(result.high) == near(3 * IMAGE + math.tan(0.475 * math.pi) * IMAGE / math.sqrt(2))


def test_paired_t_ignores_rounding_errors() -> None:
    noise = 0.1 + 0.2 - 0.3
    assert noise != 0
    result = paired_t([noise, 0.0, -noise, noise, noise], IMAGE)
    assert numbers(result) == [0, 0, 0, 0, 1]
    # Accuracies one test image apart: their differences are equal except for rounding errors.
    accuracies = numpy.arange(1000, 1400) / 1500
    differences = accuracies[1:] - accuracies[:-1]
    assert len(set(differences.tolist())) > 1
    for five in differences[:395].reshape(-1, 5):
        result = paired_t(five, IMAGE)
        assert float(result.sd) == near(IMAGE)
        assert float(result.p) == near(2 * stats.t.sf(math.sqrt(5), 4))


def test_paired_t_smallest_spread_is_one_image() -> None:
    # Otherwise nearly equal differences would be stronger evidence than equal ones.
    for images in ([1, 1, 1, 1, 1], [1, 1, 1, 1, 2]):
        result = paired_t([IMAGE * count for count in images], IMAGE)
        assert float(result.sd) == near(IMAGE)
        assert float(result.p) == near(2 * stats.t.sf(sum(images) / 5 * math.sqrt(5), 4))
    wide = [IMAGE * count for count in (0, 1, 3, 0, 1)]
    assert float(paired_t(wide, IMAGE).p) == near(stats.ttest_1samp(wide, 0).pvalue)


def test_paired_t_p_is_positive() -> None:
    assert 0 < float(paired_t([5.0, 5.0, 5.0]).p) < 1e-300


def test_families_equal_single_pairs() -> None:
    rng = numpy.random.default_rng(1)
    differences = numpy.round(rng.normal(0, 0.002, (7, 6, 4)) * 1500) / 1500
    differences[0, 0], differences[1, 1], differences[2, 2] = 0.0, 2 * IMAGE, 0.1 + 0.2 - 0.3
    result = paired_t(differences, IMAGE)
    corrected = holm(result.p)
    words = verdicts(result.mean, low=result.low, high=result.high, p=corrected, margin=MARGIN)
    assert result.p.shape == corrected.shape == words.shape == (7, 6)
    for family in range(7):
        assert corrected[family].tolist() == holm(result.p[family]).tolist()
        for pair in range(6):
            one = paired_t(differences[family, pair].tolist(), IMAGE)
            for field in ("mean", "sd", "low", "high", "p"):
                assert float(getattr(one, field)) == near(getattr(result, field)[family, pair]), field
            word = verdicts(one.mean, low=one.low, high=one.high, p=corrected[family, pair], margin=MARGIN)
            assert str(word) == words[family, pair]


# --- McNemar


def right(only_a: int, only_b: int, both: int = 7, neither: int = 3) -> tuple[list[bool], list[bool]]:
    """Return which images two models classify correctly, with these counts."""
    a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
    b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
    return a, b


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (9, 1, 2 * (1 + 10) / 1024),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (4, 3, 1.0),
    ],
)
def test_mcnemar_exact(only_a: int, only_b: int, p: float) -> None:
    a, b = right(only_a, only_b)
    assert mcnemar(a, b) == near(p)
    assert mcnemar(b, a) == near(p)
    # Images that both models classify equally do not change p.
    assert mcnemar(*right(only_a, only_b, both=400, neither=0)) == near(p)


# --- Holm


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.03], [0.03]),
        # .005 x 4, .01 x 3, .03 x 2, and .04 x 1, which is raised to the previous step
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.9, 0.4, 0.6], [1.0, 1.0, 1.0]),
        ([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]),
        ([0.001, 0.049], [0.002, 0.049]),
        ([0.03, 0.049], [0.06, 0.06]),
    ],
)
def test_holm_by_hand(p: list[float], corrected: list[float]) -> None:
    assert holm(p).tolist() == near(corrected)


def test_holm_equals_step_down_procedure() -> None:
    rng = numpy.random.default_rng(2)
    for count in (1, 2, 6, 15):
        for p in rng.beta(0.3, 2, (50, count)):
            corrected = holm(p)
            for alpha in (0.01, 0.05, 0.3):
                rejected = set()
                for step, index in enumerate(numpy.argsort(p)):
                    if p[index] > alpha / (count - step):
                        break
                    rejected.add(int(index))
                assert set(numpy.flatnonzero(corrected <= alpha).tolist()) == rejected


def test_holm_monotone_bounded_and_independent_of_order() -> None:
    rng = numpy.random.default_rng(3)
    families = rng.beta(0.5, 2, (500, 6))
    families[:100] = numpy.round(families[:100], 1)
    corrected = holm(families)
    assert (corrected >= families).all() and (corrected <= 1).all()
    assert (corrected <= numpy.minimum(families * 6, 1) + 1e-15).all()
    order = families.argsort(-1)
    assert (numpy.diff(numpy.take_along_axis(corrected, order, -1)) >= 0).all()
    for shuffle in list(permutations(range(6)))[::37]:
        assert numpy.array_equal(holm(families[:, shuffle]), corrected[:, shuffle])


def test_holm_does_not_change_its_input() -> None:
    p = numpy.array([0.02, 0.01])
    holm(p)
    assert p.tolist() == [0.02, 0.01]


# --- verdicts


@pytest.mark.parametrize(
    ("mean", "low", "high", "p", "word"),
    [
        (0.02, 0.01, 0.03, 0.0499, "better"),
        (-0.02, -0.03, -0.01, 0.0499, "worse"),
        (0.02, 0.005, 0.035, 0.05, "unclear"),
        (0.0, -0.01, 0.01, 1.0, "tie"),
        (0.0, -0.0100001, 0.01, 1.0, "unclear"),
        (0.0, -0.01, 0.0100001, 1.0, "unclear"),
        (0.005, 0.001, 0.009, 0.2, "tie"),
        # A small but significant difference is not a tie.
        (0.005, 0.001, 0.009, 0.01, "better"),
        (-0.005, -0.009, -0.001, 0.01, "worse"),
        (0.02, 0.015, 0.025, 0.2, "unclear"),
        (0.0, 0.0, 0.0, 1.0, "tie"),
    ],
)
def test_verdicts(mean: float, low: float, high: float, p: float, word: str) -> None:
    assert verdicts(mean, low=low, high=high, p=p, margin=MARGIN) == word


def test_tie_without_margin_is_zero_difference() -> None:
    assert verdicts([0.0, 0.0], low=[0.0, -1e-6], high=[0.0, 1e-6], p=[1.0, 1.0], margin=0.0).tolist() == [
        "tie",
        "unclear",
    ]


@pytest.mark.parametrize(
    ("verdict", "low", "high", "confirmed"),
    [
        ("better", 0.001, 0.02, True),
        ("better", 0.0, 0.02, False),
        ("better", -0.001, 0.02, False),
        ("worse", -0.02, -0.001, True),
        ("worse", -0.02, 0.0, False),
        ("tie", -0.01, 0.01, True),
        ("tie", -0.011, 0.01, False),
        ("tie", -0.01, 0.011, False),
        ("unclear", -0.5, 0.5, True),
    ],
)
def test_verdict_confirmed_by_interval(verdict: str, low: float, high: float, confirmed: bool) -> None:
    assert supported(verdict, low=low, high=high, margin=MARGIN) is confirmed


# --- seeds and images needed


def decided(seeds: int, mean: float, sd: float, margin: float, pairs: int) -> bool:
    error = sd / math.sqrt(seeds)
    different = mean != 0 and 2 * stats.t.sf(abs(mean) / error, seeds - 1) * pairs < 0.05
    return bool(different or stats.t.ppf(0.975, seeds - 1) * error + abs(mean) <= margin)


@pytest.mark.parametrize("pairs", [1, 6])
@pytest.mark.parametrize("mean", [0.0, 0.001, -0.008, 0.02])
@pytest.mark.parametrize("sd", [0.0005, 0.005, 0.02, 0.05])
def test_seeds_needed_is_smallest_deciding_number(mean: float, sd: float, pairs: int) -> None:
    result = seeds_needed(mean, sd, margin=MARGIN, pairs=pairs)
    assert result == next(n for n in range(2, 1000) if decided(n, mean=mean, sd=sd, margin=MARGIN, pairs=pairs))


def test_seeds_needed_limits() -> None:
    assert seeds_needed(0.0, 0.0, margin=MARGIN, pairs=6) == 2
    assert seeds_needed(0.02, 0.0, margin=MARGIN, pairs=6) == 2
    # A true difference of 1e-6 with a margin of 0 would take some 10^9 seeds.
    assert seeds_needed(1e-6, 0.02, margin=0.0, pairs=1) is None
    assert seeds_needed(0.0, 0.02, margin=0.0, pairs=1) is None


def test_unclear_pair_needs_more_seeds() -> None:
    rng = numpy.random.default_rng(4)
    for seeds in (3, 5):
        result = paired_t(pairwise(arms_of(rng, families=5, seeds=seeds, noise=[0.01] * 4)), IMAGE)
        words = verdicts(result.mean, low=result.low, high=result.high, p=holm(result.p), margin=MARGIN)
        unclear = [
            seeds_needed(mean, sd, margin=MARGIN, pairs=6)
            for mean, sd in zip(result.mean[words == "unclear"], result.sd[words == "unclear"], strict=True)
        ]
        assert unclear and all(needed is None or needed > seeds for needed in unclear)


@pytest.mark.parametrize(
    ("verdict", "mean", "half", "expected"),
    [
        # The interval must shrink to the difference: (.03 / .02)^2 x 1500.
        ("better", 0.02, 0.03, 3375),
        ("worse", -0.02, 0.03, 3375),
        # The interval of a tie must shrink to the margin minus the difference: (.012 / .006)^2 x 1500.
        ("tie", 0.004, 0.012, 6000),
        ("tie", -0.004, 0.012, 6000),
        ("tie", 0.012, 0.02, None),
        ("better", 0.0, 0.02, None),
    ],
)
def test_images_needed(verdict: str, mean: float, half: float, expected: int | None) -> None:
    result = images_needed(verdict, mean=mean, low=mean - half, high=mean + half, margin=MARGIN, images=1500)
    # Rounding may add one image.
    assert result == expected or (expected is not None and result == expected + 1)


# --- test images


def test_sampling_error_of_accuracy() -> None:
    assert round(100 * sampling_error(0.82, 1500), 2) == 1.94
    assert sampling_error(0.5, 10_000) == near(1.959964 / 200, rel=1e-6)
    assert sampling_error(1.0, 1500) == 0


def test_percentile_intervals() -> None:
    assert percentile_intervals(numpy.arange(1001.0)) == (near(25.0), near(975.0))
    shuffled = numpy.random.default_rng(5).permutation(numpy.arange(1001.0))
    assert percentile_intervals(shuffled) == (near(25.0), near(975.0))


def test_resampling_weights_are_reproducible_bootstrap() -> None:
    weights = resampling_weights(300, seed=7)
    assert weights.shape == (2000, 300) and weights.dtype == numpy.float32
    assert (weights.sum(1) == 300).all()
    assert set(numpy.unique(weights).tolist()) <= set(range(12))
    # A share of (1 - 1/300)^300 of the images is not drawn.
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 300) ** 300, abs=0.002)
    assert numpy.array_equal(weights, resampling_weights(300, seed=7))
    assert not numpy.array_equal(weights, resampling_weights(300, seed=8))
    assert numpy.array_equal(weights[:5], resampling_weights(300, seed=7, resamples=5))


def test_bootstrap_agrees_with_sampling_error() -> None:
    answers = numpy.arange(1500) < 1230
    low, high = percentile_intervals(resampling_weights(1500, seed=0).astype(float) @ answers / 1500)
    assert (high - low) / 2 == pytest.approx(sampling_error(0.82, 1500), rel=0.05)


# --- classes


def test_confusion_and_f1_against_scikit_learn() -> None:
    rng = numpy.random.default_rng(6)
    truth = rng.integers(0, 10, 500)
    predicted = numpy.where(rng.random(500) < 0.8, truth, rng.integers(0, 10, 500))
    counts = confusion(truth, predicted, 10)
    assert numpy.array_equal(counts, confusion_matrix(truth, predicted))
    assert f1_scores(counts).tolist() == near(f1_score(truth, predicted, average=None).tolist())
    assert f1_scores(counts).mean() == near(f1_score(truth, predicted, average="macro"))


def test_f1_of_absent_classes() -> None:
    # 1 is never predicted, 2 never true, 3 neither.
    truth, predicted = numpy.array([0, 0, 1, 1, 4]), numpy.array([0, 2, 0, 2, 4])
    counts = confusion(truth, predicted, 5)
    assert counts.tolist() == [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0], [0] * 5, [0] * 5, [0, 0, 0, 0, 1]]
    expected = f1_score(truth, predicted, average=None, labels=range(5), zero_division=0)
    assert f1_scores(counts).tolist() == near(expected.tolist()) == [0.5, 0, 0, 0, 1]


def test_confusion_of_one_byte_indices() -> None:
    truth = numpy.arange(100, dtype=numpy.uint8)
    assert numpy.array_equal(confusion(truth, truth, 100), numpy.eye(100))


# --- cost


@pytest.mark.parametrize(
    ("score", "trainable", "constant", "expected"),
    [
        (0.8, 0, 1e7, 0.8),
        # log10(9 + 1) = 1
        (0.8, 90_000_000, 1e7, 0.8 / math.e),
        (0.8, 9_000, 1e3, 0.8 / math.e),
        (0.8, 10_000_000, 1e7, 0.8 * math.exp(-math.log10(2))),
    ],
)
def test_ppt(score: float, trainable: int, constant: float, expected: float) -> None:
    assert ppt(score, trainable, constant) == near(expected)


@pytest.mark.parametrize(
    ("score", "trainable", "shown"),
    [
        # V-PETL Bench's mean accuracies. LoRA on VTAB-1k: .7225 exp(-log10 1.029) = .7225 x .98766
        (0.7225, 290_000, 0.7136),
        # LoRA on FGVC: .8478 exp(-log10 1.077) = .8478 x .96829
        (0.8478, 770_000, 0.8209),
        # BitFit on FGVC: .8802 exp(-log10 1.01) = .8802 x .99569
        (0.8802, 100_000, 0.8764),
    ],
)
def test_ppt_of_published_results(score: float, trainable: int, shown: float) -> None:
    assert round(ppt(score, trainable, 1e7), 4) == shown


# --- error rates and power, by simulation


def arms_of(
    rng: numpy.random.Generator, families: int, seeds: int, noise: list[float], images: int | None = None
) -> Floats:
    """Return accuracies `[families, arms, seeds]` of equally good arms; `images` rounds them to whole test images."""
    shared = rng.normal(0.8, SEEDS_SPREAD, (families, 1, seeds))
    noises = rng.normal(0, 1, (families, len(noise), seeds)) * numpy.array(noise)[:, None]
    accuracies: Floats = shared + noises
    return accuracies if images is None else numpy.round(accuracies * images) / images


def pairwise(accuracies: Floats) -> Floats:
    """Return the paired differences `[families, pairs, seeds]`."""
    return numpy.stack([accuracies[:, a] - accuracies[:, b] for a, b in combinations(range(accuracies.shape[1]), 2)], 1)


def words_of(accuracies: Floats) -> NDArray[Any]:
    """Return the verdict of each pair, `[families, pairs]`."""
    result = paired_t(pairwise(accuracies), IMAGE)
    return verdicts(result.mean, low=result.low, high=result.high, p=holm(result.p), margin=MARGIN)


def share_of(words: NDArray[Any], *named: str) -> float:
    """Return the share of families in which any pair has one of these verdicts."""
    return float(numpy.isin(words, named).any(-1).mean())


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("noise", [[0.01] * 4, [0.002, 0.005, 0.01, 0.03]], ids=["equal", "unequal"])
def test_false_difference_rate_of_equal_arms(seeds: int, noise: list[float]) -> None:
    families = MANY_FAMILIES.get(seeds, FAMILIES)
    words = words_of(arms_of(numpy.random.default_rng(10 + seeds), families=families, seeds=seeds, noise=noise))
    assert share_of(words, "better", "worse") <= 0.05


@pytest.mark.parametrize("seeds", [3, 5, 7, 8, 10])
def test_false_difference_rate_with_whole_images(seeds: int) -> None:
    # The noise ranges from less than one test image, where equal differences are common, to many.
    for spread in (0.4, 0.7, 1, 3, 15):
        families = MANY_FAMILIES.get(seeds, FAMILIES)
        words = words_of(
            arms_of(
                numpy.random.default_rng(20 + seeds),
                families=families,
                seeds=seeds,
                noise=[spread * IMAGE] * 4,
                images=1500,
            )
        )
        assert share_of(words, "better", "worse") <= 0.05, spread


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_false_difference_rate_next_to_a_better_arm(seeds: int) -> None:
    families = MANY_FAMILIES.get(seeds, FAMILIES)
    accuracies = arms_of(numpy.random.default_rng(30 + seeds), families=families, seeds=seeds, noise=[0.01] * 4)
    accuracies[:, 0] += 0.2
    words = words_of(accuracies)
    # Pairs are 01 02 03 12 13 23.
    assert share_of(words[:, 3:], "better", "worse") <= 0.05
    assert share_of(words[:, :3], "worse") == 0


@pytest.mark.parametrize("spread", [0.001, 0.01, 0.03])
@pytest.mark.parametrize("sign", [1, -1])
def test_power_at_three_standard_deviations(spread: float, sign: int) -> None:
    accuracies = arms_of(numpy.random.default_rng(40), families=FAMILIES, seeds=5, noise=[spread / math.sqrt(2)] * 2)
    accuracies[:, 0] += sign * 3 * spread
    words = words_of(accuracies)
    assert share_of(words, "better" if sign == 1 else "worse") > 0.95
    assert share_of(words, "worse" if sign == 1 else "better") == 0


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("images", [None, 1500], ids=["exact", "images"])
def test_false_tie_rate_at_the_margin(seeds: int, images: int | None) -> None:
    for spread in (0.0005, 0.002, 0.005, 0.01, 0.03):
        accuracies = arms_of(
            numpy.random.default_rng(50),
            families=FAMILIES,
            seeds=seeds,
            noise=[spread / math.sqrt(2)] * 2,
            images=images,
        )
        # 15 of 1500 images are the margin.
        accuracies[:, 0] += MARGIN
        result = paired_t(pairwise(accuracies), IMAGE)
        for p in (holm(result.p), numpy.ones_like(result.p)):
            # p = 1 is the extreme case of Holm's correction: only tie and unclear remain.
            assert (
                share_of(verdicts(result.mean, low=result.low, high=result.high, p=p, margin=MARGIN), "tie") <= 0.05
            ), spread


@pytest.mark.parametrize(("seeds", "spread"), [(5, 0.002), (5, 0.004), (10, 0.006)])
def test_tie_rate_at_small_spread(seeds: int, spread: float) -> None:
    words = words_of(
        arms_of(numpy.random.default_rng(60), families=FAMILIES, seeds=seeds, noise=[spread / math.sqrt(2)] * 4)
    )
    assert (words == "tie").mean() > 0.9


def test_unclear_rate_at_wide_spread() -> None:
    words = words_of(arms_of(numpy.random.default_rng(70), families=FAMILIES, seeds=3, noise=[0.05] * 4))
    assert (words == "unclear").mean() > 0.95
