"""The commands, files and examples of the README exist and run."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.experiments import BITFIT, TINY

from adaptkit.cli import COMMANDS, main
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import resolve

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def test_first_two_shell_blocks() -> None:
    assert blocks("sh") == [
        "pip install -e . && adaptkit run --strategy lora\n",
        "pip install -e '.[test]' ./plugins/bitfit && pytest\n",
    ]


def test_bitfit_is_the_shipped_plugin() -> None:
    def without_docstrings(source: str) -> str:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:]
        return ast.unparse(tree)

    shown = next(block for block in blocks("python") if "BitFit" in block)
    assert without_docstrings(shown) == without_docstrings(BITFIT.read_text(encoding="utf-8"))
    assert len([line for line in shown.splitlines() if line]) <= 15


def test_commands_and_settings_are_valid() -> None:
    shown = [line.split("  ")[0] for line in blocks("")[-1].splitlines()]
    assert {line.split()[1] for line in shown} <= set(COMMANDS)
    plugins = load_plugins()
    for folder in ("PICTURES", "THESE", "THOSE"):
        Path(folder).mkdir()
    Path("LABELS.csv").touch()
    for line in (line for line in shown if line.startswith("adaptkit run") and "my.yaml" not in line):
        context = main.make_context("adaptkit", line.replace("DIR", "data").split()[1:], resilient_parsing=True)
        command = main.get_command(context, "run")
        assert command is not None
        with command.make_context("run", line.replace("DIR", "data").split()[2:]) as inner:
            values = inner.params
        from adaptkit.cli.options import collect_layers

        layers, problems = collect_layers(values)
        assert problems == [] and resolve(layers, plugins).arms


def test_links_exist() -> None:
    root = Path(__file__).parents[2]
    linked = re.findall(r"\]\(([^)h][^)]*)\)", README)
    assert linked and [name for name in linked if not (root / name).exists()] == []


def test_help_lists_all_commands() -> None:
    text = CliRunner().invoke(main, ["--help"], prog_name="adaptkit").stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.slow
def test_python_example_runs(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    (example,) = [block for block in blocks("python") if "adaptkit.run(" in block]
    exec(compile(example, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines[:6]] == [
        f"{label} {seed}" for seed in range(3) for label in ("head", "lora rank=4")
    ]
    assert lines[6].startswith("In target accuracy, ") and lines[-1].startswith(
        "This holds for this base, models trained on "
    )
    assert Path("report/report.html").exists()


def test_strategy_with_options_runs(tmp_path: Path) -> None:
    (example,) = [block for block in blocks("python") if "LastLayers" in block]
    path = tmp_path / "last_layers.py"
    path.write_text(example)
    arguments = ["run", "-s", "last-layers", "-o", "count=1", *TINY, "--no-track", "--json", "--plugin", str(path)]
    result = CliRunner().invoke(main, arguments)
    (run,) = json.loads(result.stdout)["runs"]
    assert (run["options"], run["metrics"]["params/trainable"]) == ({"count": 1}, 1290)
    refused = CliRunner().invoke(main, [*arguments, "-o", "count=0"])
    assert refused.stderr == "Error: last-layers.count: must be at least 1, not 0\n"
