"""Say what a comparison found over severities of the shift: whose area is largest, and where rankings cross."""

from __future__ import annotations

import math

from adaptkit.reports.wording import listed, p_value
from adaptkit.severity import Crossing, Robustness, SeverityArm, SeverityPair, written

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
    return f"{name} ({pair.difference * 100:+.1f} points, {p_value(pair.p)})"


def _in(share: float) -> str:
    return f"{100 * share:.1f}"
