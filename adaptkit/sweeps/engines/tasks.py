"""Records that a sweep and its workers exchange, and the settings of an engine. All of them can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptkit.errors import BadInput
from adaptkit.events import Epoch
from adaptkit.experiment.outcome import RunSummary
from adaptkit.plugins.components import make_checked

if TYPE_CHECKING:
    from adaptkit.contracts import Engine
    from adaptkit.plugins.manager import Plugins


@dataclass(frozen=True)
class EngineSettings:
    """The name of an engine, the number of parallel trials, and the options of the engine.

    If `jobs` is None, the engine decides: the engine `local` runs one trial at a time.
    """

    name: str = "local"
    jobs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, plugins: Plugins, device: str = "auto") -> Engine:
        """Return the engine; raise BadInput if it is unknown, has wrong options, or cannot run trials here."""
        if self.jobs is not None and self.jobs < 1:
            raise BadInput(f"--jobs: must be at least 1, not {self.jobs}")
        engine: Engine
        engine, _ = make_checked(self.name, plugins.find("engine", self.name).cls, self.options)
        if hasattr(engine, "check"):
            engine.check(jobs=self.jobs, device=device, plugins=plugins)
        return engine


@dataclass(frozen=True)
class Task:
    """One run of a sweep or a tuning: `params` are its settings, in the format of config.yaml.

    `kind` is adaptation or tuning. `stage` is an index into the shared inputs of the engine. `label` is the name of the
    run, with the settings that vary in the sweep. `tags` are additional tags of the run.
    """

    number: int
    kind: str
    stage: int
    params: Mapping[str, Any]
    label: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """A task has started."""

    task: Task


@dataclass(frozen=True)
class EpochEnded:
    """The run of a task has finished an epoch."""

    task: Task
    epoch: Epoch


@dataclass(frozen=True)
class Ended:
    """A task has ended: the status of the record is finished, or failed with an error."""

    task: Task
    record: RunSummary


Event = Started | EpochEnded
Tell = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Do nothing with an event."""
