"""Judge the stored predictions of `calibration.py` with adaptkit's statistics, and write the tables."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from calibration_learners import CLASSES, FAMILY_NAMES, LEARNERS, MEMBERS
from numpy.typing import NDArray
from scipy import stats

from adaptkit.comparison.inference import ALPHA, Inference, infer_draws, infer_folds, infer_given
from adaptkit.comparison.scores import Answers, mean_score
from adaptkit.comparison.scores import score as score_of
from adaptkit.comparison.statistics import holm
from adaptkit.contracts import Metric
from adaptkit.metrics.classification import BalancedAccuracy, MacroF1

ACCURACY, MACRO_F1, BALANCED_ACCURACY, NLL = "accuracy", "macro F1", "balanced accuracy", "negative log-likelihood"
#: metrics in the order of the stored true scores
METRICS = (ACCURACY, MACRO_F1, BALANCED_ACCURACY, NLL)
#: metrics of predicted classes that are not means over images
OF_CLASSES: dict[str, Metric] = {MACRO_F1: MacroF1(), BALANCED_ACCURACY: BalancedAccuracy()}
#: true differences in points, with the pairs that count as close to them
WINDOWS = {1: (0.75, 1.25), 2: (1.5, 2.5), 4: (3.2, 4.8)}
FAMILIES = [range(start, start + MEMBERS) for start in range(0, len(FAMILY_NAMES), MEMBERS)]
EQUAL_PAIRS = [pair for family in FAMILIES for pair in itertools.combinations(family, 2)]
#: one learner of each family, and all others
DISTINCT = [*range(0, len(FAMILY_NAMES), MEMBERS), *range(len(FAMILY_NAMES), len(FAMILY_NAMES) + len(LEARNERS))]
PAIRS = [*EQUAL_PAIRS, *itertools.combinations(DISTINCT, 2)]

Array = NDArray[Any]
Infer = Callable[[Array, Array], Inference | None]


@dataclass(frozen=True)
class Rate:
    """A share of events, with its standard error; pools are independent, events in one pool are not."""

    value: float
    error: float

    @classmethod
    def of(cls, events: Array, among: Array | None = None) -> Rate:
        """Return the share of events `[pools, ...]`, among those cases that are given or all."""
        cases = numpy.ones_like(events, dtype=bool) if among is None else among
        hits = (events & cases).reshape(len(events), -1).sum(1)
        counts = cases.reshape(len(events), -1).sum(1)
        if not counts.sum():
            return cls(math.nan, math.nan)
        share = hits.sum() / counts.sum()
        return cls(float(share), float(numpy.sqrt(((hits - share * counts) ** 2).sum()) / counts.sum()))

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{100 * self.value:.1f} ± {100 * self.error:.1f}"


@dataclass(frozen=True)
class Judged:
    """What adaptkit says of each pair of learners on each pool: arrays `[pools, pairs]`."""

    mean: Array
    p: Array
    half: Array
    detectable: Array
    pairs: list[tuple[int, int]]
    #: only of the rule of adaptkit 0.1: whether the interval over test images confirms the verdict
    confirmed: Array | bool = True

    @property
    def decided(self) -> Array:
        """Return whether a single pair is called better or worse."""
        decided: Array = (self.p < ALPHA) & self.confirmed
        return decided

    def family_decided(self, families: Sequence[Iterable[int]]) -> Array:
        """Return whether any pair of a family is called better or worse, `[pools, families]`."""
        found = []
        for family in families:
            within = [self.pairs.index(pair) for pair in itertools.combinations(family, 2)]
            confirmed = self.confirmed if isinstance(self.confirmed, bool) else self.confirmed[:, within]
            found.append(((holm(self.p[:, within]) < ALPHA) & confirmed).any(1))
        return numpy.stack(found, axis=1)


def judge(values: Array, influence: Array, infer: Infer, pairs: list[tuple[int, int]]) -> Array:
    """Return mean, p, half-width and detectable difference `[4, pairs]` from scores `[learners, runs]`."""
    rows = []
    for a, b in pairs:
        result = infer(values[a] - values[b], influence[a] - influence[b])
        assert result is not None
        rows.append((result.mean, result.p, result.half_width(), result.detectable()))
    return numpy.array(rows, dtype=float).T


def score(predicted: Array, labels: Array, metric: str, units: Array | None) -> tuple[Array, Array]:
    """Return scores `[learners, runs]` and influences `[learners, runs, units]` of predictions, or of losses."""
    truth = labels.astype(int)

    def one(claimed: Array) -> tuple[float, Array]:
        if metric in OF_CLASSES:
            answers = Answers(predicted=claimed.astype(int), truth=truth, classes=CLASSES)
            scored = score_of(OF_CLASSES[metric], answers, units)
            assert scored is not None
        else:
            scored = mean_score(claimed if metric == NLL else claimed == truth, units)
        return scored.value, scored.influence

    results = [[one(run) for run in runs] for runs in predicted]
    return (
        numpy.array([[value for value, _ in runs] for runs in results]),
        numpy.array([[influence for _, influence in runs] for runs in results]),
    )


def judge_pools(
    data: Mapping[str, Array],
    predicted: Array,
    infer: Callable[[int, int, Array | None], Infer],
    *,
    metric: str = ACCURACY,
    grouped: bool = False,
    pairs: list[tuple[int, int]] = PAIRS,
) -> Judged:
    """Judge pairs of learners on each pool.

    `infer` takes the number of the pool, the number of its images, and the groups of images. With `grouped`, the units
    are the groups; pools differ in size, and images that a pool does not have are -1.
    """
    rows = []
    for pool, claimed in enumerate(predicted):
        labels = data["labels"][pool][: claimed.shape[-1]]
        images = int((labels >= 0).sum())
        units = data["units"][pool][:images].astype(int) if grouped else None
        values, influence = score(claimed[:, :, :images], labels[:images], metric, units)
        rows.append(judge(values, influence, infer(pool, images, units), pairs))
    return Judged(*numpy.stack(rows, axis=1), pairs)


def of_folds(assigned: Array, *, luck: bool = True) -> Callable[[int, int, Array | None], Infer]:
    """Return the inference of repeated cross-validation from fold numbers `[pools, repeats, images]`.

    Without `luck`, the variance that images of one fold share is left out.
    """
    folds = int(assigned.max()) + 1

    def without_luck(values: Array, influence: Array, images: int) -> Inference:
        corrected = math.sqrt(folds / (folds - 1)) * influence.mean(0, keepdims=True)
        return infer_given([values.mean()], corrected, resolution=1 / images)

    def infer(pool: int, images: int, units: Array | None) -> Infer:
        numbers = assigned[pool][:, :images]
        if units is not None:
            numbers = numbers[:, numpy.unique(units, return_index=True)[1]]
        if not luck:
            return functools.partial(without_luck, images=images)
        return functools.partial(infer_folds, folds=numbers, resolution=1 / images)

    return infer


def judge_old(predicted: Array, labels: Array) -> Judged:
    """Judge with the rule of adaptkit 0.1: a paired t-test over seeds, confirmed by an interval over test images."""
    seeds = predicted.shape[2]
    right = (predicted == labels[:, None, None, -predicted.shape[-1] :]).astype(numpy.float32)
    columns = []
    for a, b in PAIRS:
        by_seed, by_image = (right[:, a] - right[:, b]).mean(-1), (right[:, a] - right[:, b]).mean(1)
        mean, images = by_seed.mean(1), by_image.shape[1]
        error = numpy.maximum(by_seed.std(1, ddof=1), 1 / images) / math.sqrt(seeds)
        p = numpy.where(mean == 0, 1, 2 * stats.t.sf(numpy.abs(mean) / error, seeds - 1))
        confirmed = numpy.abs(mean) > stats.norm.ppf(1 - ALPHA / 2) * by_image.std(1) / math.sqrt(images)
        columns.append((mean, p, stats.t.ppf(1 - ALPHA / 2, seeds - 1) * error, error * numpy.nan, confirmed))
    *numbers, confirmed = numpy.moveaxis(numpy.array(columns), 0, -1)
    return Judged(*numbers, PAIRS, confirmed=confirmed.astype(bool))


def rates(judged: Judged, truth: Array, reference: Array | None = None, *, metric: str = ACCURACY) -> dict[str, Rate]:
    """Return all rates; `truth` are the true scores of learners, `reference` those that decide about the sign."""
    first, second = numpy.array(judged.pairs).T
    equal = numpy.arange(len(PAIRS)) < len(EQUAL_PAIRS)
    true = numpy.where(equal, 0, truth[first] - truth[second])
    size = numpy.abs(true) * 100
    signs = true if reference is None else numpy.where(equal, 0, reference[first] - reference[second])
    wrong = judged.decided & (numpy.sign(judged.mean) != numpy.sign(signs))
    right = judged.decided & (numpy.sign(judged.mean) == numpy.sign(true))
    among = judged.decided & ~equal
    result = {
        "equal pairs": Rate.of(judged.decided[:, equal]),
        "families of 4": Rate.of(judged.family_decided(FAMILIES)),
        "wrong sign": Rate.of(wrong[:, ~equal], among[:, ~equal]),
        "coverage": Rate.of(numpy.abs(judged.mean - true) <= judged.half),
    }
    for points, (low, high) in WINDOWS.items():
        near = (size >= low) & (size <= high) & (metric != NLL)  # whose differences are not in points
        result[f"power {points}"] = Rate.of(right[:, near])
    ratio = size / 100 / judged.detectable.mean(0)
    result["power, stated 80"] = Rate.of(right[:, (ratio > 0.9) & (ratio < 1.1)])
    return result


COLUMNS = {
    "equal pairs": "false: equal pairs",
    "families of 4": "false: families of four",
    "wrong sign": "wrong sign",
    "coverage": "coverage",
    "power 1": "power at 1 point",
    "power 2": "at 2",
    "power 4": "at 4",
    "power, stated 80": "at the stated difference",
}


def rows_of(data: Mapping[str, Mapping[str, Array]]) -> Iterator[tuple[str, str, Mapping[str, Rate]]]:
    """Yield section, name and rates of each setting that was measured."""
    for size in (100, 200, 500, 1000):
        if f"folds {size}" in data:
            yield from _rows_of_folds(data[f"folds {size}"], size)
    if "draws" in data:
        yield from _rows_of_draws(data["draws"])
    if "old draws" in data:
        yield from _rows_of_old_draws(data["old draws"])
    for size in (200, 500):
        if (groups := data.get(f"groups {size}")) is None:
            continue
        for metric, grouped in ((ACCURACY, True), (MACRO_F1, True), (ACCURACY, False)):
            infer = of_folds(groups["folds 3x5"])
            judged = judge_pools(groups, groups["predicted 3x5"], infer, metric=metric, grouped=grouped)
            suffix = metric if grouped else "groups taken as images"
            yield "groups", f"{size} labels, 3 x 5, {suffix}", rates(judged, _truth(groups, "3x5", metric))
    if (tuned := data.get("fine-tuned")) is not None:
        judged = judge_pools(
            tuned, tuned["predicted 1x5"], of_folds(tuned["folds 1x5"]), pairs=[(0, 1), (0, 2), (1, 2)]
        )
        full, again, lora = _truth(tuned, "1x5")
        name = f"{len(judged.mean)} pools, full twice and lora"
        yield "fine-tuned", name, _few_rates(judged, numpy.array([(full + again) / 2] * 2 + [lora]))


def _truth(data: Mapping[str, Array], design: str, metric: str = ACCURACY) -> Array:
    """Return the true scores of learners: means over pools."""
    means: Array = data[f"true {design}"].mean(0)[METRICS.index(metric)]
    return means


def _rows_of_folds(data: Mapping[str, Array], size: int) -> Iterator[tuple[str, str, Mapping[str, Rate]]]:
    settings = [("3x5", 3, metric, True) for metric in METRICS]
    settings += [
        ("3x5", 1, ACCURACY, True),
        ("3x3", 3, ACCURACY, True),
        ("1x10", 1, ACCURACY, True),
        ("3x5", 3, ACCURACY, False),
    ]
    for design, repeats, metric, luck in settings:
        infer = of_folds(data[f"folds {design}"][:, :repeats], luck=luck)
        answers = data[f"{'losses' if metric == NLL else 'predicted'} {design}"]
        judged = judge_pools(data, answers[:, :, :repeats], infer, metric=metric)
        name = f"{repeats} x {design.split('x')[1]}, {metric if luck else 'luck of training left out'}"
        yield "folds", f"{size} labels, {name}", rates(judged, _truth(data, design, metric), metric=metric)
    for seeds in (5, 10):
        judged = judge_old(data["predicted old"][:, :, :seeds], data["labels"])
        yield "old", f"{size} labels, {seeds} seeds", rates(judged, _truth(data, "old"), _truth(data, "3x5"))


def _rows_of_old_draws(data: Mapping[str, Array]) -> Iterator[tuple[str, str, Mapping[str, Rate]]]:
    for shots, seeds in itertools.product((10, 20, 50), (5, 10)):
        judged = judge_old(data[f"predicted {shots}"][:, :, :seeds], data["labels"])
        yield "old draws", f"{shots} shots, {seeds} seeds", rates(judged, _truth(data, str(shots)))


def _rows_of_draws(data: Mapping[str, Array]) -> Iterator[tuple[str, str, Mapping[str, Rate]]]:
    for shots, (seeds, metric) in itertools.product((10, 20, 50), ((10, ACCURACY), (10, MACRO_F1), (5, ACCURACY))):
        divisions = data[f"divisions {shots}"][:, :seeds]

        def infer(pool: int, images: int, units: Array | None, divisions: Array = divisions) -> Infer:
            return functools.partial(infer_draws, divisions=divisions[pool], resolution=1 / images)

        judged = judge_pools(data, data[f"predicted {shots}"][:, :, :seeds], infer, metric=metric)
        yield "draws", f"{shots} shots, {seeds} seeds, {metric}", rates(judged, _truth(data, str(shots), metric))


def _few_rates(judged: Judged, truth: Array) -> dict[str, Rate]:
    """Return the rates of `full`, `full` again and `lora`."""
    first, second = numpy.array(judged.pairs).T
    true = truth[first] - truth[second]
    inside = numpy.abs(judged.mean - true) <= judged.half
    right = judged.decided & (numpy.sign(judged.mean) == numpy.sign(true))
    return {
        "equal pairs": Rate.of(judged.decided[:, :1]),
        "coverage": Rate.of(inside),
        "wrong sign": Rate.of(judged.decided[:, 1:] & ~right[:, 1:], judged.decided[:, 1:]),
        "power": Rate.of(right[:, 1:]),
        "difference": Rate(float(true[-1]), 0.0),
    }


def false_rows(data: Mapping[str, Mapping[str, Array]]) -> Iterator[tuple[str, Rate, Rate]]:
    """Yield the rates of false verdicts of equal pairs and families: strategies tuned twice, and repeated looks."""
    four = list(itertools.combinations(range(MEMBERS), 2))
    ways = {"inside": "in each fit", "once": "once, on the evaluated labels"}
    for (way, words), size in itertools.product(ways.items(), (200, 500)):
        if (tuned := data.get(f"tuned {size}")) is not None:
            judged = judge_pools(tuned, tuned[f"predicted {way}"], of_folds(tuned["folds 3x5"]), pairs=four)
            families = judged.family_decided([range(MEMBERS)])
            yield f"{size} labels, tuned {words}", Rate.of(judged.decided), Rate.of(families)
    for size in (100, 200, 500, 1000):
        if (folds := data.get(f"folds {size}")) is not None:
            predicted, assigned = folds["predicted 3x5"], folds["folds 3x5"]
            looks = [
                judge_pools(folds, predicted[:, :, :repeats], of_folds(assigned[:, :repeats]), pairs=EQUAL_PAIRS)
                for repeats in range(1, predicted.shape[2] + 1)
            ]
            yield from _looks(
                looks, (1, 3, 5), lambda count, size=size: f"{size} labels, looks after repeats 1 to {count}"
            )
    if (more := data.get("more labels")) is not None:
        sizes = sorted(int(name.split()[1]) for name in more if name.startswith("predicted"))
        looks = [
            judge_pools(more, more[f"predicted {size}"], of_folds(more[f"folds {size}"]), pairs=EQUAL_PAIRS)
            for size in sizes
        ]
        yield from _looks(
            looks, (1, 3, 5, 9), lambda count: f"3 x 5, looks at {', '.join(map(str, sizes[:count]))} labels"
        )


def _looks(
    looks: Sequence[Judged], counts: Iterable[int], name: Callable[[int], str]
) -> Iterator[tuple[str, Rate, Rate]]:
    """Yield the rates of a false verdict at any of the first looks."""
    for count in counts:
        pairs = numpy.logical_or.reduce([look.decided for look in looks[:count]])
        families = numpy.logical_or.reduce([look.family_decided(FAMILIES) for look in looks[:count]])
        yield name(count), Rate.of(pairs), Rate.of(families)


TITLES = {
    "folds": "Folds",
    "draws": "Draws from a pool of 1,000 images, 1,500 test images",
    "groups": "Groups of 1 to 12 images, folds",
    "old": "adaptkit 0.1: draws of 20 % of the labels that overlap, 60 % for testing",
    "old draws": "adaptkit 0.1: draws that overlap, from a pool of 1,000 images, 1,500 test images",
}


def write_table(work: Path, output: Path) -> None:
    """Judge everything in the work folder, and write Markdown tables and a JSON file with the same numbers."""
    data = {path.stem: dict(numpy.load(path)) for path in work.glob("*.npz") if ".part" not in path.name}
    rows = list(rows_of(data))
    document: dict[str, Any] = {}
    lines: list[str] = []
    for section, title in TITLES.items():
        lines += ["", f"| {title} | {' | '.join(COLUMNS.values())} |", "| --- |" + " ---: |" * len(COLUMNS)]
        for name, row in ((name, row) for other, name, row in rows if other == section):
            lines.append(f"| {name} | {' | '.join(str(row[key]) for key in COLUMNS)} |")
    lines += ["", "| False verdicts | equal pairs | families of four |", "| --- | ---: | ---: |"]
    for name, pairs, families in false_rows(data):
        rows.append(("false", name, {"equal pairs": pairs, "families of 4": families}))
        lines.append(f"| {name} | {pairs} | {families} |")
    for section, name, row in rows:
        document[f"{section}: {name}"] = {key: [rate.value, rate.error] for key, rate in row.items()}
        if section == "fine-tuned":
            lines += ["", f"{name}: {', '.join(f'{key} {rate}' for key, rate in row.items())}"]
    output.write_text("\n".join(lines).lstrip() + "\n", encoding="utf-8")
    output.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
