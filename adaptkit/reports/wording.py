"""Put numbers and lists into words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adaptkit.comparison import Metric
from adaptkit.reports.formats import number

MOST_NAMES = 5
#: costs that differ by less than this are called the same
SAME = 0.05


def listed(items: Iterable[str], conjunction: str = "and") -> str:
    """Return `a, b and c`; only the first few of many."""
    words = list(items)
    if len(words) > MOST_NAMES + 1:
        words = [*words[:MOST_NAMES], f"{len(words) - MOST_NAMES} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def amount(metric: Metric, value: float, signed: bool = False) -> str:
    """Return a value of the metric, or a difference, in the unit in which it is shown."""
    return number(value, metric.digits, scale=metric.scale, signed=signed)


def p_value(p: float) -> str:
    """Return `p = 0.012` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def times(ratio: float, more: str, less: str, equal: str) -> str:
    """Return `2.1 times <more>`, `6.5 % of <less>`, or the words for what is about equal."""
    if abs(ratio - 1) < SAME:
        return equal
    if ratio < 1:
        return f"{100 * ratio:.2g} % of {less}"
    return f"{ratio:,.0f} times {more}" if ratio >= 10 else f"{ratio:.1f} times {more}"


def part(share: float) -> str:
    """Return a fraction as `half`, `25 %` or `less than 1 %`."""
    return "half" if abs(share - 0.5) < 0.005 else f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"


def unit(metric: Metric, value: float) -> str:
    """Return the metric's unit as it stands behind this value."""
    if metric.unit == "points" and amount(metric, abs(value)) == "1.0":
        return "point"
    return metric.unit or "units"


def plural(word: str, items: Sequence[object]) -> str:
    """Return the word for one or for several items."""
    return word if len(items) == 1 else f"{word}s"


def rounded(count: int) -> int:
    """Return an estimated count as precisely as it is known: two digits from a hundred on."""
    return count if count < 100 else round(count, 2 - len(str(count)))
