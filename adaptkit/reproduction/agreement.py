"""Compare the results of two runs that should be the same, number by number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptkit.comparison.metrics import TEST_SETS, of_severities
from adaptkit.names import (
    SHIFTED_ACCURACY,
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    TRAIN_LOSS,
    VALIDATION_ACCURACY,
    VALIDATION_LOSS,
)
from adaptkit.tracking.environment import EnvironmentDifference

IDENTICAL, WITHIN, DIFFERENT = "identical", "within tolerance", "different"


@dataclass(frozen=True)
class Difference:
    """One thing that is not what was recorded.

    `kind` is data, base, metric, prediction or adapter; None stands for what is not there. `within` tells whether it is
    so small that other hardware or versions explain it; `detail` is more to tell.
    """

    kind: str
    what: str
    recorded: Any
    now: Any
    within: bool
    detail: str = ""


@dataclass(frozen=True)
class Compared:
    """How much was compared: values of metrics, predictions, tensors of the adapter (or base) and numbers in them."""

    metrics: int = 0
    predictions: int = 0
    tensors: int = 0
    numbers: int = 0


@dataclass(frozen=True)
class Reproduction:
    """Result of re-running a recorded run.

    Attributes
    ----------
    verdict : str
        "identical", "within tolerance" or "different".
    differences : tuple of Difference
        Differences in the order of their causes: data, base, epochs, final metrics, predictions, adapter.
    environment : mapping
        Hardware and versions that numbers depend on, `recorded` and `now`; `environment_differences` lists those that
        differ.
    base : str or None
        Where the base came from; None if no base was needed.
    compared : Compared
        Numbers of compared values; empty if other data made a new run pointless.
    largest : mapping
        Largest difference of each kind of number, as text.

    Examples
    --------
    >>> reproduction = adaptkit.reproduce(run_id)
    >>> reproduction.verdict, reproduction.differences
    ('identical', ())
    """

    run_id: str
    name: str
    kind: str
    data_fingerprint: str
    base_fingerprint: str | None
    base: str | None
    compared: Compared
    differences: tuple[Difference, ...]
    environment_differences: tuple[EnvironmentDifference, ...]
    environment: Mapping[str, Mapping[str, str]]
    largest: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Return identical, within tolerance (only where hardware or versions are others), or different."""
        if not self.differences:
            return IDENTICAL
        small = all(difference.within for difference in self.differences)
        return WITHIN if small and self.environment_differences else DIFFERENT

    @property
    def first(self) -> Difference | None:
        """Return the difference to look at first: of a different run the first that is too large, if any is."""
        if self.verdict == DIFFERENT and self.environment_differences:
            return next((one for one in self.differences if not one.within), None)
        return next(iter(self.differences), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the reproduction as plain JSON types."""
        first = None if self.first is None else dataclasses.asdict(self.first)
        return {"verdict": self.verdict, "first_difference": first} | dataclasses.asdict(self)


#: By how much results may differ on other hardware or with other versions, where sums are added up in another order and
#: training enlarges the last digits: about twice the largest differences that were measured so
#: (docs/reproducing.md). Accuracies that a run ends with, and those of its epochs, which go up and down; a share of any
#: other metric's value; a share of the predictions; and of the adapter's length, the square root of its sum of squares.
FINAL, EPOCHS, SHARE, PREDICTIONS, LENGTH = 0.02, 0.06, 0.1, 0.1, 1.0
#: and in any case, of few images, so many
IMAGES = 3
#: what is counted before anything is computed: the same everywhere
COUNTED = ("params/", "size/")
#: metrics of an epoch, in the order in which it makes them
EPOCH = (
    TRAIN_LOSS, TRAIN_ACCURACY, TEST_ACCURACY, SHIFTED_ACCURACY, VALIDATION_LOSS, VALIDATION_ACCURACY,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What a run says of one test image, as its table of predictions has it."""

    truth: str
    prediction: str
    confidence: str
    base_prediction: str


@dataclass(frozen=True)
class Results:
    """A run's results: each metric's values with their steps, rows by test set and image, and trained weights."""

    metrics: Mapping[str, Sequence[tuple[int, float]]]
    predictions: Mapping[str, Mapping[str, Row]]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Agreement:
    """What was compared, what differs, and the largest difference of each kind of number, in words."""

    compared: Compared
    differences: tuple[Difference, ...]
    largest: Mapping[str, str]


def compare_results(recorded: Results, now: Results, weights: str = "adapter", drawn: int | None = None) -> Agreement:
    """Compare two runs' results; differences come in the order: epochs, final metrics, predictions, weights.

    `weights` is what the trained weights are called, `drawn` how many images were trained on, where they are few.
    Values are compared as they are stored, to the last bit.
    """
    points, points_now = _points(recorded.metrics), _points(now.metrics)
    rows, rows_now = _rows(recorded.predictions), _rows(now.predictions)
    differences: list[Difference] = []
    largest: dict[str, str] = {}
    for part in (
        _compare_metrics(points, points_now, _images(recorded.predictions, drawn)),
        _compare_predictions(rows, rows_now),
        _compare_weights(recorded.tensors, now.tensors, weights),
    ):
        differences += part.differences
        largest |= part.largest
    compared = Compared(
        metrics=len({*points, *points_now}),
        predictions=len({*rows, *rows_now}),
        tensors=len({*recorded.tensors, *now.tensors}),
        numbers=sum(tensor.numel() for tensor in recorded.tensors.values()),
    )
    return Agreement(compared, tuple(differences), largest)


@dataclass
class _Part:
    differences: list[Difference] = field(default_factory=list)
    largest: dict[str, str] = field(default_factory=dict)


#: a value's place among all: of an epoch or final, the step, its rank and metric, its number among those of the step
_Point = tuple[bool, int, int, str, int]


def _points(metrics: Mapping[str, Sequence[tuple[int, float]]]) -> dict[_Point, float]:
    found: dict[_Point, float] = {}
    for key, values in metrics.items():
        rank = EPOCH.index(key) if key in EPOCH else len(EPOCH)
        final = all(step == 0 for step, _ in values)
        count: dict[int, int] = {}
        for step, value in values:
            number = count[step] = count.get(step, -1) + 1
            found[final, step, rank, key, number] = value
    return found


def _images(predictions: Mapping[str, Mapping[str, Row]], drawn: int | None) -> dict[str, int | None]:
    """Return on how many images accuracies are: on those trained on, or held back of them, and on a test set."""
    fewest = min((len(rows) for rows in predictions.values()), default=None)
    return {"train": drawn, "validation": drawn, "test": fewest}


def _compare_metrics(
    recorded: Mapping[_Point, float], now: Mapping[_Point, float], images: Mapping[str, int | None]
) -> _Part:
    part = _Part()
    furthest: dict[str, tuple[float, str]] = {}
    for point in sorted({*recorded, *now}):
        before, after = recorded.get(point), now.get(point)
        if before == after or (before is not None and after is not None and math.isnan(before) and math.isnan(after)):
            continue
        final, step, _, key, number = point
        what = key if final else f"{key}, epoch {step}" + (f", value {number + 1}" if number else "")
        if before is None or after is None:
            part.differences.append(Difference("metric", what, _finite(before), _finite(after), within=False))
            continue
        is_share = key.endswith("accuracy") or key in TEST_SETS or of_severities(key)
        gap = abs(before - after) / (1.0 if is_share else max(abs(before), abs(after)))
        count = images.get(key.partition("/")[0], images["test"])
        most = max(FINAL if final else EPOCHS, IMAGES / count if count else 0.0) if is_share else SHARE
        within = gap <= most and not key.startswith(COUNTED)
        part.differences.append(Difference("metric", what, _finite(before), _finite(after), within))
        kind = "accuracies" if is_share else "other metrics"
        if not gap <= furthest.get(kind, (-1.0, ""))[0]:
            furthest[kind] = gap, what
    for kind, (gap, what) in furthest.items():
        part.largest[kind] = f"{100 * gap:.3g} {'points' if kind == 'accuracies' else '%'} ({what})"
    return part


def _finite(value: float | None) -> float | str | None:
    """Return a number as JSON can write it."""
    return value if value is None or math.isfinite(value) else str(value)


def _rows(predictions: Mapping[str, Mapping[str, Row]]) -> dict[tuple[str, str], Row]:
    return {(name, image): row for name, rows in predictions.items() for image, row in rows.items()}


def _compare_predictions(recorded: Mapping[tuple[str, str], Row], now: Mapping[tuple[str, str], Row]) -> _Part:
    """Compare row by row; one difference stands for all images of which the same column is otherwise."""
    part = _Part()
    whole = len({*recorded, *now})
    if gone := [place for place in {**recorded, **now} if place not in recorded or place not in now]:
        before, after = _said(recorded.get(gone[0])), _said(now.get(gone[0]))
        part.differences.append(Difference("prediction", _place(gone[0]), before, after, within=False))
    common = [place for place in recorded if place in now]
    for attribute, title in (
        ("truth", "truth"),
        ("base_prediction", "the base's prediction"),
        ("prediction", "prediction"),
        ("confidence", "confidence"),
    ):
        pairs = [(place, getattr(recorded[place], attribute), getattr(now[place], attribute)) for place in common]
        others = [pair for pair in pairs if pair[1] != pair[2]]
        if not others:
            continue
        place, before, after = others[0]
        few = len(others) <= PREDICTIONS * whole and attribute != "truth"
        within = few or attribute == "confidence"  # which follows the weights, and decides nothing
        detail = f"{len(others):,} of {whole:,} images"
        part.differences.append(Difference("prediction", f"{title}, {_place(place)}", before, after, within, detail))
        if attribute == "prediction":
            part.largest["predictions"] = f"{len(others):,} differ{'s' * (len(others) == 1)}"
    return part


def _place(place: tuple[str, str]) -> str:
    name, image = place
    return f"image {image} of the {name} test set"


def _said(row: Row | None) -> str | None:
    return None if row is None else row.prediction


def _compare_weights(recorded: Mapping[str, Tensor], now: Mapping[str, Tensor], title: str) -> _Part:
    part = _Part()
    for name in sorted({*recorded, *now}):
        one, other = recorded.get(name), now.get(name)
        if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
            part.differences.append(Difference("adapter", f"{title}, {name}", _shape(one), _shape(other), False))
    if part.differences:
        return part
    moved = [name for name in sorted(recorded) if not _same_bits(recorded[name], now[name])]
    if not moved:
        return part
    gaps = {name: (recorded[name].double() - now[name].double()).abs() for name in moved}
    length = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in recorded.values()))
    gap = math.sqrt(sum(float(gaps[name].square().sum()) for name in moved))
    share = gap / length if length else math.inf
    furthest = max(moved, key=lambda name: float(gaps[name].max()))
    place = int(gaps[furthest].argmax())
    before, after = (float(tensors[furthest].flatten()[place]) for tensors in (recorded, now))
    size = f"{float(gaps[furthest].max()):.3g}"
    detail = f"the largest difference, {size}; {len(moved)} of {len(recorded)} tensors differ"
    what = f"{title}, {furthest}[{place}]"
    part.differences.append(Difference("adapter", what, before, after, share <= LENGTH, detail))
    part.largest[title] = f"{size} ({furthest}); {100 * share:.3g} % of the length of all"
    return part


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))


def _shape(tensor: Tensor | None) -> str | None:
    return None if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
