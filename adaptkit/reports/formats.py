"""Numbers as the text that people read, the same in every form of a report."""

from __future__ import annotations

import math

from adaptkit.comparison import Estimate, Metric

#: what stands where there is no number
NOTHING = "\N{EN DASH}"


def number(value: float | None, digits: int = 1, *, scale: float = 1.0, signed: bool = False, unit: str = "") -> str:
    """Return a number as text; a dash for None and for what is not a number."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{scale * value:{'+' if signed else ''}z,.{digits}f}{unit}"


def mean(value: Estimate, digits: int = 1, *, scale: float = 1.0, signed: bool = False, unit: str = "") -> str:
    """Return `mean ± half-width`, or the mean alone where there is no interval."""
    text = number(value.mean, digits, scale=scale, signed=signed)
    if value.half_width is not None and text != NOTHING:
        text += f" ± {number(value.half_width, digits, scale=scale)}"
    return text if text == NOTHING else text + unit


def interval(low: float | None, high: float | None, digits: int, scale: float) -> str:
    """Return `[low, high]`, both with their sign."""
    if low is None or high is None:
        return NOTHING
    return f"[{number(low, digits, scale=scale, signed=True)}, {number(high, digits, scale=scale, signed=True)}]"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, or that it is below 0.001."""
    if p is None or not math.isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size(value: Estimate) -> str:
    """Return bytes in KB or MB (powers of 1,000), with an interval where runs differ visibly."""
    if not math.isfinite(value.mean):
        return NOTHING
    scale, unit = (1e-6, " MB") if value.mean >= 1e6 else (1e-3, " KB")
    if value.half_width is not None and round(scale * value.half_width, 1) > 0:
        return mean(value, scale=scale, unit=unit)
    return number(value.mean, scale=scale, unit=unit)


def heading(metric: Metric) -> str:
    """Return what stands above values of a metric."""
    label = metric.label if metric.label == metric.key else metric.label[:1].upper() + metric.label[1:]
    return with_unit(label, "%" if metric.scale == 100 else metric.unit)


def difference_unit(metric: Metric) -> str:
    """Return the unit in which differences of a metric are shown."""
    return "points" if metric.scale == 100 else metric.unit


def with_unit(text: str, unit: str) -> str:
    """Return a heading with its unit, where there is one."""
    return f"{text} ({unit})" if unit else text


def margin(metric: Metric, width: float) -> str:
    """Return within which differences two arms are a tie."""
    return f"±{number(width, metric.digits, scale=metric.scale)} {difference_unit(metric)}".rstrip()
