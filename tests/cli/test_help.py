"""`--help`: each command starts with an example, and shared options have one text."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import adaptkit.cli
from adaptkit.cli import COMMANDS, main
from adaptkit.cli.tune import SEEDS


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command and subcommand with its name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{prefix}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} ")


ALL = dict(commands(main))


@pytest.mark.parametrize("name", ALL)
def test_help_starts_with_an_example(name: str) -> None:
    summary, example, *_ = inspect.cleandoc(ALL[name].help or "").split("\n\n")
    assert "\n" not in summary and summary.endswith(".")
    assert example.startswith(("\b\nExample: adaptkit ", "\b\nExamples:\n  adaptkit "))
    assert f"adaptkit {name}" in example


def test_overview_has_the_first_line_of_each_help() -> None:
    assert {name: summary for name, (_, summary) in COMMANDS.items()} == {
        name: (ALL[name].help or "").split("\n\n")[0] for name in COMMANDS
    }


@pytest.mark.parametrize(
    "option", ["--tracking-uri", "--json", "--quiet", "--traceback", "--plugin", "--no-feature-cache"]
)
def test_a_shared_option_is_written_once(option: str) -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(adaptkit.cli.__file__).parent.rglob("*.py")]
    assert sum(text.count(f'"{option}",') for text in sources) == 1
    texts = {param.help for command in ALL.values() for param in command.params if option in param.opts}  # type: ignore[attr-defined]
    assert len(texts) == 1


def test_default_seeds() -> None:
    from adaptkit.api.tune import FRESH_SEEDS
    from adaptkit.settings.settings import parse_seeds

    runner = CliRunner()
    assert parse_seeds(SEEDS) == list(FRESH_SEEDS)
    for name, default in (("run", "0"), ("sweep", "0"), ("tune", SEEDS)):
        lines = runner.invoke(main, [name, "--help"], terminal_width=200).stdout.splitlines()
        (option,) = (line for line in lines if line.strip().startswith("--seeds"))
        (setting,) = (line for line in lines if line.strip().startswith("seed "))
        assert option.endswith(f"[default: {default}]") and setting.endswith(f"[default: {default}]")


def test_json_is_printed_by_one_function() -> None:
    uses = {
        path.name: path.read_text(encoding="utf-8").count("json.dumps")
        for path in Path(adaptkit.cli.__file__).parent.rglob("*.py")
    }
    # `predict` prints one prediction at a time.
    assert {name: count for name, count in uses.items() if count} == {"console.py": 1, "predictions.py": 2}
