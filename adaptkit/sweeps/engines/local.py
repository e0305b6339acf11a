"""The engine `local`: run trials in this process, or in several processes on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from adaptkit.contracts import Engine, TrialRunner
    from adaptkit.plugins.manager import Plugins
    from adaptkit.sweeps.engines.worker import Work


class Local:
    """Run trials in this process, or in N processes with --jobs N."""

    name: ClassVar[str] = "local"

    def check(self, *, jobs: int | None, device: str, plugins: Plugins) -> None:
        """Raise BadInput if other processes cannot load a plugin."""
        if (jobs or 1) > 1:
            plugins.require_files(f"--jobs {jobs}")

    def start(self, work: Work) -> AbstractContextManager[TrialRunner]:
        """Start the workers: this process for one job, otherwise several processes that share the cores."""
        from adaptkit.sweeps.engines.inline import InlineEngine
        from adaptkit.sweeps.engines.processes import ProcessEngine
        from adaptkit.system.hardware import usable_cores

        jobs = work.jobs or 1
        if jobs == 1:
            return InlineEngine(work.worker())
        return ProcessEngine(work, jobs, max(1, usable_cores() // jobs))


@hookimpl
def adaptkit_engines() -> list[type[Engine]]:
    """Return the engine `local`."""
    return [Local]
