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
from calibration_learners import CLASSES, FAMILY_NAMES, MEMBERS
from numpy.typing import NDArray
from scipy import stats

from adaptkit.comparison.inference import ALPHA, Inference, infer_draws, infer_folds
from adaptkit.comparison.scores import macro_f1_score, mean_score
from adaptkit.comparison.statistics import holm

ACCURACY, MACRO_F1 = "accuracy", "macro F1"
#: true differences in points, with the pairs that count as close to them
WINDOWS = {1: (0.75, 1.25), 2: (1.5, 2.5), 4: (3.2, 4.8)}
FAMILIES = [range(start, start + MEMBERS) for start in range(0, len(FAMILY_NAMES), MEMBERS)]

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
    """Return scores `[learners, runs]` and influences `[learners, runs, units]` of predictions."""
    truth = labels.astype(int)

    def one(claimed: Array) -> tuple[float, Array]:
        if metric == ACCURACY:
            scored = mean_score(claimed == truth, units)
        else:
            scored = macro_f1_score(truth, claimed.astype(int), classes=CLASSES, units=units)
        return scored.value, scored.influence

    results = [[one(run) for run in runs] for runs in predicted]
    return (
        numpy.array([[value for value, _ in runs] for runs in results]),
        numpy.array([[influence for _, influence in runs] for runs in results]),
    )


def judge_pools(
    data: Mapping[str, Array],
    predicted: Array,
    *,
    infer: Callable[[int], Infer],
    metric: str = ACCURACY,
    grouped: bool = False,
    within: Sequence[Iterable[int]] = (),
) -> Judged:
    """Judge all pairs of learners on each pool, or those within families; `infer` takes the number of units.

    With `grouped`, the units are the groups of the pools, whose sizes differ: missing images are -1.
    """
    pairs = list(itertools.combinations(range(predicted.shape[1]), 2))
    if within:
        pairs = [pair for family in within for pair in itertools.combinations(family, 2)]
    rows = []
    for pool, claimed in enumerate(predicted):
        labels = data["labels"][pool][: claimed.shape[-1]]
        known = labels >= 0
        units = data["units"][pool][known].astype(int) if grouped else None
        values, influence = score(claimed[:, :, known], labels[known], metric, units)
        rows.append(judge(values, influence, infer(int(known.sum())), pairs))
    return Judged(*numpy.stack(rows, axis=1), pairs)


def of_folds(folds: int) -> Callable[[int], Infer]:
    """Return the inference of repeated cross-validation for a number of images."""
    return lambda images: functools.partial(infer_folds, folds=folds, resolution=1 / images)


def judge_old(data: Mapping[str, Array], seeds: int) -> Judged:
    """Judge with the rule of adaptkit 0.1: a paired t-test over seeds, and an interval over test images."""
    predicted = data["predicted old"][:, :, :seeds]
    truth = data["labels"][:, -predicted.shape[-1] :]
    right = (predicted == truth[:, None, None]).astype(float)
    pairs = list(itertools.combinations(range(right.shape[1]), 2))
    columns = []
    for a, b in pairs:
        by_seed, by_image = (right[:, a] - right[:, b]).mean(-1), (right[:, a] - right[:, b]).mean(1)
        mean, images = by_seed.mean(1), by_image.shape[1]
        error = numpy.maximum(by_seed.std(1, ddof=1), 1 / images) / math.sqrt(seeds)
        p = numpy.where(mean == 0, 1, 2 * stats.t.sf(numpy.abs(mean) / error, seeds - 1))
        confirmed = numpy.abs(mean) > stats.norm.ppf(1 - ALPHA / 2) * by_image.std(1) / math.sqrt(images)
        columns.append((mean, p, stats.t.ppf(1 - ALPHA / 2, seeds - 1) * error, error * numpy.nan, confirmed))
    *numbers, confirmed = numpy.moveaxis(numpy.array(columns), 0, -1)
    return Judged(*numbers, pairs, confirmed=confirmed.astype(bool))


def rates(judged: Judged, truth: Array, reference: Array | None = None, *, families: bool = True) -> dict[str, Rate]:
    """Return all rates; `truth` are the true scores of learners, `reference` those that decide about the sign."""
    first, second = numpy.array(judged.pairs).T
    equal = numpy.array([a // MEMBERS == b // MEMBERS and b < len(FAMILY_NAMES) for a, b in judged.pairs])
    true = numpy.where(equal, 0, truth[first] - truth[second])
    size = numpy.abs(true) * 100
    signs = true if reference is None else numpy.where(equal, 0, reference[first] - reference[second])
    wrong = judged.decided & (numpy.sign(judged.mean) != numpy.sign(signs))
    right = judged.decided & (numpy.sign(judged.mean) == numpy.sign(true))
    among = judged.decided & ~equal
    result = {
        "equal pairs": Rate.of(judged.decided[:, equal]),
        "families of 4": Rate.of(judged.family_decided(FAMILIES)) if families else Rate(math.nan, math.nan),
        "wrong sign": Rate.of(wrong[:, ~equal], among[:, ~equal]),
        "coverage": Rate.of(numpy.abs(judged.mean - true) <= judged.half),
        "coverage, different": Rate.of((numpy.abs(judged.mean - true) <= judged.half)[:, ~equal]),
    }
    for points, (low, high) in WINDOWS.items():
        result[f"power {points}"] = Rate.of(right[:, (size >= low) & (size <= high)])
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
        if (folds := data.get(f"folds {size}")) is None:
            continue
        true = {name: folds[f"true {name}"].mean(0) for name in ("3x5", "3x3", "1x10", "old")}
        for name, repeats, count in (("3x5", 3, 5), ("3x5", 1, 5), ("3x3", 3, 3), ("1x10", 1, 10)):
            for number, metric in enumerate((ACCURACY, MACRO_F1) if repeats * count == 15 else (ACCURACY,)):
                predicted = folds[f"predicted {name}"][:, :, :repeats]
                judged = judge_pools(folds, predicted, infer=of_folds(count), metric=metric)
                yield "folds", f"{size} labels, {repeats} x {count}, {metric}", rates(judged, true[name][number])
        for seeds in (5, 10):
            judged = judge_old(folds, seeds)
            yield "old", f"{size} labels, {seeds} seeds", rates(judged, true["old"][0], true["3x5"][0])
    if (draws := data.get("draws")) is not None:
        for shots, seeds in itertools.product((10, 20, 50), (10, 5)):
            divisions = draws[f"divisions {shots}"][0][:seeds]
            for number, metric in enumerate((ACCURACY, MACRO_F1) if seeds == 10 else (ACCURACY,)):
                predicted = draws[f"predicted {shots}"][:, :, :seeds]

                def infer(images: int, divisions: Array = divisions) -> Infer:
                    return functools.partial(infer_draws, divisions=divisions, resolution=1 / images)

                judged = judge_pools(draws, predicted, infer=infer, metric=metric)
                true_score = draws[f"true {shots}"].mean(0)[number]
                yield "draws", f"{shots} shots, {seeds} seeds, {metric}", rates(judged, true_score)
    for size in (200, 500):
        if (groups := data.get(f"groups {size}")) is None:
            continue
        for metric, grouped in ((ACCURACY, True), (MACRO_F1, True), (ACCURACY, False)):
            predicted = groups["predicted 3x5"]
            judged = judge_pools(groups, predicted, infer=of_folds(5), metric=metric, grouped=grouped)
            suffix = metric if grouped else "groups taken as images"
            true_score = groups["true 3x5"].mean(0)[int(metric == MACRO_F1)]
            yield "groups", f"{size} labels, 3 x 5, {suffix}", rates(judged, true_score)
    if (tuned := data.get("fine-tuned")) is not None:
        judged = judge_pools(tuned, tuned["predicted 1x5"], infer=of_folds(5))
        true_score = tuned["true 1x5"].mean(0)[0]
        yield "fine-tuned", "", _few_rates(judged, numpy.append(true_score[:2].mean().repeat(2), true_score[2]))


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
    for size, (name, words) in itertools.product(
        (200, 500), {"inside": "in each fit", "once": "once, on the evaluated labels"}.items()
    ):
        if (tuned := data.get(f"tuned {size}")) is not None:
            judged = judge_pools(tuned, tuned[f"predicted {name}"], infer=of_folds(5))
            families = judged.family_decided([range(MEMBERS)])
            yield f"{size} labels, tuned twice {words}", Rate.of(judged.decided), Rate.of(families)
    for size in (100, 200, 500, 1000):
        if (folds := data.get(f"folds {size}")) is not None:
            predicted = folds["predicted 3x5"]
            looks = [
                judge_pools(folds, predicted[:, :, :repeats], infer=of_folds(5), within=FAMILIES)
                for repeats in range(1, predicted.shape[2] + 1)
            ]
            yield from _looks(looks, (1, 3, 5), lambda count, size=size: f"{size} labels, after repeats 1 to {count}")
    if (more := data.get("more labels")) is not None:
        sizes = sorted(int(name.split()[1]) for name in more if name.startswith("predicted"))
        looks = [judge_pools(more, more[f"predicted {size}"], infer=of_folds(5), within=FAMILIES) for size in sizes]
        yield from _looks(looks, (1, 3, 5, 9), lambda count: f"at {sizes[0]}, {sizes[1]} ... {sizes[count - 1]} labels")


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
    "old": "Rule of adaptkit 0.1: paired t-test over seeds, trained on 20 % of the labels",
}


def write_table(work: Path, output: Path) -> None:
    """Judge everything in the work folder, and write Markdown tables and a JSON file with the same numbers."""
    data = {path.stem: dict(numpy.load(path)) for path in work.glob("*.npz") if ".part" not in path.name}
    lines: list[str] = []
    document: dict[str, Any] = {}
    section = ""
    for section_now, name, row in sorted(
        rows_of(data), key=lambda one: list(TITLES).index(one[0]) if one[0] in TITLES else 9
    ):
        document[f"{section_now}: {name}"] = {key: [rate.value, rate.error] for key, rate in row.items()}
        if section_now not in TITLES:
            pools = len(data["fine-tuned"]["labels"])
            cells = ", ".join(f"{key} {rate}" for key, rate in row.items())
            lines += ["", f"`full`, `full` with other seeds and `lora` on {pools} pools of 100 labels, 1 x 5: {cells}"]
            continue
        if section_now != section:
            section = section_now
            lines += [
                "",
                f"| {TITLES[section]} | {' | '.join(COLUMNS.values())} |",
                "| --- |" + " ---: |" * len(COLUMNS),
            ]
        lines.append(f"| {name} | {' | '.join(str(row[key]) for key in COLUMNS)} |")
    lines += ["", "| False verdicts | equal pairs | families of four |", "| --- | ---: | ---: |"]
    for name, pairs, families in false_rows(data):
        document[f"false: {name}"] = {
            "equal pairs": [pairs.value, pairs.error],
            "families of 4": [families.value, families.error],
        }
        lines.append(f"| {name} | {pairs} | {families} |")
    output.write_text("\n".join(lines).lstrip() + "\n", encoding="utf-8")
    output.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
