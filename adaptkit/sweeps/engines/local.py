"""The engine `local`: trials run in this process, or in several processes of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from adaptkit.contracts import Engine, TrialRunner
    from adaptkit.plugins.manager import Plugins
    from adaptkit.sweeps.engines.worker import Work


class Local:
    """Run trials in this process, or with --jobs N in N processes of this machine."""

    name: ClassVar[str] = "local"

    def check(self, *, jobs: int | None, device: str, plugins: Plugins) -> None:
        """Raise BadInput if a plugin cannot be loaded by the other processes."""
        if (jobs or 1) > 1:
            plugins.require_files(f"--jobs {jobs}")

    def start(self, work: Work) -> AbstractContextManager[TrialRunner]:
        """Run trials in this process where one runs at a time, else in processes that share the cores."""
        from adaptkit.sweeps.engines.inline import InlineEngine
        from adaptkit.sweeps.engines.processes import ProcessEngine
        from adaptkit.system.hardware import usable_cores

        jobs = work.jobs or 1
        if jobs == 1:
            return InlineEngine(work.worker())
        return ProcessEngine(work, jobs, max(1, usable_cores() // jobs))


@hookimpl
def adaptkit_engines() -> list[type[Engine]]:
    """Offer the engine `local`."""
    return [Local]
