"""Interrupt runs in their hooks, to resume them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import TINY_SETTINGS

import adaptkit
from adaptkit.errors import Interrupted
from adaptkit.tracking.tracker import Tracker

SETTINGS: dict[str, Any] = {**TINY_SETTINGS, "epochs": 3}

Cli = Callable[..., Result]

STEPPING = """
from adaptkit import hookimpl

class Stepping:
    name = "stepping"

    def adapt(self, model):
        self.seen = 0
        return list(model.head.parameters())

    def step_ended(self, model, step):
        self.seen += 1
        if self.seen % 3 == 0:
            model.head.bias.data.mul_(0.9)

@hookimpl
def adaptkit_strategies():
    return [Stepping]
"""


class Stop:
    """Interrupt the process once, before or after the tracker handles an event."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()

    def at(self, hook: str, *, after: bool, name: str = "", epoch: int = 0, error: BaseException | None = None) -> None:
        """Interrupt in a hook of the run whose name starts with `name`."""
        original, left = getattr(Tracker, hook), [error or Interrupted(15)]

        @functools.wraps(original)
        def stopping(tracker: Any, **given: Any) -> None:
            mine = (
                left and given["run"].name.startswith(name) and epoch in (0, getattr(given.get("epoch"), "number", 0))
            )
            if mine and not after:
                raise left.pop()
            original(tracker, **given)
            if mine:
                raise left.pop()

        # pluggy reads the parameters of a hook.
        wanted = {
            "adaptkit_run_started": lambda self, run, model: stopping(self, run=run, model=model),
            "adaptkit_epoch_ended": lambda self, run, epoch: stopping(self, run=run, epoch=epoch),
            "adaptkit_run_ended": lambda self, run, result, model: stopping(self, run=run, result=result, model=model),
        }[hook]
        self._patch.setattr(Tracker, hook, functools.wraps(original, assigned=())(wanted))

    def undo(self) -> None:
        """Stop interrupting."""
        self._patch.undo()


def interrupted(strategy: str | list[str] = "lora", settings: Mapping[str, Any] = SETTINGS, **more: Any) -> str:
    """Run until the interruption. Return the id of the run from the hint on how to resume."""
    with pytest.raises(KeyboardInterrupt) as caught:
        adaptkit.run(strategy, settings=settings, **more)
    (note,) = caught.value.__notes__
    command, _, run_id = note.rpartition(" ")
    assert command == "To resume:  adaptkit resume"
    return run_id


def undisturbed(strategy: str = "lora", settings: Mapping[str, Any] = SETTINGS, **more: Any) -> str:
    """Run without an interruption. Return the id of the run."""
    outcome = adaptkit.run(strategy, settings=settings, experiment="undisturbed", **more)
    assert outcome.runs[0].run_id is not None
    return outcome.runs[0].run_id


def refused(cli: Cli, *arguments: str) -> str:
    """Return the error of `adaptkit resume` with these arguments."""
    result = cli("resume", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return str(line)


def killed(uri: str, stop: Stop, **more: Any) -> str:
    """Return the id of a run as after SIGKILL: interrupted, but still recorded as running."""
    stop.at("adaptkit_epoch_ended", after=True, name="head", epoch=1)
    run_id = interrupted("head", **more)
    MlflowClient(uri).update_run(run_id, status="RUNNING")
    return run_id
