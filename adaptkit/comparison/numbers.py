"""Format numbers, units and lists as text for the terminal, reports, figures and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from adaptkit.comparison.records import Estimate, Metric

#: placeholder for a missing number
NOTHING = "\N{EN DASH}"


def number(value: float | None, digits: int = 1, *, scale: float = 1.0, signed: bool = False, unit: str = "") -> str:
    """Return a number as text; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{scale * value:{'+' if signed else ''}z,.{digits}f}{unit}"


def mean(value: Estimate, digits: int = 1, *, scale: float = 1.0, signed: bool = False, unit: str = "") -> str:
    """Return `mean ± half-width`, or only the mean if it has no interval."""
    text = number(value.mean, digits, scale=scale, signed=signed)
    if value.half_width is not None and text != NOTHING:
        text += f" ± {number(value.half_width, digits, scale=scale)}"
    return text if text == NOTHING else text + unit


def interval(low: float | None, high: float | None, *, digits: int, scale: float) -> str:
    """Return `[low, high]` with signs; a dash without an interval."""
    if low is None or high is None:
        return NOTHING
    return f"[{number(low, digits, scale=scale, signed=True)}, {number(high, digits, scale=scale, signed=True)}]"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, or `< 0.001`."""
    if p is None or not math.isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size(value: Estimate) -> str:
    """Return bytes as KB or MB (powers of 1,000), with an interval if it is visible at this precision."""
    if not math.isfinite(value.mean):
        return NOTHING
    scale, unit = (1e-6, " MB") if value.mean >= 1e6 else (1e-3, " KB")
    if value.half_width is not None and round(scale * value.half_width, 1) > 0:
        return mean(value, scale=scale, unit=unit)
    return number(value.mean, scale=scale, unit=unit)


def heading(metric: Metric) -> str:
    """Return the heading of a column of values of a metric."""
    label = metric.label if metric.label == metric.key else metric.label[:1].upper() + metric.label[1:]
    return with_unit(label, value_unit(metric))


def value_unit(metric: Metric) -> str:
    """Return the unit of values of a metric."""
    return "%" if metric.scale == 100 else metric.unit


def with_value_unit(metric: Metric, value: float | None) -> str:
    """Return a value of the metric with its unit, for example `94.2 %`; a dash for None."""
    text = number(value, metric.digits, scale=metric.scale)
    return text if text == NOTHING else f"{text} {value_unit(metric)}".rstrip()


def difference_unit(metric: Metric) -> str:
    """Return the unit of differences of a metric."""
    return "points" if metric.scale == 100 else metric.unit


def with_unit(text: str, unit: str) -> str:
    """Return a heading with its unit, if it has one."""
    return f"{text} ({unit})" if unit else text


def margin(metric: Metric, width: float) -> str:
    """Return the margin of a tie as text, for example `±1.0 points`."""
    return f"±{number(width, metric.digits, scale=metric.scale)} {difference_unit(metric)}".rstrip()


MOST_NAMES = 5
#: if the ratio of two costs differs from 1 by less than this, they are called equal
SAME = 0.05


def listed(items: Iterable[str], conjunction: str = "and") -> str:
    """Return `a, b and c`. For many items, return the first ones and the number of the others."""
    words = list(items)
    if len(words) > MOST_NAMES + 1:
        words = [*words[:MOST_NAMES], f"{len(words) - MOST_NAMES} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def amount(metric: Metric, value: float, signed: bool = False) -> str:
    """Return a value or difference of the metric as text, in the metric's unit."""
    return number(value, metric.digits, scale=metric.scale, signed=signed)


def p_phrase(p: float) -> str:
    """Return `p = 0.012` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def times(ratio: float, *, more: str, less: str, equal: str) -> str:
    """Return `2.1 times <more>`, `6.5 % of <less>`, or `equal` for a ratio near 1."""
    if abs(ratio - 1) < SAME:
        return equal
    if ratio < 1:
        return f"{100 * ratio:.2g} % of {less}"
    return f"{ratio:,.0f} times {more}" if ratio >= 10 else f"{ratio:.1f} times {more}"


def part(share: float) -> str:
    """Return a fraction as text: `half`, `25 %` or `less than 1 %`."""
    return "half" if abs(share - 0.5) < 0.005 else f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"


def unit(metric: Metric, value: float) -> str:
    """Return the metric's unit after this value: `point` for 1.0, else `points`."""
    if metric.unit == "points" and amount(metric, abs(value)) == "1.0":
        return "point"
    return metric.unit or "units"


def plural(word: str, items: Sequence[object]) -> str:
    """Return the word in the singular for one item, else in the plural."""
    return word if len(items) == 1 else f"{word}s"


def counted(count: int, word: str) -> str:
    """Return a number of things: `1 run`, `2 runs`."""
    return f"{count:,} {word}{'s' * (count != 1)}"


def rounded(count: int) -> int:
    """Return an estimated count, rounded to two significant digits from 100 on."""
    return count if count < 100 else round(count, 2 - len(str(count)))
