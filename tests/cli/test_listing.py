"""`adaptkit strategies`, `backbones`, `datasets`, `shifts` and `engines`: one line for each, details for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from support.plugin_files import PLUGIN, install, write

from adaptkit.cli.listing import MOST_LISTED

Cli = Callable[..., Result]

#: a plugin with one strategy more than a listing shows
LARGE = f"""
from adaptkit import hookimpl

def adapt(self, model):
    return [model.head.bias]

@hookimpl
def adaptkit_strategies():
    names = [f"many-{{number}}" for number in range({MOST_LISTED + 1})]
    return [type("Many", (), {{"__doc__": "Train the bias.", "name": name, "adapt": adapt}}) for name in names]
"""


def test_groups(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_folder, "thirdparty_good", PLUGIN, monkeypatch)
    path = write(own_folder / "mine.py", PLUGIN.replace("last-bias", "my-bias"))
    lines = [line.rstrip() for line in cli("strategies", "--plugin", str(path)).stdout.splitlines()]
    titles = [line for line in lines[:-1] if line and not line.startswith(" ")]
    assert titles == ["built-in", "thirdparty_good 1.2", str(path)]
    assert lines[lines.index("thirdparty_good 1.2") + 1] == "  last-bias  Train the bias of the head."
    assert lines[1].startswith("  adapter    Train ")
    assert lines[-1] == "Show the options of one: adaptkit strategies NAME"


def test_large_plugin_is_one_line_without_all(cli: Cli, own_folder: Path) -> None:
    path = str(write(own_folder / "mine.py", LARGE))
    count = MOST_LISTED + 1
    listed = cli("strategies", "--plugin", path).stdout
    lines = [" ".join(line.split()) for line in listed.splitlines()]
    assert f"many-* {count} strategies; list them with adaptkit strategies --all" in lines
    assert "many-0" not in listed
    assert cli("strategies", "--all", "--plugin", path).stdout.count("many-") == count
    assert len(json.loads(cli("strategies", "--json", "--plugin", path).stdout)) > count


def test_details_of_a_strategy(cli: Cli) -> None:
    text = cli("strategies", "lora").stdout
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.strip()}
    assert text.startswith("lora  built-in\n")
    assert "Default learning rate: 0.005 (plain), 0.001 (batch_norm), 0.001 (transformer)" in text
    assert rows["rank"] == "whole number, 1 or more 8 rank of the update"
    assert rows["dropout"].startswith("number, 0 or more and below 1 0 ")
    assert rows["dora"].startswith("true or false false ")
    assert rows["bias"].startswith("none, lora_only or all none ")
    assert rows["Usage:"] == "adaptkit run -s lora -o rank=8"


def test_shifts_have_units(cli: Cli) -> None:
    assert "  rotate=DEGREES  " in cli("shifts").stdout
    assert "  noise=SIGMA  " in cli("shifts").stdout
    assert "  blur=SIGMA  " in " ".join(cli("shifts").stdout.split("\n"))
    rotate = cli("shifts", "rotate").stdout
    assert "number, 0 to 180" in rotate and "in degrees" in rotate
    assert "largest standard deviation (sigma), in pixels" in cli("shifts", "blur").stdout


def test_details_of_other_kinds(cli: Cli) -> None:
    assert "backbone.weights=default" in cli("backbones", "torchvision:resnet18").stdout
    assert "Usage: adaptkit run -s lora --dataset digits\n" in cli("datasets", "digits").stdout
    assert cli("engines", "local").stdout.startswith("local  built-in\n")


def test_json_of_one(cli: Cli) -> None:
    (lora,) = json.loads(cli("strategies", "lora", "--json").stdout)
    assert lora in json.loads(cli("strategies", "--json").stdout)


def test_unknown_name(cli: Cli) -> None:
    result = cli("strategies", "lroa")
    assert (result.exit_code, result.stderr) == (2, "Error: unknown strategy 'lroa'; did you mean 'lora'?\n")
