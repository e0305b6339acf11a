"""The hooks of adaptkit: plural nouns are collections one adds to, past tenses are events one watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.contracts import Backbone, Dataset, Engine, Shift, Strategy
    from adaptkit.events import Epoch, RunResult, RunStart

#: raised when a hook or a contract changes so that plugins may need the newer one: they say so by an `API_VERSION` too
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
def adaptkit_shifts() -> list[type[Shift]]:
    """Return shift classes to add."""


@hookspec
def adaptkit_engines() -> list[type[Engine]]:
    """Return engine classes to add: they run the trials of a sweep."""


@hookspec
def adaptkit_run_started(run: RunStart, model: nn.Module) -> None:
    """Watch a run that is about to train its first batch."""


@hookspec
def adaptkit_epoch_ended(run: RunStart, epoch: Epoch) -> None:
    """Watch one epoch that was trained and evaluated."""


@hookspec
def adaptkit_run_ended(run: RunStart, result: RunResult, model: nn.Module) -> None:
    """Watch a run that finished."""


@hookspec
def adaptkit_run_failed(run: RunStart, error: BaseException) -> None:
    """Watch a run that stopped early: an error that adaptkit expects ends this run alone, any other is raised again."""
