"""Follow arms through comparisons that differ in one number: at which values is which better?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from adaptkit.comparison.numbers import listed
from adaptkit.comparison.records import Comparison, Trend
from adaptkit.comparison.sentences import where

#: arms that are spoken of in pairs, the best first; settings that are followed
SPOKEN_ARMS, MOST_TRENDS = 3, 6
#: what changes with another setting, by itself
FOLLOWS = ("shift", "pool_images", "drawn_images", "split.file")
SWAPPED = {"better": "worse", "worse": "better"}


def find_trends(comparisons: Sequence[Comparison]) -> tuple[Trend, ...]:
    """Return what becomes of the arms along each numeric setting in which comparisons differ, and in nothing else.

    The longest come first; of the same comparisons no two settings are followed.
    """
    settings = sorted({key for comparison in comparisons for key in comparison.setup})
    found: list[Trend] = []
    for setting in settings:
        lines: dict[object, dict[float, Comparison]] = defaultdict(dict)
        for comparison in comparisons:
            value = _number(comparison.setup.get(setting))
            if value is not None and setting not in FOLLOWS:
                # Of the same value twice, as after another training of the base, the larger one counts: it comes first.
                lines[_rest(comparison, setting)].setdefault(value, comparison)
        for line in lines.values():
            if len(line) > 1:
                trend = _trend(setting, dict(sorted(line.items())))
                if trend is not None:
                    found.append(trend)
    found.sort(key=lambda trend: -len(trend.values))
    return tuple(found[:MOST_TRENDS])


def _rest(comparison: Comparison, setting: str) -> object:
    """Return all in which comparisons along a setting must agree."""
    others = [(key, value) for key, value in comparison.setup.items() if key not in (setting, *FOLLOWS)]
    # Without the shift's amounts, its text still says something: its other parts and their order.
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
        sentences=tuple(_sentences(setting, line, names[:SPOKEN_ARMS])),
    )


def _sentences(setting: str, line: dict[float, Comparison], names: Sequence[str]) -> Iterable[str]:
    """Yield for each two arms at which values of the setting the one is better, the other is, or neither."""
    place = where(next(iter(line.values())))
    for index, a in enumerate(names):
        for b in names[index + 1 :]:
            verdicts: dict[str, list[str]] = defaultdict(list)
            for value, comparison in line.items():
                for pair in comparison.pairs:
                    if {pair.a, pair.b} == {a, b}:
                        word = pair.verdict if pair.a == a else SWAPPED.get(pair.verdict, pair.verdict)
                        verdicts[word].append(f"{value:g}")
            if verdicts:
                yield f"{place} along {setting}: {_told(a, b, verdicts)}."


def _told(a: str, b: str, verdicts: dict[str, list[str]]) -> str:
    parts = [
        f"{words} at {listed(verdicts[verdict])}"
        for verdict, words in (
            ("better", f"{a} is better than {b}"),
            ("worse", f"{b} is better than {a}"),
            ("tie", f"{a} and {b} are tied"),
            ("unclear", f"between {a} and {b} it is unclear"),
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
