"""Write the results of a comparison as sentences: verdicts, severities, notes on the runs, and the scope.

The same sentences appear on the terminal, in reports, in the JSON output and in MLflow descriptions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from adaptkit.comparison.constant import SHARES
from adaptkit.comparison.evidence import covers_pools
from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.inference import ALPHA, Inference, quantile
from adaptkit.comparison.metrics import is_cost
from adaptkit.comparison.numbers import amount, counted, listed, p_phrase, rounded, times, unit, with_value_unit
from adaptkit.comparison.pairs import cheaper, saw_labels
from adaptkit.comparison.records import ArmResult, DomainResult, Estimate, PairResult
from adaptkit.comparison.severity import Crossing, Robustness
from adaptkit.comparison.statistics import holm
from adaptkit.names import (
    FINAL_GAIN,
    FINAL_RETENTION,
    FINAL_SHIFTED_ACCURACY,
    FINAL_TEST_ACCURACY,
    PARAMS_TRAINABLE,
    STARTS_AT_BASE_TAG,
    TIME_TRAIN_SECONDS,
    TUNED_INSIDE_TAG,
)
from adaptkit.settings.request import OVERLAPPING
from adaptkit.settings.severities import written

#: with more pairs than this, only those of the best arm have a sentence
MOST_PAIRS = 10
DECIDED = ("better", "worse")
#: number of crossings with a sentence; the JSON has all
MOST_CROSSINGS = 5
#: number of seeds that messages recommend
ENOUGH_SEEDS = 5

TIME = TIME_TRAIN_SECONDS
#: metric -> how a sentence about it begins
OPENINGS = {
    FINAL_SHIFTED_ACCURACY: "In target accuracy",
    FINAL_TEST_ACCURACY: "In source accuracy",
    FINAL_GAIN: "In gain of target accuracy",
    FINAL_RETENTION: "In retention of source accuracy",
}


def verdict_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return the verdicts, those of the best arm first, then what follows from them, and the scope."""
    sentences = [_pair_sentence(comparison, pair) for pair in shown_pairs(comparison)]
    warned = constant_sentences(comparison)
    if warned and all(arm.beats_constant is False for arm in comparison.arms):
        # Sizes of differences, choices and fronts among useless strategies would sound like a recommendation.
        shown = zip(sentences, shown_pairs(comparison), strict=True)
        decided = [text for text, pair in shown if pair.verdict in DECIDED]
        return (*warned, *decided, *_domain_sentences(comparison), scope_sentence(comparison))
    if hidden := len(comparison.pairs) - len(sentences):
        sentences.append(f"The other {hidden:,} pairs are in the report's table.")
    sentences += _domain_sentences(comparison)
    if any(pair.only_models for pair in comparison.pairs):
        sentences.append(
            "One run of each strategy shows nothing about the strategies, because another training may reverse the "
            f"result: run at least {ENOUGH_SEEDS} seeds (--seeds 0-{ENOUGH_SEEDS - 1})."
        )
    sentences += _open_sentences(comparison)
    if comparison.metric.key in (FINAL_SHIFTED_ACCURACY, FINAL_GAIN) and comparison.zero_shot is not None:
        sentences.append(_zero_shot_sentence(comparison, comparison.zero_shot))
    if len(comparison.arms) > 1:
        sentences.append(_front_sentence(comparison))
    sentences += severity_sentences(comparison.robustness)
    sentences.append(scope_sentence(comparison))
    return (*warned, *sentences)


def constant_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return a warning about strategies that are not shown to be better than the best constant answer."""
    constant = comparison.constant
    useless = [arm.name for arm in comparison.arms if arm.beats_constant is False]
    if constant is None or not useless:
        return ()
    answer = constant.answer if constant.answer == SHARES else f"always answering {constant.answer!r}"
    metric, score = constant.metric, with_value_unit(constant.metric, constant.score)
    if len(useless) == len(comparison.arms):
        who = "No strategy is" if len(useless) > 1 else f"{useless[0]} is not"
        return (f"{who} shown to be better than {answer} ({metric.label} {score}): none can be recommended.",)
    verb = "is" if len(useless) == 1 else "are"
    return (f"{listed(useless)} {verb} not shown to be better than {answer} ({metric.label} {score}).",)


def shown_pairs(comparison: Comparison) -> Sequence[PairResult]:
    """Return the pairs to show on the terminal: all, or only those of the best arm if there are many."""
    if len(comparison.pairs) <= MOST_PAIRS:
        return comparison.pairs
    return [pair for pair in comparison.pairs if pair.a == comparison.arms[0].name][:MOST_PAIRS]


def opening(comparison: Comparison) -> str:
    """Return the beginning of a sentence about the compared metric."""
    metric = comparison.metric
    return OPENINGS.get(metric.key, f"{'In' if metric.test is not None else 'By'} {metric.label}")


def _pair_sentence(comparison: Comparison, pair: PairResult) -> str:
    place = opening(comparison)
    if pair.n == 0:
        return f"{place}, {pair.a} and {pair.b} cannot be paired: they share no seed. Run both with the same seeds."
    if pair.difference is None or pair.low is None or pair.high is None or pair.p is None:
        return f"{place}, {_shown(comparison, pair)}"
    if pair.only_models:
        return f"{place}, {_models(comparison, pair)}"
    if pair.verdict in DECIDED:
        return f"{place}, {_decided(comparison, pair)}"
    if pair.verdict == "tie":
        return f"{place}, {_tied(comparison, pair)}"
    return f"{place}, {_undecided(comparison, pair)}"


def _decided(comparison: Comparison, pair: PairResult) -> str:
    swap = pair.verdict == "worse"
    winner, loser = (pair.b, pair.a) if swap else (pair.a, pair.b)
    sign = 1 if pair.difference is not None and pair.difference >= 0 else -1
    costs = _costs(comparison, pair, swap)
    size = f"{_difference(comparison, pair, sign)}{_evidence(comparison, pair)}"
    return f"{winner} is better than {loser} by {size}. It {costs}."


def _tied(comparison: Comparison, pair: PairResult) -> str:
    cheaper_first = pair.trainable_ratio <= 1
    cheap = pair.a if cheaper_first else pair.b
    margin = f"±{comparison.metric.scale * comparison.margin:g} {unit(comparison.metric, comparison.margin)}"
    return (
        f"{pair.a} and {pair.b} are tied within {margin}: "
        f"they differ by {_difference(comparison, pair, 1)}{_evidence(comparison, pair)}. "
        f"{cheap} {_costs(comparison, pair, not cheaper_first)}."
    )


def _undecided(comparison: Comparison, pair: PairResult) -> str:
    start = (
        f"{pair.a} and {pair.b} differ by {_difference(comparison, pair, 1)}{_evidence(comparison, pair)}: undecided."
    )
    if pair.domains:
        return f"{start} Images of more values of the held-out column would be needed, not more images of these."
    counts = ((pair.labels_needed, "labelled images"), (pair.seeds_needed, "seeds"))
    for needed, name in (*counts, (pair.test_images_needed, "test images")):
        if needed is not None:
            now = pair.n if name == "seeds" else comparison.test_images
            if name == "labelled images" and pair.protocol != "folds":
                now = int(comparison.setup.get("pool_images", "0"))
            more = rounded(max(needed - now, 1))
            what = name if more > 1 else name.removesuffix("s")
            return (
                f"{start} If the difference stays the same, about {more:,} more {what} ({now + more:,} in all) would "
                "show it with an even chance."
            )
    if saw_labels(comparison.arm(pair.a), comparison.arm(pair.b)):
        return f"{start} Strategies that were tuned with the evaluated labels get no verdict."
    if comparison.metric.test is not None:
        return f"{start} The measured difference is too near 0 to say how many images would decide."
    return start


def _shown(comparison: Comparison, pair: PairResult) -> str:
    """Return the sentence on a difference whose uncertainty is not known."""
    metric = comparison.metric
    if pair.difference is None:
        return f"{pair.a} and {pair.b} cannot be compared: not all of their runs have this metric."
    size = f"{amount(metric, pair.difference)} {unit(metric, pair.difference)}".rstrip()
    start = f"{pair.a} and {pair.b} differ by {size}, without a verdict:"
    if is_cost(metric.key):
        return f"{start} one run does not show how much this varies."
    if metric.test is not None:
        return f"{start} the error of this metric cannot be measured."
    return f"{start} adaptkit cannot compute this metric from the predictions."


def _models(comparison: Comparison, pair: PairResult) -> str:
    """Return the sentence on two trained models, whose training was not repeated."""
    assert pair.p is not None
    if pair.p >= ALPHA:
        differ = f"the trained models of {pair.a} and {pair.b} are not shown to differ: {pair.a} is ahead by"
        return f"{differ} {_difference(comparison, pair, 1)}{_evidence(comparison, pair)}."
    return (
        f"these two trained models differ: that of {pair.a} is ahead of that of {pair.b} by "
        f"{_difference(comparison, pair, 1)}{_evidence(comparison, pair)}."
    )


def _domain_sentences(comparison: Comparison) -> list[str]:
    """Return a sentence for each held-out value of a column, and one on the worst value of each arm."""
    names = list(comparison.arms[0].domains)
    if not names:
        return []
    column = comparison.setup.get("folds", "").removeprefix("by:") or "domain"
    sentences = []
    for index, name in enumerate(names):
        results = [(pair, pair.domains[index]) for pair in shown_pairs(comparison) if pair.domains]
        parts = [_on_domain(comparison, pair, result) for pair, result in results]
        if parts:
            images = results[0][1].images
            sentences.append(f"On {column} {name} ({images:,} images): {'; '.join(parts)}.")
    worst = [(arm.name, *min(arm.domains.items(), key=lambda item: item[1].mean)) for arm in comparison.arms]
    shown = [f"{arm} on {name} ({100 * accuracy.mean:.1f} %)" for arm, name, accuracy in worst]
    return [*sentences, f"Lowest target accuracy by {column}: {listed(shown)}."]


def _on_domain(comparison: Comparison, pair: PairResult, result: DomainResult) -> str:
    metric = comparison.metric
    swap = result.verdict == "worse"
    sign = -1 if swap else 1
    low, high = sorted((sign * result.low, sign * result.high))
    value = sign * result.difference
    size = f"{amount(metric, value)} [{amount(metric, low)}, {amount(metric, high)}]"
    one, other = (pair.b, pair.a) if swap else (pair.a, pair.b)
    if result.verdict in ("better", "worse"):
        return f"{one} is better than {other} by {size}"
    if result.verdict == "tie":
        return f"{one} and {other} are tied ({size})"
    return f"{one} and {other} are undecided ({size})"


def _open_sentences(comparison: Comparison) -> list[str]:
    """Return the difference that the comparison can find, and which arm to take, if no arm is shown to be the best."""
    sizes = sorted(pair.detectable for pair in comparison.pairs if pair.detectable is not None and not pair.only_models)
    choice, metric = comparison.choice, comparison.metric
    if saw_labels(*comparison.arms):
        return []
    sentences = []
    size = sizes[len(sizes) // 2] if sizes else 0.0
    # A difference of shares above 100 points means that too few runs are independent to say anything.
    if sizes and metric.test is not None and not (metric.scale == 100 and size > 1):
        sentences.append(
            f"This comparison finds a true difference of {amount(metric, size)} {unit(metric, size)} with a "
            "probability of 80 %."
        )
    if choice is None:
        return sentences
    if choice.name == choice.best:
        return [
            *sentences,
            f"If you must choose now: {choice.name} has the best mean, and trains the fewest parameters of the "
            "strategies that are not shown to be worse.",
        ]
    start = (
        f"If you must choose now: of the strategies that are not shown to be worse than {choice.best}, which has the "
        f"best mean, {choice.name} trains the fewest parameters ({choice.cost:,})."
    )
    if choice.most_lost is None:
        return [*sentences, start]
    most = max(choice.most_lost, 0.0)
    return [
        *sentences,
        f"{start} This choice costs at most {amount(metric, most)} {unit(metric, most)} (upper end of the 95 % "
        "interval).",
    ]


def _difference(comparison: Comparison, pair: PairResult, sign: int) -> str:
    """Return the difference with its interval; `sign` is -1 if the sentence names the second arm first."""
    metric = comparison.metric
    assert pair.difference is not None and pair.low is not None and pair.high is not None
    low, high = sorted((sign * pair.low, sign * pair.high))
    value = sign * pair.difference
    return f"{amount(metric, value)} {unit(metric, value)} [{amount(metric, low)}, {amount(metric, high)}]"


def _evidence(comparison: Comparison, pair: PairResult) -> str:
    assert pair.p is not None
    tested = sum(other.p is not None for other in comparison.pairs)
    return f" ({p_phrase(pair.p)}{f', corrected for {tested:,} pairs' if tested > 1 else ''})"


def _costs(comparison: Comparison, pair: PairResult, swapped: bool) -> str:
    """Return the costs of the first arm of the pair (the second if swapped) relative to the other."""

    def relative(ratio: float) -> float:
        return 1 / ratio if swapped else ratio

    ratio = relative(pair.trainable_ratio)
    parts = [f"trains {times(ratio, more='the parameters', less='the parameters', equal='as many parameters')}"]
    one, other = comparison.arm(pair.a), comparison.arm(pair.b)
    if pair.seconds_ratio and (cheaper(one, other, TIME) or cheaper(other, one, TIME)):
        parts.append(
            f"took {times(relative(pair.seconds_ratio), more='as long', less='the time', equal='about as long')}"
        )
    if pair.retention_difference is not None and comparison.metric.test != "clean" and _apart(one, other):
        kept = -pair.retention_difference if swapped else pair.retention_difference
        points = f"{100 * abs(kept):.1f}"
        # A strategy that does not start at the base, such as `scratch`, cannot lose source accuracy.
        both_lost = all(
            arm.retention is not None and arm.retention.mean < 0 and _starts_at_base(arm) for arm in (one, other)
        )
        if both_lost:
            parts.append(f"lost {points} points {'more' if kept < 0 else 'less'} source accuracy")
        else:
            parts.append(f"ended {points} points {'lower' if kept < 0 else 'higher'} in source accuracy")
    return listed(parts)


def _apart(one: ArmResult, other: ArmResult) -> bool:
    """Return whether the intervals of the retention of two arms do not overlap: less is not named as a cost."""
    first, second = one.retention, other.retention
    if first is None or second is None or None in (first.low, first.high, second.low, second.high):
        return False
    assert first.low is not None and first.high is not None and second.low is not None and second.high is not None
    return first.low > second.high or second.low > first.high


def _zero_shot_sentence(comparison: Comparison, zero_shot: float) -> str:
    start = f"Without adaptation, the base reaches {100 * zero_shot:.1f} % target accuracy."
    gains = {arm.name: arm.gain for arm in comparison.arms if arm.gain is not None}
    if not gains or any(pair.only_models for pair in comparison.pairs):
        return start
    # As for pairs, an improvement is shown if it is significant after Holm's correction.
    tests = [Inference(gain.mean, df=gain.df, over_units=_variance(gain)).p or 1.0 for gain in gains.values()]
    shown = [p < ALPHA and gain.mean > 0 for p, gain in zip(holm(tests), gains.values(), strict=True)]
    if lost := [name for name, is_shown in zip(gains, shown, strict=True) if not is_shown]:
        return f"{start} For {listed(lost)}, an improvement over this is not shown."
    if len(gains) == 1:
        return f"{start} {_gained(*gains.popitem())}."
    return f"{start} Every strategy is shown to be better than that."


def _variance(estimate: Estimate) -> float:
    """Return the squared standard error of an estimate."""
    if estimate.half_width is None or estimate.df is None:
        return 0.0
    return (estimate.half_width / quantile(ALPHA / 2, estimate.df)) ** 2


def _gained(name: str, gain: Estimate) -> str:
    interval = "" if gain.low is None or gain.high is None else f" [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"
    return f"{name} gains {100 * gain.mean:.1f} points{interval}"


def _starts_at_base(arm: ArmResult) -> bool:
    return arm.runs[0].tags.get(STARTS_AT_BASE_TAG, "True") == "True"


def _front_sentence(comparison: Comparison) -> str:
    cost = PARAMS_TRAINABLE
    front = [arm.name for arm in comparison.front(cost)]
    beaten = [arm for arm in comparison.arms if arm.dominated_by[cost]]
    sentence = (
        f"The Pareto front by trainable parameters is {listed(front)}. A strategy is on this front if no strategy with "
        "fewer trainable parameters is better or tied."
    )
    if beaten:
        shown = [f"{arm.name} is dominated by {listed(arm.dominated_by[cost])}" for arm in beaten]
        sentence += f" {listed(shown)}."
    return sentence


def scope_sentence(comparison: Comparison) -> str:
    """Return the scope of the verdicts: data, base, number of training labels, and what they generalise to."""
    metric, setup = comparison.metric, comparison.setup
    if metric.test is None:
        return "This holds for this base, these data and the machine that made the runs."
    runs = max((arm.runs for arm in comparison.arms), key=len)
    protocol, labels = setup.get("protocol", OVERLAPPING), setup.get("drawn_images", "the same numbers of")
    test = metric.test
    data = setup.get("target", "none")
    if data == "none" or test == "clean":
        data = setup.get("dataset", "this domain")
    if test == "shifted" and setup.get("shift", "none") != "none":
        data += " under this shift"
    images = len(set(runs[0].predictions[test].image.tolist()))
    tests = f"new test images of {data}; {images:,} were measured"
    if any(pair.only_models for pair in comparison.pairs) or (protocol != "folds" and len(runs) < 2):
        where = f"these trained models ({labels} labelled images) and {tests}"
    elif comparison.arms[0].domains:
        column = setup.get("folds", "").removeprefix("by:")
        where = f"this base and new values of {column}; the verdict on a value holds for new test images of it"
    elif protocol == "folds":
        groups = next((pair.groups for pair in comparison.pairs if pair.groups), None)
        new = f"new groups ({groups:,} were measured)" if groups else "new labelled and new test images"
        where = f"this base, models trained on {labels} labelled images, and {new} of {data}"
    elif protocol == "given":
        where = f"this base, these {labels} training images, and {tests}"
    elif covers_pools(runs):
        where = f"this base, models trained on {labels} newly labelled images, and {tests}"
    else:
        pool = setup.get("pool_images", "")
        where = f"this base, models trained on {labels} images of this pool{f' of {pool}' if pool else ''}, and {tests}"
    return f"This holds for {where}.{_tuned_inside(comparison)}"


def severity_sentences(robustness: Robustness | None) -> tuple[str, ...]:
    """Return a sentence on the areas, then sentences on crossings, the most certain first; none for a single arm."""
    if robustness is None or len(robustness.arms) < 2 or len(robustness.severities) < 2:
        return ()
    return (_area_sentence(robustness), *_crossing_sentences(robustness))


def _area_sentence(robustness: Robustness) -> str:
    areas = [f"{arm.name} {100 * arm.area:.1f} %" for arm in robustness.arms if arm.area is not None]
    return f"Mean accuracy over severities {_range(robustness)} of the shift, without a verdict: {listed(areas)}."


def _crossing_sentences(robustness: Robustness) -> list[str]:
    if not robustness.crossings:
        lines = "The two mean lines do not" if len(robustness.arms) == 2 else "No two mean lines"
        return [f"{lines} cross over these severities."]
    # The sort is stable: equally clear crossings keep the order of the areas of the arms.
    ordered = sorted(robustness.crossings, key=lambda crossing: -min(abs(crossing.before), abs(crossing.after)))
    sentences = [
        f"The means of {crossing.falling} and {crossing.rising} cross near severity {_place(crossing)}: beyond it, the "
        f"mean of {crossing.rising} is higher."
        for crossing in ordered[:MOST_CROSSINGS]
    ]
    if (more := len(ordered) - MOST_CROSSINGS) > 0:
        sentences.append(f"The JSON output lists {more:,} more crossings of mean lines (`crossings`).")
    return sentences


def _place(crossing: Crossing) -> str:
    """Return the severity at which two lines cross, with decimals that fit the distance of the tested severities."""
    decimals = max(0, math.ceil(-math.log10((crossing.high - crossing.low) / 3)))
    return f"{crossing.at:.{decimals}f}"


def _range(robustness: Robustness) -> str:
    return f"{written(robustness.severities[0])} to {written(robustness.severities[-1])}"


def _tuned_inside(comparison: Comparison) -> str:
    """Return the part of the scope that names tuning inside the fits; empty if no strategy was tuned so."""
    # A head that is fitted without gradient descent has no learning rate to tune.
    arms = [arm for arm in comparison.arms if "epochs" in arm.settings]
    trials = {run.tags.get(TUNED_INSIDE_TAG, "0") for arm in arms or comparison.arms for run in arm.runs}
    if trials == {"0"}:
        return ""
    if len(trials) == 1:
        every = "Every strategy" if arms in ([], list(comparison.arms)) else "Every strategy with gradient descent"
        return f" {every} was tuned with {counted(int(trials.pop()), 'trial')} in each fit."
    return f" The strategies were tuned with unequal numbers of trials in each fit: {listed(sorted(trials, key=int))}."
