"""Say what a comparison found in sentences that could be read aloud, with what they cover."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adaptkit.comparison.metrics import TEST_SETS, of_severities
from adaptkit.comparison.numbers import amount, listed, p_phrase, part, plural, rounded, times, unit
from adaptkit.comparison.pairs import cheaper
from adaptkit.comparison.records import (
    ArmResult,
    Comparison,
    Crossing,
    Estimate,
    PairResult,
    Robustness,
    SeverityArm,
    SeverityPair,
)
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
from adaptkit.settings.severities import written


def budget_notes(arms: Sequence[ArmResult]) -> list[str]:
    """Return how each arm was tuned, and a warning where that is unequal; nothing where none was.

    An arm of which some runs are of no tuning was not tuned: one has merely chosen the same settings.
    """
    lines = {arm.name: [run.tags.get(TUNING_TAG, "") for run in arm.runs] for arm in arms}
    tuned = {name: found for name, found in lines.items() if all(found)}
    if not tuned:
        return []
    notes = []
    for arm in arms:
        for line in dict.fromkeys(tuned.get(arm.name, ())):
            budget, _, rest = line.partition("; ")
            notes.append(f"{arm.name} was tuned on labelled images held back from training, {budget}: {rest}.")
    untuned = [arm.name for arm in arms if arm.name not in tuned]
    if untuned:
        notes.append(
            f"{listed(tuned)} {'was' if len(tuned) == 1 else 'were'} tuned, {listed(untuned)} "
            f"{'was' if len(untuned) == 1 else 'were'} not: what was tuned has an advantage."
        )
    budgets = dict.fromkeys(line.partition("; ")[0] for found in tuned.values() for line in found)
    if len(budgets) > 1:
        notes.append(f"The arms were tuned with unequal budgets ({listed(budgets)}): more trials are an advantage.")
    return notes


def scope_sentence(comparison: Comparison) -> str:
    """Return for which base, images and seeds a verdict holds."""
    metric = comparison.metric
    test = TEST_SETS.get(metric.key, "shifted")
    images = len(comparison.arms[0].runs[0].predictions[test].truth)
    if of_severities(metric.key):
        return f"This holds for this base and these {images:,} test images under these severities."
    if metric.key not in TEST_SETS:
        return "This holds for this base, these data and the machine that the runs were made on."
    sentence = f"This holds for this base and these {images:,} test images"
    judged = [arm.shifted if test == "shifted" else arm.clean for arm in comparison.arms]
    accuracies = [found.mean for found in judged if found is not None]
    error = sampling_error(sum(accuracies) / len(accuracies), images)
    sentence += f" (an accuracy here has a 95 % sampling error of ±{100 * error:.1f} points)"
    if any(len(arm.seeds) > 1 for arm in comparison.arms):
        drawn, pool = (comparison.setup.get(key, "") for key in ("drawn_images", "pool_images"))
        if drawn.isdigit() and pool.isdigit() and int(pool):
            # Two draws of k images from a pool of n have k * k / n in common, on average.
            sentence += f"; the seeds' draws share {part(int(drawn) / int(pool))} of their images"
    return f"{sentence}."


#: crossings that are read aloud; they all stand in the JSON
MOST_CROSSINGS = 5


def severity_sentences(found: Robustness | None) -> tuple[str, ...]:
    """Return the sentence on areas, then those on crossings, the most certain first; none for a single arm."""
    if found is None or len(found.arms) < 2 or len(found.severities) < 2:
        return ()
    return (_area_sentence(found), *_crossing_sentences(found))


def _area_sentence(found: Robustness) -> str:
    best, *others = found.arms
    start = (
        f"Over severities {_range(found)} of the shift, {best.name} has the largest area under its accuracy, "
        f"{_percent(best)}"
    )
    pairs = {pair.b: pair for pair in found.pairs if pair.a == best.name}
    paired = {arm.name: pairs[arm.name] for arm in others if arm.name in pairs}
    if all(pair.p is None for pair in paired.values()):
        return f"{start}; one seed cannot tell whether that is more than chance."
    surely = [name for name, pair in paired.items() if pair.verdict == "better"]
    if len(surely) == len(others):
        return f"{start}; it is surely larger than that of {listed(_apart(name, paired[name]) for name in surely)}."
    tied = [_apart(name, pair) for name, pair in paired.items() if pair.verdict == "tie"]
    open_ = [_apart(name, pair) for name, pair in paired.items() if pair.verdict not in ("better", "tie")]
    parts = []
    if open_:
        parts.append(f"these seeds do not tell it from {listed(open_)}")
    if tied:
        parts.append(f"it is tied with {listed(tied)}")
    if surely:
        parts.append(f"it is surely larger than that of {listed(_apart(name, paired[name]) for name in surely)}")
    return f"{start}; {'; '.join(parts)}."


def _crossing_sentences(found: Robustness) -> list[str]:
    if not found.crossings:
        lines = "The two mean lines do not" if len(found.arms) == 2 else "No two mean lines"
        return [f"{lines} cross over these severities."]
    # Stable: crossings are in the order of the arms' areas.
    ordered = sorted(found.crossings, key=lambda crossing: (not crossing.settled, not _surely(crossing)))
    sentences = [_crossing(crossing) for crossing in ordered[:MOST_CROSSINGS]]
    if (more := len(ordered) - MOST_CROSSINGS) > 0:
        sentences.append(f"{more:,} more crossings of mean lines stand in the JSON (`crossings`).")
    return sentences


def _crossing(crossing: Crossing) -> str:
    if crossing.settled:
        return (
            f"{crossing.rising} overtakes {crossing.falling} at severity {_place(crossing)}: it is "
            f"{100 * -crossing.before:.1f} points behind at {written(crossing.low)} and {100 * crossing.after:.1f} "
            f"ahead at {written(crossing.high)}, both sure over {crossing.n} paired seeds."
        )
    seeds = "one seed does" if crossing.n == 1 else "these seeds do"
    start = f"The means of {crossing.falling} and {crossing.rising} cross near severity {_place(crossing)}"
    if _surely(crossing):
        assert crossing.sure_before is not None and crossing.sure_after is not None
        return (
            f"{start}, a place which {seeds} not settle: {crossing.falling} is surely ahead at "
            f"{written(crossing.sure_before)}, {crossing.rising} at {written(crossing.sure_after)}."
        )
    return f"{start}, with {crossing.rising} ahead beyond it, which {seeds} not settle."


def _surely(crossing: Crossing) -> bool:
    """Tell whether the two arms surely change places, wherever that may be."""
    return crossing.sure_before is not None and crossing.sure_after is not None


def _place(crossing: Crossing) -> str:
    """Return where lines cross, as precisely as the distance of the severities on both sides allows."""
    decimals = max(0, math.ceil(-math.log10((crossing.high - crossing.low) / 3)))
    return f"{crossing.at:.{decimals}f}"


def _range(found: Robustness) -> str:
    return f"{written(found.severities[0])} to {written(found.severities[-1])}"


def _percent(arm: SeverityArm) -> str:
    assert arm.area is not None
    bounds = "" if arm.area.low is None or arm.area.high is None else f" [{_in(arm.area.low)}, {_in(arm.area.high)}]"
    return f"{_in(arm.area.mean)} %{bounds}"


def _apart(name: str, pair: SeverityPair) -> str:
    if pair.difference is None or pair.p is None:
        return f"{name} (no two shared seeds)"
    return f"{name} ({pair.difference * 100:+.1f} points, {p_phrase(pair.p)})"


def _in(share: float) -> str:
    return f"{100 * share:.1f}"


#: more pairs than this are not read aloud: then those of the best arm are
MOST_PAIRS = 10
#: what a newcomer needs to be told to run, to hear about the seeds
ENOUGH_SEEDS = 5

TIME = TIME_TRAIN_SECONDS
DOMAINS = {
    FINAL_SHIFTED_ACCURACY: "On the shifted test",
    FINAL_SHIFTED_MACRO_F1: "By macro F1 on the shifted test",
    FINAL_TEST_ACCURACY: "On the clean test",
    FINAL_GAIN: "In gain on the shifted test",
    FINAL_RETENTION: "In retention on the clean test",
}
WITHOUT_SOURCE = {
    FINAL_SHIFTED_ACCURACY: "On the target's test set",
    FINAL_SHIFTED_MACRO_F1: "By macro F1 on the target's test set",
}


def verdict_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return the verdicts, the best arm's first, then the front of accuracy against parameters, then the scope."""
    sentences = [_pair_sentence(comparison, pair) for pair in spoken_pairs(comparison)]
    if unspoken := len(comparison.pairs) - len(sentences):
        sentences.append(f"The other {unspoken:,} pairs are not read out; they stand in the table of the report.")
    if any(pair.test == "mcnemar" for pair in comparison.pairs):
        sentences.append(
            "McNemar's test covers the chance of the test images alone, not that of the seeds: another draw of the "
            f"labelled images may reverse it; run at least {ENOUGH_SEEDS} seeds (--seeds 0-{ENOUGH_SEEDS - 1})."
        )
    if comparison.metric.key in (FINAL_SHIFTED_ACCURACY, FINAL_GAIN) and comparison.zero_shot is not None:
        sentences.append(_zero_shot_sentence(comparison, comparison.zero_shot))
    if len(comparison.arms) > 1:
        sentences.append(_front_sentence(comparison))
    sentences += severity_sentences(comparison.robustness)
    sentences.append(scope_sentence(comparison))
    return tuple(sentences)


def note_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return what a reader must know of the runs: which are missing, and in what they are unequal."""
    notes = []
    every = sorted({seed for arm in comparison.arms for seed in arm.seeds})
    for arm in comparison.arms:
        if missing := [seed for seed in every if seed not in arm.seeds]:
            notes.append(
                f"{arm.name} has no finished run among these of {plural('seed', missing)} {listed(map(str, missing))}: "
                "its pairs cover the seeds that both arms have."
            )
    for key, words in (("epochs", "epochs"), ("batch_size", "images a step")):
        values = {arm.settings.get(key, "?") for arm in comparison.arms}
        if len(values) > 1:
            shown = listed(sorted(values, key=lambda value: (len(value), value)))
            notes.append(
                f"The arms were trained with unequal {key} ({shown} {words}): they share the drawn images only."
            )
    notes += budget_notes(comparison.arms)
    if not comparison.timings_comparable:
        notes.append(
            "Training seconds are shown but not ranked: the runs shared a machine, or were made on different ones "
            "or with different numbers of threads."
        )
    if comparison.robustness is not None:
        notes += comparison.robustness.notes
    for status in dict.fromkeys(run.status for run in comparison.left_out):
        runs = [run for run in comparison.left_out if run.status == status]
        reasons = dict.fromkeys(run.reason for run in runs if run.reason != run.status)
        why = f" ({listed(reasons)})" if reasons else ""
        notes.append(f"Left out, {len(runs)} {status}: {listed(run.name for run in runs)}{why}.")
    return tuple(notes)


def spoken_pairs(comparison: Comparison) -> Sequence[PairResult]:
    """Return the pairs that are read out and shown on a terminal: all, or the best arm's when there are many."""
    if len(comparison.pairs) <= MOST_PAIRS:
        return comparison.pairs
    return [pair for pair in comparison.pairs if pair.a == comparison.arms[0].name][:MOST_PAIRS]


def where(comparison: Comparison) -> str:
    """Return how a sentence about the compared metric begins."""
    domains = DOMAINS if comparison.zero_shot is not None else WITHOUT_SOURCE
    return domains.get(comparison.metric.key, f"By {comparison.metric.label}")


def _pair_sentence(comparison: Comparison, pair: PairResult) -> str:
    place = where(comparison)
    if pair.n == 0:
        return f"{place}, {pair.a} and {pair.b} cannot be paired: they share no seed; run both with the same seeds."
    if pair.test is None or pair.difference is None or pair.low is None or pair.high is None or pair.p is None:
        return (
            f"{place}, one seed cannot tell {pair.a} from {pair.b}: run at least {ENOUGH_SEEDS} seeds "
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
    return f"{winner} beats {loser} by {_difference(comparison, pair, sign)}{_evidence(comparison, pair)}; it {costs}."


def _tied(comparison: Comparison, pair: PairResult) -> str:
    cheaper_first = pair.trainable_ratio <= 1
    cheap = pair.a if cheaper_first else pair.b
    margin = f"±{comparison.metric.scale * comparison.margin:g} {unit(comparison.metric, comparison.margin)}"
    return (
        f"{pair.a} and {pair.b} are tied within {margin}: "
        f"they differ by {_difference(comparison, pair, 1)}{_evidence(comparison, pair)}; "
        f"{cheap} {_costs(comparison, pair, not cheaper_first)}."
    )


def _undecided(comparison: Comparison, pair: PairResult) -> str:
    start = f"{pair.a} and {pair.b} differ by {_difference(comparison, pair, 1)}{_evidence(comparison, pair)}"
    if pair.seeds_verdict != "unclear":
        spread = (
            f"[{amount(comparison.metric, pair.image_low or 0)}, {amount(comparison.metric, pair.image_high or 0)}]"
        )
        found = {"tie": "a tie"}.get(pair.seeds_verdict, "a difference")
        more = (
            f"; about {rounded(pair.images_needed):,} test images would"
            if pair.images_needed
            else "; no number of test images would, at this difference"
        )
        return f"{start}: the seeds say {found}, resampled test images {spread} do not bear it out: unclear{more}."
    if pair.sd is None:
        return f"{start}: the test images do not decide."
    if pair.seeds_needed is None:
        return f"{start}: the seeds do not decide, and no number of seeds up to 10,000 would at this spread."
    # A plan for as many seeds as there are would be none: the correction asks for at least one more.
    needed = rounded(max(pair.seeds_needed, pair.n + 1))
    tested = sum(other.p is not None for other in comparison.pairs)
    # Without a margin there is no tie: then only a difference can be what so many seeds would show.
    is_difference = seeds_needed(pair.difference or 0.0, pair.sd, 0.0, tested) == pair.seeds_needed
    found = "a difference" if is_difference else "a tie"
    return (
        f"{start}: the seeds do not decide; at this spread, {needed:,} seeds ({needed - pair.n:,} more) would show "
        f"{found}, if the test images bear it out."
    )


def _difference(comparison: Comparison, pair: PairResult, sign: int) -> str:
    """Return the difference with its interval, turned so that it is read in the sentence's direction."""
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
    """Return what the pair's first arm (the second if swapped) costs, measured against the other."""

    def turned(ratio: float) -> float:
        return 1 / ratio if swapped else ratio

    parts = [f"trains {times(turned(pair.trainable_ratio), 'the parameters', 'the parameters', 'as many parameters')}"]
    one, other = comparison.arm(pair.a), comparison.arm(pair.b)
    if pair.seconds_ratio and (cheaper(one, other, TIME) or cheaper(other, one, TIME)):
        parts.append(f"took {times(turned(pair.seconds_ratio), 'as long', 'the time', 'about as long')}")
    if pair.retention_difference is not None and TEST_SETS.get(comparison.metric.key) != "clean":
        kept = -pair.retention_difference if swapped else pair.retention_difference
        points = f"{100 * abs(kept):.1f}"
        # What does not start at the base, such as training from scratch, has nothing to forget.
        both_forget = all(
            arm.retention is not None and arm.retention.mean < 0 and _starts_at_base(arm) for arm in (one, other)
        )
        if points == "0.0":
            parts.append("ended level on the clean test")
        elif both_forget:
            parts.append(f"forgot {points} points {'more' if kept < 0 else 'less'} of the clean domain")
        else:
            parts.append(f"ended {points} points {'lower' if kept < 0 else 'higher'} on the clean test")
    return listed(parts)


def _zero_shot_sentence(comparison: Comparison, zero_shot: float) -> str:
    start = f"Without adaptation the base reaches {100 * zero_shot:.1f} % there"
    gains = {arm.name: arm.gain for arm in comparison.arms if arm.gain is not None}
    lost = [name for name, gain in gains.items() if not _is_gain(gain)]
    if lost:
        return f"{start}; no gain over it is shown for {listed(lost)}."
    if len(gains) == 1:
        return f"{start}; {_reached(*gains.popitem())}."
    if any(gain.low is None for gain in gains.values()):
        return f"{start}."
    return f"{start}; the 95 % interval of every strategy lies above that."


def _reached(name: str, gain: Estimate) -> str:
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
    sentence = f"By trainable parameters, the Pareto front is {listed(front)}: none that trains fewer is better or tied"
    if beaten:
        shown = [f"{arm.name} is dominated by {listed(arm.dominated_by[cost])}" for arm in beaten]
        sentence += f"; {listed(shown)}"
    return f"{sentence}."
