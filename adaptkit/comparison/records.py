"""Records of comparisons: the runs as input, the results of arms and pairs as output.

An arm is a strategy with its options and training settings; its runs differ only in the seed. Python, the JSON output
and the reports read the same records. Accuracies and F1 are fractions.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptkit.events import Predictions
from adaptkit.names import (
    FAMILY_MEMORY,
    FAMILY_PARAMS,
    FAMILY_SIZE,
    MEMORY_PEAK_BYTES,
    PARAMS_TRAINABLE,
    SIZE_ADAPTER_BYTES,
    TIME_INFERENCE_RATIO,
    TIME_TRAIN_SECONDS,
)

if TYPE_CHECKING:
    from pandas import DataFrame

    from adaptkit.comparison.severity import Robustness

#: cost metric -> its name in text; each has a Pareto front
COSTS = {
    PARAMS_TRAINABLE: "trainable parameters",
    SIZE_ADAPTER_BYTES: "adapter size",
    TIME_TRAIN_SECONDS: "training time",
    MEMORY_PEAK_BYTES: "peak memory",
    TIME_INFERENCE_RATIO: "inference time",
}


#: value of the param `dataset` of runs without a source
NO_SOURCE = "none"


@dataclass(frozen=True)
class Metric:
    """A metric for comparing runs. Values are multiplied by `scale` and shown in `unit` (fractions as points)."""

    key: str
    label: str
    unit: str
    scale: float
    higher_is_better: bool

    @property
    def digits(self) -> int:
        """Return the number of decimals to show."""
        if self.scale == 100:
            return 1
        return 0 if self.key.startswith((FAMILY_PARAMS, FAMILY_SIZE, FAMILY_MEMORY)) else 3


@dataclass(frozen=True)
class Curve:
    """Accuracies of one run after each epoch.

    `seconds` is the time since the start of the run. `clean` is the source accuracy (None without a source), `shifted`
    the target accuracy.
    """

    epoch: tuple[int, ...]
    seconds: tuple[float, ...]
    clean: tuple[float, ...] | None
    shifted: tuple[float, ...] | None


@dataclass(frozen=True)
class ComparedRun:
    """One adaptation run as input of a comparison.

    `options` and `settings` are params as text. `arm` is the strategy with its options, as in the name of the run.
    `status` is finished, failed, killed or running. `predictions` are class indices for the target test set
    (`shifted`) and, with a source, the source test set (`clean`).
    """

    name: str
    run_id: str | None
    strategy: str
    arm: str
    options: Mapping[str, str]
    settings: Mapping[str, str]
    seed: int
    status: str
    started: int
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    classes: tuple[str, ...] = field(default=(), repr=False)
    predictions: Mapping[str, Predictions] = field(default_factory=dict, repr=False)
    curve: Curve | None = field(default=None, repr=False)
    reason: str | None = None

    @property
    def has_source(self) -> bool:
        """Return whether the run's base was trained on a source, so that it has a source accuracy."""
        return self.settings.get("dataset") != NO_SOURCE


@dataclass(frozen=True)
class Estimate:
    """Mean over `n` seeds with standard deviation and 95 % t-interval, which are None for one seed."""

    mean: float
    n: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Return half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class ArmResult:
    """Results of one arm: a strategy with its options and training settings.

    `score` is the compared metric, `shifted` the target accuracy and `clean` the source accuracy. Costs are for one
    run. Without a source, `gain`, `clean` and `retention` are None. `dominated_by` maps each cost to the arms that are
    cheaper, and better or tied. `confusion` is the mean share of each true class (row) that was predicted as each class
    (column) on the target test set; it is empty for more than 100 classes.
    """

    name: str
    slug: str
    strategy: str
    options: Mapping[str, str]
    settings: Mapping[str, str]
    seeds: tuple[int, ...]
    score: Estimate
    shifted: Estimate
    gain: Estimate | None
    clean: Estimate | None
    retention: Estimate | None
    macro_f1: Estimate
    parameters: int
    trainable: int
    trainable_fraction: float
    adapter_bytes: Estimate
    train_seconds: Estimate
    epoch_seconds: Estimate
    peak_bytes: Estimate
    inference_ratio: Estimate
    #: V-PETL Bench's score; only in the JSON
    ppt: float
    class_f1: tuple[float, ...]
    confusion: tuple[tuple[float, ...], ...]
    dominated_by: Mapping[str, tuple[str, ...]]
    runs: tuple[ComparedRun, ...] = field(repr=False)

    def cost(self, key: str) -> Estimate:
        """Return the cost under this key of COSTS."""
        if key == PARAMS_TRAINABLE:
            return Estimate(float(self.trainable), len(self.seeds))
        costs = {
            SIZE_ADAPTER_BYTES: self.adapter_bytes,
            TIME_TRAIN_SECONDS: self.train_seconds,
            MEMORY_PEAK_BYTES: self.peak_bytes,
            TIME_INFERENCE_RATIO: self.inference_ratio,
        }
        return costs[key]

    def row(self) -> dict[str, Any]:
        """Return the strategy as one row of a table: the compared metric, then the means of all other figures."""
        same = ("gain", "retention", "macro_f1", "adapter_bytes", "train_seconds", "peak_bytes", "inference_ratio")
        means = {"target_accuracy": self.shifted, "source_accuracy": self.clean}
        means |= {key: getattr(self, key) for key in same}
        return (
            {"strategy": self.strategy}
            | dataclasses.asdict(self.score)
            | {key: None if estimate is None else estimate.mean for key, estimate in means.items()}
            | {"trainable": self.trainable, "parameters": self.parameters}
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the arm as plain JSON types."""
        hidden = {"score", "runs"}
        score = dataclasses.asdict(self.score)
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in hidden}
        plain = {
            key: dataclasses.asdict(value) if isinstance(value, Estimate) else value for key, value in plain.items()
        }
        first = {"name": plain.pop("name"), "slug": plain.pop("slug")}
        runs = [{"run_id": run.run_id, "name": run.name, "seed": run.seed} for run in self.runs]
        return first | score | plain | {"runs": runs}


@dataclass(frozen=True)
class PairResult:
    """Result of comparing two arms: `a` minus `b` over the `n` shared seeds.

    `low` and `high` are the 95 % interval of the pair, not corrected for the number of pairs. `p` is corrected by
    Holm's method for all pairs of the comparison, `p_unadjusted` is not. `test` is `paired t`, `mcnemar` (one shared
    seed) or None (no test is possible). `image_low` and `image_high` are the 95 % interval over resampled test images.
    If this interval does not confirm `seeds_verdict`, `verdict` is unclear. `seeds_needed` and `images_needed` estimate
    the numbers of seeds and test images that would decide an unclear pair.
    """

    a: str
    b: str
    n: int
    verdict: str
    seeds_verdict: str
    test: str | None
    difference: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    p_unadjusted: float | None
    image_low: float | None
    image_high: float | None
    seeds_needed: int | None
    images_needed: int | None
    disagreement: float | None
    class_f1_difference: tuple[float, ...]
    gain_difference: float | None
    retention_difference: float | None
    trainable_ratio: float
    seconds_ratio: float | None


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
    margin: float
    ppt_constant: float
    arms: tuple[ArmResult, ...]
    pairs: tuple[PairResult, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    zero_shot: float | None
    base_accuracy: float | None
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

        None if the runs do not show a single best strategy, because the leader is tied with another strategy or the
        pair is unclear. If there is only one strategy, it is the best. `arms[0]` always has the best mean.
        """
        beaten = {pair.b for pair in self.pairs if pair.verdict == "better" and pair.a == self.arms[0].name}
        beaten |= {pair.a for pair in self.pairs if pair.verdict == "worse" and pair.b == self.arms[0].name}
        return self.arms[0] if len(beaten) == len(self.arms) - 1 else None

    def to_dataframe(self) -> DataFrame:
        """Return a table with one row for each strategy, the best mean first.

        Returns
        -------
        pandas.DataFrame
            The index holds the names of the strategies. `mean`, `sd`, `low` and `high` describe the compared metric
            over `n` seeds (95 % interval; NaN with a single seed). Accuracies are fractions. Costs are means for one
            run.
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
    This holds for this base and ...
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
    if isinstance(record, Comparison) and record.robustness is not None:
        plain["robustness"] = dataclasses.asdict(record.robustness)
    return plain
