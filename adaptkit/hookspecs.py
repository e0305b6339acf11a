"""Define the hooks of adaptkit: hooks named by nouns add plugins, hooks named by past tenses are events of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.contracts import Backbone, Dataset, Engine, Metric, Reader, Shift, Strategy
    from adaptkit.events import Epoch, RunResult, RunStart

#: increased when a hook or a contract changes; a plugin may set `API_VERSION` to the version that it needs
API_VERSION = 1

hookspec = pluggy.HookspecMarker("adaptkit")
hookimpl = pluggy.HookimplMarker("adaptkit")


@hookspec
def adaptkit_strategies() -> list[type[Strategy]]:
    """Return strategy classes to add."""


@hookspec
def adaptkit_backbones() -> list[type[Backbone]]:
    """Return backbone classes to add."""


@hookspec
def adaptkit_datasets() -> list[type[Dataset]]:
    """Return data set classes to add."""


@hookspec
def adaptkit_readers() -> list[type[Reader]]:
    """Return reader classes to add. Readers decode the image files of `folder:PATH` and `table:FILE`."""


@hookspec
def adaptkit_shifts() -> list[type[Shift]]:
    """Return shift classes to add."""


@hookspec
def adaptkit_metrics() -> list[type[Metric]]:
    """Return metric classes to add. Metrics score the predictions of every run."""


@hookspec
def adaptkit_engines() -> list[type[Engine]]:
    """Return engine classes to add. Engines run the trials of sweeps and tunings."""


@hookspec
def adaptkit_run_started(run: RunStart, model: nn.Module) -> None:
    """Receive the start of a run, before its first batch."""


@hookspec
def adaptkit_epoch_ended(run: RunStart, epoch: Epoch) -> None:
    """Receive the results of an epoch, after its evaluation."""


@hookspec
def adaptkit_run_ended(run: RunStart, result: RunResult, model: nn.Module) -> None:
    """Receive the result of a run that has finished."""


@hookspec
def adaptkit_run_failed(run: RunStart, error: BaseException) -> None:
    """Receive the error of a run that has stopped.

    An expected error (`adaptkit.errors.AdaptkitError`) ends only this run. Any other error is raised again.
    """
