"""Findings of a comparison: verdicts of one group of arms, the choice they lead to, and all groups as one document."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptkit.comparison.records import ArmResult, Constant, Metric, PairResult

if TYPE_CHECKING:
    from pandas import DataFrame

    from adaptkit.comparison.severity import Robustness


@dataclass(frozen=True)
class Choice:
    """The arm to take if no arm is shown to be the best: the cheapest one that is not shown to be worse than `best`.

    `best` is the arm with the best mean. `cost` is the number of trainable parameters. `most_lost` is the most that the
    choice may cost: the upper end of the 95 % interval of the difference; None if there is no interval.
    """

    name: str
    best: str
    cost: int
    most_lost: float | None


@dataclass(frozen=True)
class LeftOut:
    """A run that is left out of the comparison, with the reason."""

    name: str
    run_id: str | None
    status: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Comparison of strategies that share a base, the data and the number of labelled images.

    Attributes
    ----------
    arms : tuple of ArmResult
        One record for each strategy with its options, the best mean first.
    pairs : tuple of PairResult
        One record for each pair of strategies: their difference, its interval, and the verdict.
    sentences : tuple of str
        The verdicts in words, and their scope.
    metric : Metric
        The compared metric.
    zero_shot, base_accuracy : float or None
        Target and source accuracy of the base before adaptation; None without a source, since the head is new.
    zero_shot_scores : dict
        Scores of the base before adaptation by the other compared metrics, as far as they need no probabilities.
    robustness : Robustness or None
        Results over severities of the shift.

    Examples
    --------
    >>> outcome = adaptkit.run(["head", "lora"], seeds="0-1", preset="quick")
    >>> comparison = outcome.comparison
    >>> [(pair.a, pair.b, pair.verdict) for pair in comparison.pairs]
    [(...)]
    >>> best = comparison.best  # None if no strategy is shown to be the best
    >>> table = comparison.to_dataframe()
    >>> table.loc["lora", ["n", "target_accuracy"]]
    n ...
    """

    number: int
    reason: str | None
    metric: Metric
    #: further metrics that are shown
    others: tuple[Metric, ...]
    #: the constant answer that strategies must beat; None for metrics that are not about the target
    constant: Constant | None
    #: the scores of the best constant answer by each shown metric for which it has a meaningful score
    constant_scores: Mapping[str, float]
    margin: float
    ppt_constant: float
    arms: tuple[ArmResult, ...]
    pairs: tuple[PairResult, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    zero_shot: float | None
    base_accuracy: float | None
    zero_shot_scores: Mapping[str, float]
    classes: tuple[str, ...]
    test_images: int
    base_fingerprint: str
    data_fingerprint: str
    #: settings and facts that are the same for all arms
    setup: Mapping[str, str]
    #: True if times were measured on one machine, one run at a time
    timings_comparable: bool
    #: None if no run was tested over severities of the shift
    robustness: Robustness | None = None

    def __repr__(self) -> str:
        runs = sum(len(arm.runs) for arm in self.arms)
        return f"Comparison(metric={self.metric.key!r}, strategies={len(self.arms)}, runs={runs})"

    def arm(self, name: str) -> ArmResult:
        """Return the arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def best(self) -> ArmResult | None:
        """The strategy that is better than every other one, by the verdicts of `pairs`.

        None if the runs do not show a single best strategy, because the leader is tied with another strategy, the pair
        is undecided, or the leader is not shown to be better than the best constant answer. If there is only one
        strategy, it is the best. `arms[0]` always has the best mean.
        """
        if self.arms[0].beats_constant is False:
            return None
        beaten = {pair.b for pair in self.pairs if pair.verdict == "better" and pair.a == self.arms[0].name}
        beaten |= {pair.a for pair in self.pairs if pair.verdict == "worse" and pair.b == self.arms[0].name}
        return self.arms[0] if len(beaten) == len(self.arms) - 1 else None

    @property
    def choice(self) -> Choice | None:
        """The strategy to take if none is shown to be the best; None if training was not repeated, or for domains.

        It is the one with the fewest trainable parameters among those that are not shown to be worse than the strategy
        with the best mean.
        """
        leader = self.arms[0]
        with_leader = {
            pair.b: (pair.verdict == "better", pair.low, pair.high) for pair in self.pairs if pair.a == leader.name
        }
        if leader.beats_constant is False or leader.domains:
            return None
        if self.best is not None or any(pair.only_models or pair.p is None for pair in self.pairs):
            return None
        open_arms = [arm for arm in self.arms[1:] if not with_leader[arm.name][0] and arm.beats_constant is not False]
        chosen = min((leader, *open_arms), key=lambda arm: arm.trainable)
        if chosen is leader:
            return Choice(name=leader.name, best=leader.name, cost=leader.trainable, most_lost=0.0)
        _, low, high = with_leader[chosen.name]
        most = high if self.metric.higher_is_better else None if low is None else -low
        return Choice(name=chosen.name, best=leader.name, cost=chosen.trainable, most_lost=most)

    def to_dataframe(self) -> DataFrame:
        """Return a table with one row for each strategy, the best mean first.

        Returns
        -------
        pandas.DataFrame
            The index holds the names of the strategies. `mean`, `sd`, `low`, `high` and `df` describe the compared
            metric over `n` runs (95 % interval; NaN if there is none). Accuracies are fractions. Costs are means for
            one run.
        """
        from pandas import DataFrame

        rows = {arm.name: arm.row() for arm in self.arms}
        return DataFrame.from_dict(rows, orient="index").rename_axis("name")

    def to_dict(self) -> dict[str, Any]:
        """Return this comparison as plain JSON types, in the form of `Comparisons.to_dict`."""
        return Comparisons((self,)).to_dict()

    def front(self, cost: str) -> tuple[ArmResult, ...]:
        """Return the Pareto front for this cost: the arms that no other arm dominates, the cheapest first."""
        free = [arm for arm in self.arms if not arm.dominated_by.get(cost)]
        return tuple(sorted(free, key=lambda arm: arm.cost(cost).mean))


@dataclass(frozen=True)
class Trend:
    """Arms of several comparisons that differ only in one numeric `setting`.

    `values` are the values of the setting in ascending order; `numbers` are the numbers of the comparisons in the same
    order. `arms` are sorted by their average score, the best first.
    """

    setting: str
    values: tuple[float, ...]
    numbers: tuple[int, ...]
    arms: tuple[str, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of a set of runs: one for each base and data set. Use it like a list.

    Attributes
    ----------
    comparisons : tuple of Comparison
        The comparisons, in the order of their numbers.
    notes : tuple of str
        One sentence for each run that is not part of a comparison.
    left_out : tuple of LeftOut
        These runs, with the reason.
    trends : tuple of Trend
        Strategies over comparisons that differ in one numeric setting, such as `shots`.

    Examples
    --------
    >>> comparisons = adaptkit.compare()
    >>> len(comparisons)
    1
    >>> print(comparisons[0].sentences[-1])
    This holds for this base, ...
    """

    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = field(default=(), repr=False)
    left_out: tuple[LeftOut, ...] = field(default=(), repr=False)
    trends: tuple[Trend, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.comparisons)

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.comparisons)

    def __getitem__(self, index: int) -> Comparison:
        return self.comparisons[index]

    def to_dict(self) -> dict[str, Any]:
        """Return all comparisons as plain JSON types; arms and pairs contain the number of their comparison."""
        first = self.comparisons[0]
        plain = {
            "metric": first.metric.key,
            "margin": first.margin,
            "arms": [{"comparison": c.number} | arm.to_dict() for c in self.comparisons for arm in c.arms],
            "pairs": [{"comparison": c.number} | _shallow(pair) for c in self.comparisons for pair in c.pairs],
            "sentences": [sentence for c in self.comparisons for sentence in c.sentences],
            "comparisons": [
                {"metric": c.metric.key}
                | {
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
        """Return all comparisons as one JSON document."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return plain JSON types with None for numbers that JSON cannot represent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):  # the most frequent types first, for speed
        return value
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _shallow(record: Comparison | PairResult) -> dict[str, Any]:
    # `asdict` would copy all nested values, which is slow for many pairs.
    plain = {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}
    if isinstance(record, PairResult):
        plain["domains"] = [dataclasses.asdict(domain) for domain in record.domains]
        return plain
    if record.robustness is not None:
        plain["robustness"] = dataclasses.asdict(record.robustness)
    if record.constant is not None:
        plain["constant"] = {**dataclasses.asdict(record.constant), "metric": record.constant.metric.key}
    plain["others"] = [other.key for other in record.others]
    plain["best"] = None if record.best is None else record.best.name
    plain["choice"] = None if record.choice is None else dataclasses.asdict(record.choice)
    return plain
