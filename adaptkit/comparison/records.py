"""Records of comparisons: the runs as input, the results of arms and pairs as output.

An arm is a strategy with its options and training settings; its runs differ only in the seed. Python, the JSON output
and the reports read the same records. Accuracies and F1 are fractions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """A metric for comparing runs. Values are multiplied by `scale` and shown in `unit` (fractions as points).

    `test` is the test set whose predictions determine it, `shifted` or `clean`; None for other metrics.
    """

    key: str
    label: str
    unit: str
    scale: float
    higher_is_better: bool
    test: str | None = None

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
    """Mean over `n` runs with the standard deviation over runs, and a 95 % interval with its degrees of freedom.

    The interval covers the value for new labelled and new test images, as far as the protocol allows. `sd` is None for
    one run, and the interval is None if it cannot be computed.
    """

    mean: float
    n: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    df: float | None = None

    @property
    def half_width(self) -> float | None:
        """Return half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class ArmResult:
    """Results of one arm: a strategy with its options and training settings.

    `score` is the compared metric, `shifted` the target accuracy and `clean` the source accuracy. Costs are for one
    run. Without a source, `gain`, `clean` and `retention` are None. `dominated_by` maps each cost to the arms that are
    cheaper, and better or tied. `domains` are accuracies on held-out
    values of a column. `confusion` is the mean share of each true class (row) that was predicted as each class
    (column) on the target test set; it is empty for more than 100 classes.
    """

    name: str
    slug: str
    strategy: str
    options: Mapping[str, str]
    settings: Mapping[str, str]
    seeds: tuple[int, ...]
    score: Estimate
    #: further metrics of the comparison, by key
    others: Mapping[str, Estimate]
    #: whether the arm is shown to be better than the best constant answer; None if that is not known
    beats_constant: bool | None
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
    #: accuracy on the images of each held-out value of a column
    domains: Mapping[str, Estimate]
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
        plain["others"] = {key: dataclasses.asdict(value) for key, value in self.others.items()}
        plain["domains"] = {name: dataclasses.asdict(value) for name, value in self.domains.items()}
        first = {"name": plain.pop("name"), "slug": plain.pop("slug")}
        runs = [{"run_id": run.run_id, "name": run.name, "seed": run.seed} for run in self.runs]
        return first | score | plain | {"runs": runs}


@dataclass(frozen=True)
class Constant:
    """The best score without looking at images: that of one class, or of the shares of all classes as probabilities.

    `answer` is the name of the class, or "the shares of the classes", and `metric` that of the score: the deciding one,
    or the accuracy if no constant answer has a meaningful score by it.
    """

    score: float
    answer: str
    metric: Metric


@dataclass(frozen=True)
class DomainResult:
    """Difference of two arms, `a` minus `b`, on the images of one held-out value of a column; `p` is corrected."""

    name: str
    images: int
    verdict: str
    difference: float
    low: float
    high: float
    p: float
    p_unadjusted: float


@dataclass(frozen=True)
class PairResult:
    """Result of comparing two arms: `a` minus `b` over the `n` shared runs.

    `verdict` is better, worse, tie or undecided. `low` and `high` are the 95 % interval of the pair with `df` degrees
    of freedom, not corrected for the number of pairs. `p` is corrected by Holm's method for all pairs of the
    comparison, `p_unadjusted` is not. All are for new labelled images and new test images, as far as `protocol` allows.
    With `only_models`, training was not repeated: they are only about the trained models, and the pair gets no verdict.
    `labels_needed`, `seeds_needed` or `test_images_needed` estimates the number that would show a difference of this
    size with an even chance. `detectable` is the smallest true difference that is found with a probability of 80 %.
    `domains` has the results of each held-out value of a column.
    """

    a: str
    b: str
    n: int
    verdict: str
    protocol: str
    only_models: bool
    groups: int | None
    difference: float | None
    sd: float | None
    low: float | None
    high: float | None
    df: float | None
    p: float | None
    p_unadjusted: float | None
    labels_needed: int | None
    seeds_needed: int | None
    test_images_needed: int | None
    detectable: float | None
    domains: tuple[DomainResult, ...]
    disagreement: float | None
    class_f1_difference: tuple[float, ...]
    gain_difference: float | None
    retention_difference: float | None
    trainable_ratio: float
    seconds_ratio: float | None
