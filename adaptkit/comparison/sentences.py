"""Write the results of a comparison as sentences: verdicts, severities, notes on the runs, and the scope.

The same sentences appear on the terminal, in reports, in the JSON output and in MLflow descriptions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from adaptkit.comparison.metrics import TEST_SETS, of_severities
from adaptkit.comparison.numbers import amount, listed, p_phrase, part, plural, rounded, times, unit
from adaptkit.comparison.pairs import cheaper
from adaptkit.comparison.records import ArmResult, Comparison, Estimate, PairResult
from adaptkit.comparison.severity import Crossing, Robustness, SeverityArm, SeverityPair
from adaptkit.comparison.statistics import sampling_error, seeds_needed
from adaptkit.names import (
    FINAL_GAIN,
    FINAL_RETENTION,
    FINAL_SHIFTED_ACCURACY,
    FINAL_SHIFTED_MACRO_F1,
    FINAL_TEST_ACCURACY,
    PARAMS_TRAINABLE,
    STARTS_AT_BASE_TAG,
    TIME_TRAIN_SECONDS,
    TUNING_TAG,
)
from adaptkit.settings.request import OVERLAPPING
from adaptkit.settings.severities import written

#: with more pairs than this, only those of the best arm have a sentence
MOST_PAIRS = 10
#: number of crossings with a sentence; the JSON has all
MOST_CROSSINGS = 5
#: number of seeds that messages recommend
ENOUGH_SEEDS = 5

TIME = TIME_TRAIN_SECONDS
#: metric -> how a sentence about it begins
OPENINGS = {
    FINAL_SHIFTED_ACCURACY: "In target accuracy",
    FINAL_SHIFTED_MACRO_F1: "In target macro F1",
    FINAL_TEST_ACCURACY: "In source accuracy",
    FINAL_GAIN: "In gain of target accuracy",
    FINAL_RETENTION: "In retention of source accuracy",
}


def verdict_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return the verdicts, those of the best arm first, then zero-shot, Pareto front, severities and scope."""
    sentences = [_pair_sentence(comparison, pair) for pair in shown_pairs(comparison)]
    if hidden := len(comparison.pairs) - len(sentences):
        sentences.append(f"The other {hidden:,} pairs are in the report's table.")
    if any(pair.test == "mcnemar" for pair in comparison.pairs):
        sentences.append(
            "With one seed, McNemar's test covers only the chance in the test images. Another draw of the labelled "
            f"images may reverse the result: run at least {ENOUGH_SEEDS} seeds (--seeds 0-{ENOUGH_SEEDS - 1})."
        )
    if comparison.metric.key in (FINAL_SHIFTED_ACCURACY, FINAL_GAIN) and comparison.zero_shot is not None:
        sentences.append(_zero_shot_sentence(comparison, comparison.zero_shot))
    if len(comparison.arms) > 1:
        sentences.append(_front_sentence(comparison))
    sentences += severity_sentences(comparison.robustness)
    sentences.append(scope_sentence(comparison))
    return tuple(sentences)


def note_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return notes on the runs: missing seeds, unequal training, timings that are not comparable, runs left out."""
    notes = []
    every = sorted({seed for arm in comparison.arms for seed in arm.seeds})
    for arm in comparison.arms:
        if missing := [seed for seed in every if seed not in arm.seeds]:
            notes.append(
                f"{arm.name} has no finished run of {plural('seed', missing)} {listed(map(str, missing))}: its pairs "
                "use only the seeds that both strategies have."
            )
    for key, words in (("epochs", "epochs"), ("batch_size", "images per step")):
        values = {arm.settings.get(key, "?") for arm in comparison.arms}
        if len(values) > 1:
            shown = listed(sorted(values, key=lambda value: (len(value), value)))
            notes.append(
                f"The strategies were trained with unequal {key} ({shown} {words}): they share only the drawn images."
            )
    notes += budget_notes(comparison.arms)
    if not comparison.timings_comparable:
        notes.append(
            "Training times are shown but not ranked: the runs shared a machine, or used different machines or "
            "numbers of threads."
        )
    if comparison.robustness is not None:
        notes += comparison.robustness.notes
    for status in dict.fromkeys(run.status for run in comparison.left_out):
        runs = [run for run in comparison.left_out if run.status == status]
        reasons = dict.fromkeys(run.reason for run in runs if run.reason != run.status)
        why = f" ({listed(reasons)})" if reasons else ""
        notes.append(f"{len(runs)} {status} {plural('run', runs)} left out: {listed(run.name for run in runs)}{why}.")
    return tuple(notes)


def shown_pairs(comparison: Comparison) -> Sequence[PairResult]:
    """Return the pairs to show on the terminal: all, or only those of the best arm if there are many."""
    if len(comparison.pairs) <= MOST_PAIRS:
        return comparison.pairs
    return [pair for pair in comparison.pairs if pair.a == comparison.arms[0].name][:MOST_PAIRS]


def opening(comparison: Comparison) -> str:
    """Return the beginning of a sentence about the compared metric."""
    return OPENINGS.get(comparison.metric.key, f"By {comparison.metric.label}")


def _pair_sentence(comparison: Comparison, pair: PairResult) -> str:
    place = opening(comparison)
    if pair.n == 0:
        return f"{place}, {pair.a} and {pair.b} cannot be paired: they share no seed. Run both with the same seeds."
    if pair.test is None or pair.difference is None or pair.low is None or pair.high is None or pair.p is None:
        return (
            f"{place}, one seed cannot distinguish {pair.a} from {pair.b}. Run at least {ENOUGH_SEEDS} seeds "
            f"(--seeds 0-{ENOUGH_SEEDS - 1})."
        )
    if pair.verdict in ("better", "worse"):
        return f"{place}, {_decided(comparison, pair)}"
    if pair.verdict == "tie":
        return f"{place}, {_tied(comparison, pair)}"
    return f"{place}, {_undecided(comparison, pair)}"


def _decided(comparison: Comparison, pair: PairResult) -> str:
    swap = pair.verdict == "worse"
    winner, loser = (pair.b, pair.a) if swap else (pair.a, pair.b)
    sign = 1 if pair.difference is not None and pair.difference >= 0 else -1
    costs = _costs(comparison, pair, swap)
    return f"{winner} beats {loser} by {_difference(comparison, pair, sign)}{_evidence(comparison, pair)}. It {costs}."


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
    start = f"{pair.a} and {pair.b} differ by {_difference(comparison, pair, 1)}{_evidence(comparison, pair)}."
    if pair.seeds_verdict != "unclear":
        interval = (
            f"[{amount(comparison.metric, pair.image_low or 0)}, {amount(comparison.metric, pair.image_high or 0)}]"
        )
        result = {"tie": "a tie"}.get(pair.seeds_verdict, "a difference")
        more = (
            f"About {rounded(pair.images_needed):,} test images would confirm it."
            if pair.images_needed
            else "At this difference, no number of test images would confirm it."
        )
        return (
            f"{start} The seeds show {result}, but the interval over resampled test images, {interval}, does not "
            f"confirm it: unclear. {more}"
        )
    if pair.sd is None:
        return f"{start} The test images do not decide which is better."
    if pair.seeds_needed is None:
        return f"{start} The seeds do not decide which is better, and at this spread up to 10,000 seeds would not."
    # Because of Holm's correction, the estimate can be too low: recommend at least one more seed.
    needed = rounded(max(pair.seeds_needed, pair.n + 1))
    tested = sum(other.p is not None for other in comparison.pairs)
    # Without a margin, seeds can only show a difference, not a tie.
    is_difference = seeds_needed(pair.difference or 0.0, pair.sd, margin=0.0, pairs=tested) == pair.seeds_needed
    result = "a difference" if is_difference else "a tie"
    return (
        f"{start} The seeds do not decide which is better. If the mean and the spread stay the same, {needed:,} seeds "
        f"({needed - pair.n:,} more) are enough to show {result}. The interval over resampled test images must agree."
    )


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
    p = p_phrase(pair.p) + (f", corrected for {tested:,} pairs" if tested > 1 else "")
    if pair.test == "mcnemar":
        return f" with one seed (McNemar's exact test, {p})"
    return f" over {pair.n} paired seeds ({p})"


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
    if pair.retention_difference is not None and TEST_SETS.get(comparison.metric.key) != "clean":
        kept = -pair.retention_difference if swapped else pair.retention_difference
        points = f"{100 * abs(kept):.1f}"
        # A strategy that does not start at the base, such as `scratch`, cannot lose source accuracy.
        both_lost = all(
            arm.retention is not None and arm.retention.mean < 0 and _starts_at_base(arm) for arm in (one, other)
        )
        if points == "0.0":
            parts.append("ended with equal source accuracy")
        elif both_lost:
            parts.append(f"lost {points} points {'more' if kept < 0 else 'less'} source accuracy")
        else:
            parts.append(f"ended {points} points {'lower' if kept < 0 else 'higher'} in source accuracy")
    return listed(parts)


def _zero_shot_sentence(comparison: Comparison, zero_shot: float) -> str:
    start = f"Without adaptation, the base reaches {100 * zero_shot:.1f} % target accuracy."
    gains = {arm.name: arm.gain for arm in comparison.arms if arm.gain is not None}
    lost = [name for name, gain in gains.items() if not _is_gain(gain)]
    if lost:
        return f"{start} For {listed(lost)}, the runs do not show an improvement over this."
    if len(gains) == 1:
        return f"{start} {_gained(*gains.popitem())}."
    if any(gain.low is None for gain in gains.values()):
        return start
    return f"{start} The 95 % interval of every strategy is above that."


def _gained(name: str, gain: Estimate) -> str:
    interval = "" if gain.low is None or gain.high is None else f" [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"
    return f"{name} gains {100 * gain.mean:.1f} points{interval}"


def _is_gain(gain: Estimate) -> bool:
    return (gain.mean if gain.low is None else gain.low) > 0


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


#: protocol -> what the verdicts do not cover yet
PRELIMINARY = {
    "folds": "Preliminary: repeats of the same cross-validation are counted as if they were independent.",
    "given": "Preliminary: seeds with the same training images are counted as if they had different ones.",
    "draws": "Preliminary: draws from one pool are counted as if they came from different pools.",
}


def scope_sentence(comparison: Comparison) -> str:
    """Return the scope of the verdicts: the base, the test images and the draws to which they apply."""
    metric = comparison.metric
    test = TEST_SETS.get(metric.key, "shifted")
    images = len(comparison.arms[0].runs[0].predictions[test].truth)
    if of_severities(metric.key):
        return f"This holds for this base and these {images:,} test images under these severities."
    if metric.key not in TEST_SETS:
        return "This holds for this base, these data and the machine that made the runs."
    sentence = f"This holds for this base and these {images:,} test images."
    judged = [arm.shifted if test == "shifted" else arm.clean for arm in comparison.arms]
    accuracies = [accuracy.mean for accuracy in judged if accuracy is not None]
    error = sampling_error(sum(accuracies) / len(accuracies), images)
    sentence += f" The 95 % sampling error of an accuracy is ±{100 * error:.1f} points."
    protocol = comparison.setup.get("protocol", OVERLAPPING)
    if protocol != OVERLAPPING:
        return f"{sentence} {PRELIMINARY[protocol]}"
    if any(len(arm.seeds) > 1 for arm in comparison.arms):
        drawn, pool = (comparison.setup.get(key, "") for key in ("drawn_images", "pool_images"))
        if drawn.isdigit() and pool.isdigit() and int(pool):
            # Two draws of k images from a pool of n share k * k / n images on average.
            sentence += f" Two seeds share {part(int(drawn) / int(pool))} of their drawn images on average."
    return sentence


def severity_sentences(robustness: Robustness | None) -> tuple[str, ...]:
    """Return a sentence on the areas, then sentences on crossings, the most certain first; none for a single arm."""
    if robustness is None or len(robustness.arms) < 2 or len(robustness.severities) < 2:
        return ()
    return (_area_sentence(robustness), *_crossing_sentences(robustness))


def _area_sentence(robustness: Robustness) -> str:
    best, *others = robustness.arms
    start = (
        f"Over severities {_range(robustness)} of the shift, {best.name} has the largest area under its accuracy, "
        f"{_percent(best)}."
    )
    pairs = {pair.b: pair for pair in robustness.pairs if pair.a == best.name}
    paired = {arm.name: pairs[arm.name] for arm in others if arm.name in pairs}
    if all(pair.p is None for pair in paired.values()):
        return f"{start} One seed cannot show whether this is more than chance."
    smaller = [_compared(name, pair) for name, pair in paired.items() if pair.verdict == "better"]
    tied = [_compared(name, pair) for name, pair in paired.items() if pair.verdict == "tie"]
    undecided = [_compared(name, pair) for name, pair in paired.items() if pair.verdict not in ("better", "tie")]
    sentences = [start]
    if smaller:
        sentences.append(f"It is better than {listed(smaller)}.")
    if tied:
        sentences.append(f"It is tied with {listed(tied)}.")
    if undecided:
        sentences.append(f"These seeds do not distinguish it from {listed(undecided)}.")
    return " ".join(sentences)


def _crossing_sentences(robustness: Robustness) -> list[str]:
    if not robustness.crossings:
        lines = "The two mean lines do not" if len(robustness.arms) == 2 else "No two mean lines"
        return [f"{lines} cross over these severities."]
    # The sort is stable: within a group, crossings keep the order of the areas of the arms.
    ordered = sorted(robustness.crossings, key=lambda crossing: (not crossing.settled, not _is_clear(crossing)))
    sentences = [_crossing(crossing) for crossing in ordered[:MOST_CROSSINGS]]
    if (more := len(ordered) - MOST_CROSSINGS) > 0:
        sentences.append(f"The JSON output lists {more:,} more crossings of mean lines (`crossings`).")
    return sentences


def _crossing(crossing: Crossing) -> str:
    if crossing.settled:
        return (
            f"{crossing.rising} overtakes {crossing.falling} at severity {_place(crossing)}. Over {crossing.n} paired "
            f"seeds, it is clearly behind at {written(crossing.low)} (by {100 * -crossing.before:.1f} points) and "
            f"clearly ahead at {written(crossing.high)} (by {100 * crossing.after:.1f} points)."
        )
    seeds = "One seed does" if crossing.n == 1 else "These seeds do"
    start = f"The means of {crossing.falling} and {crossing.rising} cross near severity {_place(crossing)}"
    if _is_clear(crossing):
        assert crossing.sure_before is not None and crossing.sure_after is not None
        return (
            f"{start}. {seeds} not determine the place: {crossing.falling} is clearly ahead at "
            f"{written(crossing.sure_before)}, {crossing.rising} at {written(crossing.sure_after)}."
        )
    return f"{start}: beyond it, {crossing.rising} is ahead. {seeds} not confirm this crossing."


def _is_clear(crossing: Crossing) -> bool:
    """Return whether the order of the two arms clearly changes at any severity."""
    return crossing.sure_before is not None and crossing.sure_after is not None


def _place(crossing: Crossing) -> str:
    """Return the severity at which two lines cross, with decimals that fit the distance of the tested severities."""
    decimals = max(0, math.ceil(-math.log10((crossing.high - crossing.low) / 3)))
    return f"{crossing.at:.{decimals}f}"


def _range(robustness: Robustness) -> str:
    return f"{written(robustness.severities[0])} to {written(robustness.severities[-1])}"


def _percent(arm: SeverityArm) -> str:
    assert arm.area is not None
    text = f"{100 * arm.area.mean:.1f} %"
    if arm.area.low is not None and arm.area.high is not None:
        text += f" [{100 * arm.area.low:.1f}, {100 * arm.area.high:.1f}]"
    return text


def _compared(name: str, pair: SeverityPair) -> str:
    if pair.difference is None or pair.p is None:
        return f"{name} (no two shared seeds)"
    return f"{name} ({pair.difference * 100:+.1f} points, {p_phrase(pair.p)})"


def budget_notes(arms: Sequence[ArmResult]) -> list[str]:
    """Return notes on how each arm was tuned, and warnings if arms were tuned unequally; none without tuning.

    An arm counts as tuned only if all its runs come from a tuning, because other runs can have the same settings by
    chance.
    """
    tags = {arm.name: [run.tags.get(TUNING_TAG, "") for run in arm.runs] for arm in arms}
    tuned = {name: lines for name, lines in tags.items() if all(lines)}
    if not tuned:
        return []
    notes = []
    for arm in arms:
        for line in dict.fromkeys(tuned.get(arm.name, ())):
            budget, _, rest = line.partition("; ")
            notes.append(f"{arm.name} was tuned on held-out labelled images, {budget}: {rest}.")
    untuned = [arm.name for arm in arms if arm.name not in tuned]
    if untuned:
        notes.append(
            f"{listed(tuned)} {'was' if len(tuned) == 1 else 'were'} tuned, but {listed(untuned)} "
            f"{'was' if len(untuned) == 1 else 'were'} not: a tuned strategy has an advantage."
        )
    budgets = dict.fromkeys(line.partition("; ")[0] for lines in tuned.values() for line in lines)
    if len(budgets) > 1:
        notes.append(
            f"The strategies were tuned with unequal budgets ({listed(budgets)}): more trials are an advantage."
        )
    return notes
