"""docs/plugins.md documents every hook, and its examples run with the command below them."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from click.testing import Result
from support.experiments import TINY

from adaptkit import hookspecs

Cli = Callable[..., Result]

TEXT = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
#: a Python block with the shell block that follows it
EXAMPLES = [
    (match[1], shlex.split(match[2]))
    for match in re.finditer(r"^```python\n(.*?)^```\n\n```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
]
HOOKS = [name for name in vars(hookspecs) if name.startswith("adaptkit_")]


def file_of(command: list[str]) -> str:
    return command[command.index("--plugin") + 1]


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_are_documented(hook: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"| `{hook}{signature}` |" in TEXT
    assert any(f"@hookimpl\ndef {hook}(" in code for code, _ in EXAMPLES)


def make_grids(folder: Path) -> None:
    """Write text files with grids of numbers, for the example of a reader."""
    for number in range(20):
        path = folder / ("bright", "dark")[number % 2] / f"{number}.grid"
        path.parent.mkdir(parents=True, exist_ok=True)
        numpy.savetxt(path, numpy.random.default_rng(number).random((16, 16)) + number % 2)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "command"), EXAMPLES, ids=[file_of(command) for _, command in EXAMPLES])
def test_examples_run(cli: Cli, own_folder: Path, store: Path, code: str, command: list[str]) -> None:
    Path(file_of(command)).write_text(code)
    make_grids(own_folder / "grids")
    assert command[:2] in (["adaptkit", "run"], ["adaptkit", "sweep"])
    result = cli(*command[1:], *TINY, "-q")
    assert (result.exit_code, "Error" in result.stderr) == (0, False), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "command"),
    [(code, command) for code, command in EXAMPLES if file_of(command) != "moved.py"],
    ids=[file_of(command) for _, command in EXAMPLES if file_of(command) != "moved.py"],
)
def test_examples_pass_the_conformance_kit(cli: Cli, own_folder: Path, code: str, command: list[str]) -> None:
    Path(file_of(command)).write_text(code)
    result = cli("plugins", "check", file_of(command))
    assert result.exit_code == 0, result.stdout


def test_each_kind_has_an_example() -> None:
    assert [file_of(command) for _, command in EXAMPLES] == [
        "first_and_head.py",
        "scaled_head.py",
        "ridge_head.py",
        "head_first.py",
        "focal.py",
        "distilled.py",
        "mixup.py",
        "perceptron.py",
        "parity.py",
        "grid.py",
        "rain.py",
        "true_share.py",
        "pausing.py",
        "moved.py",
    ]
