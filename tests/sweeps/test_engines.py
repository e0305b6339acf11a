"""Engines: selected by name, configured with options, and checked before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import Result
from support.experiments import TINY, TINY_SETTINGS

import adaptkit
from adaptkit import BadInput, hookimpl
from adaptkit.contracts import TrialRunner
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import Plugins
from adaptkit.sweeps.engines.engine import store_notices
from adaptkit.sweeps.engines.tasks import Ended, EngineSettings, Task, Tell
from adaptkit.sweeps.engines.worker import Work, Worker
from adaptkit.tracking.store import open_store

Cli = Callable[..., Result]

#: the calls that the engine has received
CALLS: list[object] = []


class Backwards:
    """Run all tasks in this process, the last one first."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def run(self, tasks: Iterable[Task], tell: Tell) -> Iterator[Ended]:
        for task in reversed(list(tasks)):
            CALLS.append(task.number)
            yield Ended(task, self.worker.perform(task, tell))


@dataclass(frozen=True)
class Reversed:
    """Run trials in reverse order."""

    name: ClassVar[str] = "reversed"

    size: int = field(default=1, metadata={"help": "a number"})

    def check(self, *, jobs: int | None, device: str, plugins: Plugins) -> None:
        CALLS.append(("check", self.size, jobs, device))
        if self.size > 100:
            raise BadInput(f"reversed.size: {self.size} is too large")

    @contextmanager
    def connect(self) -> Iterator[Sequence[str]]:
        CALLS.append("connect")
        yield ["elsewhere"]
        CALLS.append("disconnect")

    @contextmanager
    def start(self, work: Work) -> Iterator[TrialRunner]:
        CALLS.append(("start", work.jobs))
        yield Backwards(work.worker())
        CALLS.append("stop")


class Absent(Reversed):
    """An engine whose package is not installed."""

    name = "absent"
    unavailable = "it needs a package: pip install package"


class Offering:
    """A plugin with two engines."""

    @hookimpl
    def adaptkit_engines(self) -> list[type]:
        return [Reversed, Absent]


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@pytest.mark.slow
def test_engine_of_a_plugin(store: Path) -> None:
    outcome = adaptkit.sweep(
        "head",
        grid={"lr": [0.001, 0.01]},
        engine="reversed",
        engine_options={"size": "7"},
        jobs=3,
        settings=TINY_SETTINGS,
        plugins=[Offering()],
        device="cpu",
    )
    assert [trial.status for trial in outcome.trials] == ["finished", "finished"]
    assert CALLS == [("check", 7, 3, "cpu"), "connect", ("start", 3), 2, 1, "stop", "disconnect"]


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("reversd", {}, "unknown engine 'reversd'; did you mean 'reversed'?"),
        ("reversed", {"sise": 1}, "unknown option 'reversed.sise'; did you mean 'size'?"),
        ("reversed", {"size": "much"}, "reversed.size: must be a whole number, not 'much'"),
        ("reversed", {"size": 101}, "reversed.size: 101 is too large"),
        ("absent", {}, "engine absent cannot be used: it needs a package: pip install package"),
        ("local", {"size": 1}, "unknown option 'local.size'; local has no options"),
    ],
)
@pytest.mark.parametrize("command", [adaptkit.sweep, adaptkit.tune])
def test_refused_before_training(
    own_folder: Path, command: Callable[..., Any], name: str, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(BadInput) as caught:
        command("head", engine=name, engine_options=options, settings=TINY_SETTINGS, plugins=[Offering()])
    assert caught.value.problems == (line,)
    assert list(own_folder.iterdir()) == []


def test_ray_without_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTKIT_ENTRY_POINTS", "0")
    with pytest.raises(BadInput, match=r"unknown engine 'ray'; it is a plugin: pip install \./plugins/ray"):
        EngineSettings("ray").make(load_plugins())


def test_processes_cannot_load_an_object() -> None:
    plugins = load_plugins(objects=[Offering()])
    assert EngineSettings("local", 1).make(plugins)
    with pytest.raises(
        BadInput, match=r"^--jobs 2: .* is a Python object of this process; use one job, or a plugin file$"
    ):
        EngineSettings("local", 2).make(plugins)


def test_notice_of_a_store_that_is_a_file(store: Path) -> None:
    opened = open_store(f"sqlite:///{store}", "adaptkit")
    assert store_notices(opened, []) == ()
    (line,) = store_notices(opened, ["a", "b"])
    assert line.startswith("the tracking store is a file on this machine, but trials also run on a, b:")


@pytest.mark.parametrize("command", ["sweep", "tune"])
def test_engine_option_needs_a_value(cli: Cli, command: str) -> None:
    result = cli(command, "-s", "head", *TINY, "--engine-option", "size")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: --engine-option size: write key=value\n"
