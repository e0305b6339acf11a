"""What travels between a sweep and whoever runs its trials: plain records that can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptkit.errors import BadInput
from adaptkit.events import Epoch
from adaptkit.experiment.outcome import RunSummary
from adaptkit.plugins.offers import make_checked

if TYPE_CHECKING:
    from adaptkit.contracts import Engine
    from adaptkit.plugins.manager import Plugins


@dataclass(frozen=True)
class Setting:
    """Which engine runs the trials, how many run at a time, and the engine's own options.

    Without `jobs` the engine decides: the local one runs one trial at a time.
    """

    name: str = "local"
    jobs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, plugins: Plugins, device: str = "auto") -> Engine:
        """Return the engine; raise BadInput for an unknown one, wrong options, or one that cannot run trials here."""
        if self.jobs is not None and self.jobs < 1:
            raise BadInput(f"--jobs: must be at least 1, not {self.jobs}")
        engine: Engine
        engine, _ = make_checked(self.name, plugins.find("engine", self.name).cls, self.options)
        if hasattr(engine, "check"):
            engine.check(jobs=self.jobs, device=device, plugins=plugins)
        return engine


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
    record: RunSummary


Event = Started | EpochEnded
Tell = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Hear an event and do nothing."""
