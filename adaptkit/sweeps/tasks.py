"""What travels between a sweep and whoever runs its trials: plain records that can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptkit.contracts import Epoch
from adaptkit.outcome import RunRecord


@dataclass(frozen=True)
class Task:
    """One run to be made: `params` are settings of one strategy and one seed, as a run's config.yaml holds them.

    `kind` is adaptation or tuning; `stage` counts the materials that the engine was given; `label` names the run, with
    settings that others of its sweep have otherwise; `tags` are more tags of the run.
    """

    number: int
    kind: str
    stage: int
    params: Mapping[str, Any]
    label: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """A task has begun."""

    task: Task


@dataclass(frozen=True)
class EpochEnded:
    """A task's run has finished an epoch."""

    task: Task
    epoch: Epoch


@dataclass(frozen=True)
class Ended:
    """A task has ended: the record's status is finished or failed, and then it says why."""

    task: Task
    record: RunRecord


Event = Started | EpochEnded
Tell = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Hear an event and do nothing."""
