"""Group runs into comparisons and arms.

Runs are compared if they share the data, the base and the number of labelled images. Runs that also share strategy,
options and training settings are replicates of one arm.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adaptkit.comparison.findings import LeftOut
from adaptkit.comparison.records import ComparedRun
from adaptkit.names import BASE_FINGERPRINT_TAG, DATA_FINGERPRINT_TAG, TUNED_VALUES_TAG
from adaptkit.settings.identity import training_settings


@dataclass(frozen=True)
class ArmRuns:
    """Finished runs of one arm, one for each seed."""

    name: str
    slug: str
    strategy: str
    options: Mapping[str, str]
    settings: Mapping[str, str]
    runs: tuple[ComparedRun, ...]


@dataclass(frozen=True)
class RunGroup:
    """Arms that can be compared. `reason` explains how they differ from other groups; None if there is one group."""

    arms: tuple[ArmRuns, ...]
    left_out: tuple[LeftOut, ...]
    reason: str | None


def group_runs(runs: Iterable[ComparedRun]) -> tuple[tuple[RunGroup, ...], tuple[LeftOut, ...]]:
    """Return the groups of comparable runs, the largest first, and the runs that are not in a group."""
    by_key: dict[tuple[str, str, str, bool], list[ComparedRun]] = defaultdict(list)
    for run in runs:
        by_key[comparable_key(run)].append(run)
    ungrouped: list[LeftOut] = []
    grouped: list[tuple[list[ComparedRun], list[LeftOut]]] = []
    for members in by_key.values():
        finished, left_out = _finished(members)
        if finished:
            grouped.append((finished, left_out))
        else:
            ungrouped.extend(left_out)
    grouped.sort(key=lambda pair: -len(pair[0]))
    reasons = _reasons([finished for finished, _ in grouped])
    groups = [
        RunGroup(_arms(finished), tuple(left_out), reason)
        for (finished, left_out), reason in zip(grouped, reasons, strict=True)
    ]
    return tuple(groups), tuple(ungrouped)


def comparable_key(run: ComparedRun) -> tuple[str, str, str, bool]:
    """Return what runs must share to be compared."""
    tags = run.tags
    return (
        tags.get(DATA_FINGERPRINT_TAG, ""),
        tags.get(BASE_FINGERPRINT_TAG, ""),
        run.settings.get("shots", ""),
        run.has_source,
    )


def _finished(runs: Sequence[ComparedRun]) -> tuple[list[ComparedRun], list[LeftOut]]:
    """Return the latest finished run of each arm and seed, and the runs that are left out with the reason."""
    latest: dict[object, ComparedRun] = {}
    left_out: list[LeftOut] = []
    for run in sorted(runs, key=lambda run: run.started):
        if run.status != "finished":
            left_out.append(
                LeftOut(name=run.name, run_id=run.run_id, status=run.status, reason=run.reason or run.status)
            )
            continue
        key = (_arm_key(run), run.seed)
        if key in latest:
            earlier = latest[key]
            reason = "repeated later with the same strategy, options and seed"
            left_out.append(LeftOut(name=earlier.name, run_id=earlier.run_id, status="superseded", reason=reason))
        latest[key] = run
    return list(latest.values()), left_out


def _arm_key(run: ComparedRun) -> tuple[str, tuple[tuple[str, str], ...]]:
    options = {f"strategy.{key}": value for key, value in run.options.items()} | training_settings(run.settings)
    return run.strategy, tuple(sorted(options.items()))


def _arms(runs: Sequence[ComparedRun]) -> tuple[ArmRuns, ...]:
    by_key: dict[object, list[ComparedRun]] = defaultdict(list)
    for run in runs:
        by_key[_arm_key(run)].append(run)
    groups = [sorted(members, key=lambda run: run.seed) for members in by_key.values()]
    names = _names([members[0] for members in groups])
    slugs = make_slugs(names)
    return tuple(
        ArmRuns(
            name=name,
            slug=slug,
            strategy=members[0].strategy,
            options=members[0].options,
            settings=training_settings(members[0].settings),
            runs=tuple(members),
        )
        for name, slug, members in zip(names, slugs, groups, strict=True)
    )


def _names(first_runs: Sequence[ComparedRun]) -> list[str]:
    """Name each arm by its strategy and the options in which it differs from the strategy's other arms.

    The only arm of a strategy has the name of its runs, which contains the options that differ from their defaults.
    """
    names = []
    for run in first_runs:
        siblings = [other for other in first_runs if other.strategy == run.strategy]
        if len(siblings) == 1:
            names.append(run.arm)
            continue
        options = dict(run.options) | training_settings(run.settings)
        others = [dict(other.options) | training_settings(other.settings) for other in siblings]
        order = [*sorted(run.options), *sorted(training_settings(run.settings))]
        keys = [key for key in order if any(other.get(key) != options[key] for other in others)]
        chosen = _chosen_inside(run)
        keys = [key for key in keys if key not in chosen]  # each fit has its own value
        if "tuning.trials" in keys:  # the number of trials is enough: arms that are not tuned have no ranges
            keys = [key for key in keys if key != "tuning.space"]
        names.append(" ".join([run.strategy, *(f"{key}={_short(options[key])}" for key in keys)]))
    repeated = {name for name, count in Counter(names).items() if count > 1}
    numbers: Counter[str] = Counter()
    for index, name in enumerate(names):
        if name in repeated:  # another version of the strategy has other options
            numbers[name] += 1
            names[index] = f"{name} ({numbers[name]})"
    return names


def _chosen_inside(run: ComparedRun) -> set[str]:
    """Return the settings and options that the fits of a run chose themselves."""
    return {key for fit in json.loads(run.tags.get(TUNED_VALUES_TAG, "[]")) for key in fit}


def _short(value: str) -> str:
    return value.removesuffix(".0")


def make_slugs(names: Sequence[str]) -> list[str]:
    """Return unique names that MLflow accepts as part of a metric name; other characters become `_`."""
    slugs: list[str] = []
    for name in names:
        slug = re.sub(r"[^A-Za-z0-9_\-. :]", "_", name).strip() or "_"
        candidate, number = slug, 2
        while candidate.lower() in {taken.lower() for taken in slugs}:
            candidate, number = f"{slug}_{number}", number + 1
        slugs.append(candidate)
    return slugs


def _reasons(groups: Sequence[Sequence[ComparedRun]]) -> list[str | None]:
    """Return an explanation for each group of how it differs from the others; None if there is one group."""
    if len(groups) < 2:
        return [None] * len(groups)
    keys = [comparable_key(members[0]) for members in groups]
    words = []
    for members, (data, base, shots, has_source) in zip(groups, keys, strict=True):
        settings = members[0].settings
        parts = []
        if len({key[0] for key in keys}) > 1:
            names = [settings.get("dataset", "?"), settings.get("target", "none")]
            shown = " to ".join(name for name in names if name != "none")
            parts.append(f"data {data[:8] or 'unknown'} ({shown}, shift {settings.get('shift', '?')})")
        if len({key[1] for key in keys}) > 1:
            parts.append(f"base {base[:8] or 'unknown'} ({settings.get('backbone', '?')})")
        if len({key[2] for key in keys}) > 1:
            parts.append("all labels" if shots == "none" else f"{shots or '?'} labelled images per class")
        if len({key[3] for key in keys}) > 1:
            parts.append("a base trained on a source" if has_source else "no source")
        words.append("compared separately, because the runs differ in more than the strategy: " + ", ".join(parts))
    return list(words)
