"""Choose the engine that runs the trials of a sweep, and check it before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptkit.errors import BadInput
from adaptkit.instances import make_checked

if TYPE_CHECKING:
    from adaptkit.contracts import Engine
    from adaptkit.plugins import Plugins
    from adaptkit.tracking.store import Store


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


def connected(engine: Engine) -> AbstractContextManager[Sequence[str]]:
    """Connect an engine to its machines during a block, which receives the names of those that are not this one."""
    connection: AbstractContextManager[Sequence[str]] = (
        engine.connect() if hasattr(engine, "connect") else nullcontext(())
    )
    return connection


def store_notices(store: Store, machines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines that tell the user of a tracking store that these other machines may not reach."""
    if not machines or not store.uri.startswith("sqlite"):
        return ()
    return (
        f"the tracking store is a file on this machine, but trials also run on {', '.join(machines)}: share its folder "
        "with them, or use an MLflow server (--tracking-uri http://HOST:PORT)",
    )
