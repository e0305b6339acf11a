"""All that a set of runs says, as one record and one JSON document."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptkit.comparison import Comparison, LeftOut, PairResult


@dataclass(frozen=True)
class Trend:
    """Arms that stand in several comparisons, which differ in one number: `setting`, by its rising `values`.

    `numbers` are those of the comparisons, in this order; `arms` are named as there, the best on average first.
    """

    setting: str
    values: tuple[float, ...]
    numbers: tuple[int, ...]
    arms: tuple[str, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """All comparisons that a set of runs allows; `notes` are about runs that stand in none of them."""

    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    trends: tuple[Trend, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain JSON types: arms and pairs carry the number of their comparison."""
        first = self.comparisons[0]
        plain = {
            "metric": first.metric.key,
            "margin": first.margin,
            "arms": [{"comparison": c.number} | arm.to_dict() for c in self.comparisons for arm in c.arms],
            "pairs": [{"comparison": c.number} | _shallow(pair) for c in self.comparisons for pair in c.pairs],
            "sentences": [sentence for c in self.comparisons for sentence in c.sentences],
            "comparisons": [
                {
                    key: value
                    for key, value in _shallow(c).items()
                    if key not in ("arms", "pairs", "metric", "margin", "left_out")
                }
                for c in self.comparisons
            ],
            "left_out": [
                dataclasses.asdict(run)
                for runs in (*(c.left_out for c in self.comparisons), self.left_out)
                for run in runs
            ],
            "notes": list(self.notes),
            "trends": [dataclasses.asdict(trend) for trend in self.trends],
        }
        finite: dict[str, Any] = _finite(plain)
        return finite

    def to_json(self) -> str:
        """Return the findings as one JSON document."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return plain JSON types with None for numbers that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):  # most of what there is
        return value
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _shallow(record: Comparison | PairResult) -> dict[str, Any]:
    # Not by `asdict`, which copies all that is inside: there are many pairs.
    found = {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}
    if isinstance(record, Comparison) and record.robustness is not None:
        found["robustness"] = dataclasses.asdict(record.robustness)
    return found
