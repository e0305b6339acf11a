"""What a comparison reads of runs and finds about strategies: plain records, the same for Python, JSON and reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptkit.contracts import Predictions

if TYPE_CHECKING:
    from adaptkit.severity import Robustness

#: cost metric -> what people call it; on each of them the Pareto front is drawn
COSTS = {
    "params/trainable": "trainable parameters",
    "size/adapter_bytes": "adapter size",
    "time/train_seconds": "training time",
    "memory/peak_bytes": "peak memory",
    "time/inference_ratio": "inference time",
}


#: the param `dataset` of runs without a source
NO_SOURCE = "none"


@dataclass(frozen=True)
class Metric:
    """A compared metric: `scale` turns its values into what is shown in `unit` (fractions into points)."""

    key: str
    label: str
    unit: str
    scale: float
    higher_is_better: bool

    @property
    def digits(self) -> int:
        """Return how many decimals are shown."""
        if self.scale == 100:
            return 1
        return 0 if self.key.startswith(("params/", "size/", "memory/")) else 3


@dataclass(frozen=True)
class Curve:
    """One run epoch by epoch: accuracies as fractions, `seconds` since the run's start; no `clean` without a source."""

    epoch: tuple[int, ...]
    seconds: tuple[float, ...]
    clean: tuple[float, ...] | None
    shifted: tuple[float, ...] | None


@dataclass(frozen=True)
class ComparedRun:
    """One adaptation run as a comparison sees it.

    `options` and `settings` are the params as text, `arm` the strategy with its options as the run was named,
    `status` finished, failed, killed or running. Predictions (`clean`, `shifted`) are class indices; without a source
    there are none of a clean test, and `shifted` is the target's test set.
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
        """Tell whether the run's base was trained on a source, which then has a clean test."""
        return self.settings.get("dataset") != NO_SOURCE


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its standard deviation and 95 % t-interval; None where one seed gives none."""

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
    """A strategy with its options: accuracies as fractions, costs a run, and what dominates it.

    `score` is the compared metric. `dominated_by` maps each cost to the arms that are cheaper and better or tied.
    `confusion` is the mean share of each true class (row) taken for each class (column) on the shifted test; empty for
    more than 100 classes. Without a source there is no `gain`, `clean` or `retention`.
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
    #: V-PETL Bench's score, with its constant; it stands in the JSON only
    ppt: float
    class_f1: tuple[float, ...]
    confusion: tuple[tuple[float, ...], ...]
    dominated_by: Mapping[str, tuple[str, ...]]
    runs: tuple[ComparedRun, ...] = field(repr=False)

    def cost(self, key: str) -> Estimate:
        """Return the cost that a metric of COSTS records."""
        if key == "params/trainable":
            return Estimate(float(self.trainable), len(self.seeds))
        costs = {
            "size/adapter_bytes": self.adapter_bytes,
            "time/train_seconds": self.train_seconds,
            "memory/peak_bytes": self.peak_bytes,
            "time/inference_ratio": self.inference_ratio,
        }
        return costs[key]

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
    """Two arms: `a` minus `b` over the seeds that they share, with the pair's own 95 % interval.

    `p` is corrected by Holm over all pairs of the comparison, `p_unadjusted` is not. `test` is `paired t`, `mcnemar`
    (one shared seed) or None (neither can be made). `image_low` and `image_high` bound the difference under resampling
    of the test images; `verdict` is `seeds_verdict` unless they do not bear it out. `seeds_needed` and `images_needed`
    say what would decide an unclear pair.
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
    """A run that is not in the figures, and why."""

    name: str
    run_id: str | None
    status: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Arms that share a base, the data and the number of labelled images, and what is found between them.

    Without a source there is no `zero_shot` and no `base_accuracy`: the base's head is new.
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
    #: settings that all arms share, and the facts that do not depend on an arm
    setup: Mapping[str, str]
    #: whether seconds were measured on one machine, one run at a time
    timings_comparable: bool
    #: None where no run was tested over severities of the shift
    robustness: Robustness | None = None

    @property
    def test_name(self) -> str:
        """Return what people call the test set of `shifted`."""
        return "target's test set" if self.zero_shot is None else "shifted test"

    def arm(self, name: str) -> ArmResult:
        """Return the arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def front(self, cost: str) -> tuple[ArmResult, ...]:
        """Return the arms that nothing dominates for this cost, the cheapest first."""
        free = [arm for arm in self.arms if not arm.dominated_by.get(cost)]
        return tuple(sorted(free, key=lambda arm: arm.cost(cost).mean))
