"""Say with which budget the arms of a comparison were tuned, and whether it was the same."""

from __future__ import annotations

from collections.abc import Sequence

from adaptkit.comparison import ArmResult
from adaptkit.reports.wording import listed
from adaptkit.tune_outcome import TUNING_TAG


def budget_notes(arms: Sequence[ArmResult]) -> list[str]:
    """Return how each arm was tuned, and a warning where that is unequal; nothing where none was.

    An arm of which some runs are of no tuning was not tuned: one has merely chosen the same settings.
    """
    lines = {arm.name: [run.tags.get(TUNING_TAG, "") for run in arm.runs] for arm in arms}
    tuned = {name: found for name, found in lines.items() if all(found)}
    if not tuned:
        return []
    notes = []
    for arm in arms:
        for line in dict.fromkeys(tuned.get(arm.name, ())):
            budget, _, rest = line.partition("; ")
            notes.append(f"{arm.name} was tuned on labelled images held back from training, {budget}: {rest}.")
    untuned = [arm.name for arm in arms if arm.name not in tuned]
    if untuned:
        notes.append(
            f"{listed(tuned)} {'was' if len(tuned) == 1 else 'were'} tuned, {listed(untuned)} "
            f"{'was' if len(untuned) == 1 else 'were'} not: what was tuned has an advantage."
        )
    budgets = dict.fromkeys(line.partition("; ")[0] for found in tuned.values() for line in found)
    if len(budgets) > 1:
        notes.append(f"The arms were tuned with unequal budgets ({listed(budgets)}): more trials are an advantage.")
    return notes
