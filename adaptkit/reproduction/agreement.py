"""Compare the results of a recorded run with those of its repetition, number by number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptkit.comparison.metrics import ACCURACIES, of_severities
from adaptkit.names import (
    FAMILY_PARAMS,
    FAMILY_SIZE,
    FINAL_SHIFTED,
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
    """A difference between the record and the repetition.

    `kind` is data, base, metric, prediction or adapter. `recorded` and `now` are the two values, None for a missing
    one. `within` is true if other hardware or versions explain the difference.
    """

    kind: str
    what: str
    recorded: Any
    now: Any
    within: bool
    detail: str = ""


@dataclass(frozen=True)
class Compared:
    """Numbers of compared metrics, predictions, tensors of the adapter or base, and elements of these tensors."""

    metrics: int = 0
    predictions: int = 0
    tensors: int = 0
    numbers: int = 0


@dataclass(frozen=True)
class Reproduction:
    """Result of running a recorded run again.

    Attributes
    ----------
    verdict : str
        "identical", "within tolerance" or "different".
    differences : tuple of Difference
        Differences in the order of their causes: data, base, epochs, final metrics, predictions, adapter.
    environment : mapping
        Properties that can change results, `recorded` and `now`; `environment_differences` lists those that differ.
    base : str or None
        Where the base of the repetition came from; None if no base was needed.
    compared : Compared
        Numbers of compared values; zero if the data differ, since nothing was run.
    largest : mapping
        Largest difference of each kind of value, as text.

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
        """Return identical, within tolerance (only if hardware or versions differ), or different."""
        if not self.differences:
            return IDENTICAL
        small = all(difference.within for difference in self.differences)
        return WITHIN if small and self.environment_differences else DIFFERENT

    @property
    def first(self) -> Difference | None:
        """Return the first difference; if the verdict is different, the first one that is too large."""
        if self.verdict == DIFFERENT and self.environment_differences:
            return next((difference for difference in self.differences if not difference.within), None)
        return next(iter(self.differences), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the reproduction as plain JSON types."""
        first = None if self.first is None else dataclasses.asdict(self.first)
        return {"verdict": self.verdict, "first_difference": first} | dataclasses.asdict(self)


#: Tolerances if hardware or versions differ, which changes the order of sums. They are about twice the largest measured
#: differences (docs/reproducing.md). In this order: final accuracies; accuracies of epochs, which vary more; any other
#: metric, relative to its value; the fraction of different predictions; the norm of the difference of the adapters,
#: relative to the norm of the recorded adapter.
FINAL, EPOCHS, SHARE, PREDICTIONS, LENGTH = 0.02, 0.06, 0.1, 0.1, 1.0
#: accuracies may always differ by this number of images
IMAGES = 3
#: metrics that do not depend on hardware and versions
COUNTED = (FAMILY_PARAMS, FAMILY_SIZE)
#: metrics of an epoch, in the order in which they are computed
EPOCH = (
    TRAIN_LOSS, TRAIN_ACCURACY, TEST_ACCURACY, SHIFTED_ACCURACY, VALIDATION_LOSS, VALIDATION_ACCURACY,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row of the table of predictions, as text: the prediction for one test image.

    `probabilities` are by class; tables of earlier versions have only that of the predicted class.
    """

    truth: str
    prediction: str
    probabilities: Mapping[str, str]
    base_prediction: str


@dataclass(frozen=True)
class Results:
    """The results of a run: metrics as (step, value), predictions by test set and image, and trained weights."""

    metrics: Mapping[str, Sequence[tuple[int, float]]]
    predictions: Mapping[str, Mapping[str, Row]]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Agreement:
    """The result of a comparison: its size, the differences, and the largest one of each kind, as text."""

    compared: Compared
    differences: tuple[Difference, ...]
    largest: Mapping[str, str]


def compare_results(recorded: Results, now: Results, weights: str = "adapter", drawn: int | None = None) -> Agreement:
    """Compare the results of two runs exactly.

    Differences are in the order epochs, final metrics, predictions, weights.

    `weights` is the name for the trained weights in messages. `drawn` is the number of training images, if it is
    known; it decides the tolerance of accuracies.
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


#: sort key that identifies a value: (is final, step, rank of the metric, metric, number within the step)
_Point = tuple[bool, int, int, str, int]


def _points(metrics: Mapping[str, Sequence[tuple[int, float]]]) -> dict[_Point, float]:
    points: dict[_Point, float] = {}
    for key, values in metrics.items():
        rank = EPOCH.index(key) if key in EPOCH else len(EPOCH)
        final = all(step == 0 for step, _ in values)
        count: dict[int, int] = {}
        for step, value in values:
            number = count[step] = count.get(step, -1) + 1
            points[final, step, rank, key, number] = value
    return points


def _images(predictions: Mapping[str, Mapping[str, Row]], drawn: int | None) -> dict[str, int | None]:
    """Return the number of images for accuracies on training, held-out and test images."""
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
            part.differences.append(
                Difference(kind="metric", what=what, recorded=_finite(before), now=_finite(after), within=False)
            )
            continue
        is_share = key.endswith("accuracy") or key.startswith(FINAL_SHIFTED) or key in ACCURACIES or of_severities(key)
        gap = abs(before - after) / (1.0 if is_share else max(abs(before), abs(after)))
        count = images.get(key.partition("/")[0], images["test"])
        tolerance = max(FINAL if final else EPOCHS, IMAGES / count if count else 0.0) if is_share else SHARE
        within = gap <= tolerance and not key.startswith(COUNTED)
        part.differences.append(
            Difference(kind="metric", what=what, recorded=_finite(before), now=_finite(after), within=within)
        )
        kind = "accuracies" if is_share else "other metrics"
        if not gap <= furthest.get(kind, (-1.0, ""))[0]:
            furthest[kind] = gap, what
    for kind, (gap, what) in furthest.items():
        part.largest[kind] = f"{100 * gap:.3g} {'points' if kind == 'accuracies' else '%'} ({what})"
    return part


def _finite(value: float | None) -> float | str | None:
    """Return a number, or its text if JSON cannot represent it."""
    return value if value is None or math.isfinite(value) else str(value)


def _rows(predictions: Mapping[str, Mapping[str, Row]]) -> dict[tuple[str, str], Row]:
    return {(name, image): row for name, rows in predictions.items() for image, row in rows.items()}


def _compare_predictions(recorded: Mapping[tuple[str, str], Row], now: Mapping[tuple[str, str], Row]) -> _Part:
    """Compare predictions row by row; all images that differ in the same column give one difference."""
    part = _Part()
    total = len({*recorded, *now})
    if missing := [place for place in {**recorded, **now} if place not in recorded or place not in now]:
        before, after = _prediction(recorded.get(missing[0])), _prediction(now.get(missing[0]))
        part.differences.append(
            Difference(kind="prediction", what=_place(missing[0]), recorded=before, now=after, within=False)
        )
    rows = [(place, recorded[place], now[place]) for place in recorded if place in now]
    for title, values in (
        ("truth", [(place, one.truth, other.truth) for place, one, other in rows]),
        ("the base's prediction", [(place, one.base_prediction, other.base_prediction) for place, one, other in rows]),
        ("prediction", [(place, one.prediction, other.prediction) for place, one, other in rows]),
        ("probability", [(place, *_probabilities(one, other)) for place, one, other in rows]),
    ):
        different = [(place, before, after) for place, before, after in values if before != after]
        if not different:
            continue
        place, before, after = different[0]
        few = len(different) <= PREDICTIONS * total and title != "truth"
        within = few or title == "probability"  # the weights are compared anyway
        detail = f"{len(different):,} of {total:,} images"
        part.differences.append(
            Difference(
                kind="prediction",
                what=f"{title}, {_place(place)}",
                recorded=before,
                now=after,
                within=within,
                detail=detail,
            )
        )
        if title == "prediction":
            part.largest["predictions"] = f"{len(different):,} differ{'s' * (len(different) == 1)}"
    return part


def _probabilities(recorded: Row, now: Row) -> tuple[str, str]:
    """Return the first probabilities of one class that differ, with its name; equal texts if there are none."""
    for name, before in recorded.probabilities.items():
        if (after := now.probabilities.get(name, before)) != before:
            return f"{name}: {before}", f"{name}: {after}"
    return "", ""


def _place(place: tuple[str, str]) -> str:
    name, image = place
    return f"image {image} of the {name} test set"


def _prediction(row: Row | None) -> str | None:
    return None if row is None else row.prediction


def _compare_weights(recorded: Mapping[str, Tensor], now: Mapping[str, Tensor], title: str) -> _Part:
    part = _Part()
    for name in sorted({*recorded, *now}):
        before, after = recorded.get(name), now.get(name)
        if before is None or after is None or (before.shape, before.dtype) != (after.shape, after.dtype):
            what = f"{title}, {name}"
            part.differences.append(
                Difference(kind="adapter", what=what, recorded=_shape(before), now=_shape(after), within=False)
            )
    if part.differences:
        return part
    changed = [name for name in sorted(recorded) if not _same_bits(recorded[name], now[name])]
    if not changed:
        return part
    gaps = {name: (recorded[name].double() - now[name].double()).abs() for name in changed}
    length = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in recorded.values()))
    gap = math.sqrt(sum(float(gaps[name].square().sum()) for name in changed))
    share = gap / length if length else math.inf
    furthest = max(changed, key=lambda name: float(gaps[name].max()))
    place = int(gaps[furthest].argmax())
    old, new = (float(tensors[furthest].flatten()[place]) for tensors in (recorded, now))
    size = f"{float(gaps[furthest].max()):.3g}"
    detail = f"the largest difference, {size}; {len(changed)} of {len(recorded)} tensors differ"
    what = f"{title}, {furthest}[{place}]"
    part.differences.append(
        Difference(kind="adapter", what=what, recorded=old, now=new, within=share <= LENGTH, detail=detail)
    )
    part.largest[title] = f"{size} ({furthest}); {100 * share:.3g} % of the length of all"
    return part


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))


def _shape(tensor: Tensor | None) -> str | None:
    return None if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
