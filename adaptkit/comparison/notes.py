"""Write notes on the runs of a comparison: warnings, missing seeds, unequal training and tuning, runs left out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence

from adaptkit.comparison.findings import Comparison
from adaptkit.comparison.numbers import counted, listed, plural
from adaptkit.comparison.pairs import saw_labels
from adaptkit.comparison.records import ArmResult
from adaptkit.metrics.classification import BINS
from adaptkit.names import BASE_WARNINGS_TAG, FINAL_SHIFTED, TUNED_VALUES_TAG, TUNING_TAG, WARNINGS_TAG

#: number of chosen values that a note names
MOST_CHOICES = 5
#: number of warnings of an arm that a note names
MOST_WARNINGS = 3
#: images in each bin of the calibration error that make its bias small
ENOUGH_IN_A_BIN = 100


def note_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return notes on the runs: missing seeds, unequal training, timings that are not comparable, runs left out."""
    of_base = [tag for arm in comparison.arms for run in arm.runs if (tag := run.tags.get(BASE_WARNINGS_TAG))]
    notes = [f"The base has a warning: {of_base[0].splitlines()[0]}."] if of_base else []
    every = sorted({seed for arm in comparison.arms for seed in arm.seeds})
    for arm in comparison.arms:
        if missing := [seed for seed in every if seed not in arm.seeds]:
            notes.append(
                f"{arm.name} has no finished run of {plural('seed', missing)} {listed(map(str, missing))}: its pairs "
                "use only the seeds that both strategies have."
            )
        if warned := [tag for run in arm.runs if (tag := run.tags.get(WARNINGS_TAG))]:
            lines = list(dict.fromkeys(line for tag in warned for line in tag.splitlines()))
            more = [f"{len(lines) - MOST_WARNINGS} more"] if len(lines) > MOST_WARNINGS else []
            notes.append(
                f"{arm.name} has {'a warning' if len(lines) == 1 else 'warnings'} in {len(warned)} of "
                f"{counted(len(arm.runs), 'run')}: {'; '.join([*lines[:MOST_WARNINGS], *more])}."
            )
    for key, words in (("epochs", "epochs"), ("batch_size", "images per step")):
        # A head that is fitted without gradient descent has neither.
        values = {arm.settings[key] for arm in comparison.arms if key in arm.settings}
        if len(values) > 1:
            shown = listed(sorted(values, key=lambda value: (len(value), value)))
            notes.append(
                f"The strategies were trained with unequal {key} ({shown} {words}): they share only the drawn images."
            )
    notes += [_chosen_values(arm) for arm in comparison.arms if any(TUNED_VALUES_TAG in run.tags for run in arm.runs)]
    notes += _calibration_notes(comparison)
    notes += budget_notes(comparison.arms)
    if not comparison.timings_comparable:
        notes.append(
            "Training times are shown but not ranked: the runs shared a machine, or used different machines or "
            "numbers of threads."
        )
    if comparison.robustness is not None:
        notes += comparison.robustness.notes
    for status in dict.fromkeys(run.status for run in comparison.left_out):
        runs = [run for run in comparison.left_out if run.status == status]
        reasons = dict.fromkeys(run.reason for run in runs if run.reason != run.status)
        why = f" ({listed(reasons)})" if reasons else ""
        notes.append(f"{len(runs)} {status} {plural('run', runs)} left out: {listed(run.name for run in runs)}{why}.")
    return tuple(notes)


def _calibration_notes(comparison: Comparison) -> list[str]:
    """Return how large the calibration error of calibrated probabilities would be by chance, if images are few."""
    shown = {metric.key for metric in (comparison.metric, *comparison.others)}
    images = comparison.test_images
    if f"{FINAL_SHIFTED}ece" not in shown or images >= BINS * ENOUGH_IN_A_BIN:
        return []
    accuracy = comparison.arms[0].shifted.mean
    points = 100 * math.sqrt(2 * accuracy * (1 - accuracy) * BINS / (math.pi * images))
    return [
        f"With {images} images in {BINS} bins, the calibration error is too high by chance: that of perfectly "
        f"calibrated probabilities would be about {points:.0f} points."
    ]


def _chosen_values(arm: ArmResult) -> str:
    """Return the values that the fits of an arm chose, the most frequent first."""
    chosen = [fit for run in arm.runs for fit in json.loads(run.tags.get(TUNED_VALUES_TAG, "[]"))]
    texts = Counter(
        ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in fit.items())
        for fit in chosen
    )
    shown = [f"{text} ({count})" for text, count in texts.most_common(MOST_CHOICES)]
    more = [counted(len(texts) - MOST_CHOICES, "other")] if len(texts) > MOST_CHOICES else []
    return f"The {counted(len(chosen), 'fit')} of {arm.name} chose {listed([*shown, *more])}."


def budget_notes(arms: Sequence[ArmResult]) -> list[str]:
    """Return notes on how each arm was tuned, and warnings if arms were tuned unequally; none without tuning.

    An arm counts as tuned only if all its runs come from a tuning, because other runs can have the same settings by
    chance.
    """
    tags = {arm.name: [run.tags.get(TUNING_TAG, "") for run in arm.runs] for arm in arms}
    tuned = {name: lines for name, lines in tags.items() if all(lines)}
    if not tuned:
        return []
    notes = []
    for arm in arms:
        for line in dict.fromkeys(tuned.get(arm.name, ())):
            budget, _, rest = line.partition("; ")
            notes.append(f"{arm.name} was tuned on held-out labelled images, {budget}: {rest}.")
        if saw_labels(arm):
            notes.append(f"The tuning of {arm.name} saw labels that are evaluated here: it has no verdict.")
    untuned = [arm.name for arm in arms if arm.name not in tuned]
    if untuned:
        notes.append(
            f"{listed(tuned)} {'was' if len(tuned) == 1 else 'were'} tuned, but {listed(untuned)} "
            f"{'was' if len(untuned) == 1 else 'were'} not: a tuned strategy has an advantage."
        )
    budgets = dict.fromkeys(line.partition("; ")[0] for lines in tuned.values() for line in lines)
    if len(budgets) > 1:
        notes.append(
            f"The strategies were tuned with unequal budgets ({listed(budgets)}): more trials are an advantage."
        )
    return notes
