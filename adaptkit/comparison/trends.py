"""Find trends: changes of verdicts over comparisons that differ in one numeric setting."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from adaptkit.comparison.findings import Comparison, Trend
from adaptkit.comparison.numbers import listed
from adaptkit.comparison.sentences import opening

#: maximum number of arms whose pairs have a sentence, and of settings with a trend
MOST_ARMS, MOST_TRENDS = 3, 6
#: settings that may also differ, because they follow from other settings
FOLLOWS = ("shift", "pool_images", "drawn_images", "split.file")
SWAPPED = {"better": "worse", "worse": "better"}


def find_trends(comparisons: Sequence[Comparison]) -> tuple[Trend, ...]:
    """Return a trend for each numeric setting that is the only difference between comparisons, the longest first."""
    settings = sorted({key for comparison in comparisons for key in comparison.setup})
    trends: list[Trend] = []
    for setting in settings:
        lines: dict[object, dict[float, Comparison]] = defaultdict(dict)
        for comparison in comparisons:
            value = _number(comparison.setup.get(setting))
            if value is not None and setting not in FOLLOWS:
                # If two comparisons share a value, for example with two bases, keep the larger one, which comes first.
                lines[_rest(comparison, setting)].setdefault(value, comparison)
        for line in lines.values():
            if len(line) > 1:
                trend = _trend(setting, dict(sorted(line.items())))
                if trend is not None:
                    trends.append(trend)
    trends.sort(key=lambda trend: -len(trend.values))
    return tuple(trends[:MOST_TRENDS])


def _rest(comparison: Comparison, setting: str) -> object:
    """Return the facts that all comparisons of one trend must share."""
    others = [(key, value) for key, value in comparison.setup.items() if key not in (setting, *FOLLOWS)]
    return comparison.metric.key, tuple(sorted(others)), comparison.zero_shot is None


def _trend(setting: str, line: dict[float, Comparison]) -> Trend | None:
    counts: dict[str, list[float]] = defaultdict(list)
    for comparison in line.values():
        for arm in comparison.arms:
            counts[arm.name].append(arm.score.mean)
    several = {name: scores for name, scores in counts.items() if len(scores) > 1}
    if not several:
        return None
    first = next(iter(line.values()))
    sign = -1 if first.metric.higher_is_better else 1
    names = sorted(several, key=lambda name: sign * sum(several[name]) / len(several[name]))
    return Trend(
        setting=setting,
        values=tuple(line),
        numbers=tuple(comparison.number for comparison in line.values()),
        arms=tuple(names),
        sentences=tuple(_sentences(setting, line, names[:MOST_ARMS])),
    )


def _sentences(setting: str, line: dict[float, Comparison], names: Sequence[str]) -> Iterable[str]:
    """Yield a sentence for each pair of arms, with the better arm at each value of the setting."""
    place = opening(next(iter(line.values())))
    for index, a in enumerate(names):
        for b in names[index + 1 :]:
            verdicts: dict[str, list[str]] = defaultdict(list)
            for value, comparison in line.items():
                for pair in comparison.pairs:
                    if {pair.a, pair.b} == {a, b}:
                        word = pair.verdict if pair.a == a else SWAPPED.get(pair.verdict, pair.verdict)
                        verdicts[word].append(f"{value:g}")
            if verdicts:
                yield f"{place}, by {setting}: {_verdicts(a, b, verdicts)}."


def _verdicts(a: str, b: str, verdicts: dict[str, list[str]]) -> str:
    parts = [
        f"{words} at {listed(verdicts[verdict])}"
        for verdict, words in (
            ("better", f"{a} is better than {b}"),
            ("worse", f"{b} is better than {a}"),
            ("tie", f"{a} and {b} are tied"),
            ("undecided", f"{a} and {b} are undecided"),
        )
        if verdicts[verdict]
    ]
    return "; ".join(parts)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
