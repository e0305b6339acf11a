"""Find for each cost which arms are dominated: a cheaper one is better, or as good."""

from __future__ import annotations

from collections.abc import Sequence

from adaptkit.comparison import COSTS, ArmResult, PairResult
from adaptkit.reports.pairs import shared_runs
from adaptkit.reports.statistics import paired_t

#: costs that differ from run to run: cheaper is then a matter of their interval too
NOISY = ("time/train_seconds", "time/inference_ratio")


def dominators(
    arms: Sequence[ArmResult], pairs: Sequence[PairResult], *, timings_comparable: bool
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return for each arm and cost the arms that are cheaper and better or tied; an unclear pair decides nothing."""
    by_name = {arm.name: arm for arm in arms}
    found: dict[str, dict[str, list[str]]] = {arm.name: {cost: [] for cost in COSTS} for arm in arms}
    for pair in pairs:
        directions = {"better": [(pair.a, pair.b)], "worse": [(pair.b, pair.a)]}
        directions["tie"] = directions["better"] + directions["worse"]
        for winner, loser in directions.get(pair.verdict, []):
            for cost in COSTS:
                if cost == "time/train_seconds" and not timings_comparable:
                    continue
                if cheaper(by_name[winner], by_name[loser], cost):
                    found[loser][cost].append(winner)
    return {name: {cost: tuple(names) for cost, names in costs.items()} for name, costs in found.items()}


def cheaper(a: ArmResult, b: ArmResult, cost: str) -> bool:
    """Tell whether `a` costs less than `b`: for measured times, only if the paired 95 % interval says so."""
    if cost not in NOISY:
        return a.cost(cost).mean < b.cost(cost).mean
    if a.cost(cost).mean >= b.cost(cost).mean:
        return False
    differences = [one.metrics[cost] - other.metrics[cost] for one, other in shared_runs(a, b)]
    return len(differences) > 1 and bool(paired_t(differences).high < 0)
