"""Backbones and data sets with an argument in their name, and backbones with options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from support.experiments import TINY, TINY_SETTINGS
from support.plugin_files import write

import adaptkit
from adaptkit.errors import BadInput
from adaptkit.testing import checks, try_all

Cli = Callable[..., Result]

PLUGIN = """
    from dataclasses import dataclass, field
    from typing import Annotated, ClassVar
    from adaptkit import hookimpl
    from adaptkit.errors import BadInput
    from pydantic import Field

    @dataclass
    class Layers:
        "Some hidden layers."
        name: ClassVar[str] = "layers"
        argument: ClassVar[str] = "COUNT"

        count: int
        width: Annotated[int, Field(ge=1)] = field(default=16, metadata={"help": "units of a layer"})

        def build(self, channels, size, classes):
            from torch import nn
            widths = [channels * size * size, *[self.width] * self.count]
            hidden = [layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
            return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], classes))

        def described(self, channels, size):
            return {"input_size": size}

    class Bars:
        "Bars in some number of positions."
        name = "bars"
        argument = "POSITIONS"

        def __init__(self, positions):
            if not positions.isdigit():
                raise BadInput(f"data set bars: {positions!r} is not a number of positions")
            self.positions = int(positions)

        def load(self, data_dir):
            import torch
            from adaptkit.contracts import Corpus, Images
            labels = torch.arange(400) % self.positions
            pixels = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
            pixels[torch.arange(400), 0, labels] = 255
            return Corpus(Images(pixels, labels, tuple("abcdefgh"[:self.positions])))

    @hookimpl
    def adaptkit_backbones(): return [Layers]

    @hookimpl
    def adaptkit_datasets(): return [Bars]
"""


@pytest.fixture
def plugin(own_folder: Path) -> str:
    return str(write(own_folder / "mine.py", PLUGIN))


@pytest.mark.slow
def test_argument_and_options_in_model_params_and_config(cli: Cli, own_folder: Path, store: Path, plugin: str) -> None:
    chosen = ("--backbone", "layers:2", "--set", "backbone.width=8", "--dataset", "bars:3", "--plugin", plugin)
    outcome = json.loads(cli("run", "-s", "head", *chosen, *TINY, "--json").stdout)
    (run,) = outcome["runs"]
    assert run["metrics"]["params/total"] == (64 * 8 + 8) + (8 * 8 + 8) + (8 * 3 + 3)
    import mlflow

    params = mlflow.get_run(run["run_id"]).data.params
    assert (params["backbone"], params["backbone.width"], params["backbone.input_size"]) == ("layers:2", "8", "8")
    (config,) = own_folder.glob(f"mlruns/*/{run['run_id']}/artifacts/config.yaml")
    assert "input_size" not in config.read_text()
    again = json.loads(cli("run", "--config", str(config), "--plugin", plugin, "--no-track", "--json").stdout)
    assert (
        again["base"]["cached"]
        and again["runs"][0]["metrics"]["final/shifted_accuracy"] == (run["metrics"]["final/shifted_accuracy"])
    )


def test_option_changes_the_base(plugin: str) -> None:
    def fingerprint(width: int) -> str:
        settings = TINY_SETTINGS | {"backbone": "layers:1", "backbone.width": width}
        return adaptkit.run("head", settings=settings, plugins=[plugin], track=False).base.fingerprint

    assert fingerprint(8) != fingerprint(9)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--backbone", "layers"], "backbone layers needs an argument after a colon: layers:COUNT"),
        (["--backbone", "layers:"], "backbone layers needs an argument after a colon: layers:COUNT"),
        (["--backbone", "layers:two"], "layers:two.count: must be a whole number, not 'two'"),
        (["--backbone", "small_cnn:2"], "backbone small_cnn takes no argument after a colon, got 'small_cnn:2'"),
        (["--backbone", "layer:2"], "unknown backbone 'layer'; did you mean 'layers'?"),
        (["--dataset", "bars:many"], "data set bars: 'many' is not a number of positions"),
        (["--backbone", "layers:1", "--set", "backbone.width=0"], "backbone.width: must be at least 1, not 0"),
        (
            ["--backbone", "layers:1", "--set", "backbone.wdth=2"],
            "unknown option 'backbone.wdth'; did you mean 'width'?",
        ),
        (["--set", "backbone.width=2"], "unknown option 'backbone.width'; small_cnn has no options"),
    ],
)
def test_wrong_arguments(cli: Cli, plugin: str, arguments: list[str], line: str) -> None:
    result = cli("run", "-s", "head", *arguments, "--plugin", plugin)
    assert (result.exit_code, result.stderr) == (2, f"Error: {line}\n")


def test_listing_and_check_with_argument(cli: Cli, plugin: str) -> None:
    assert "layers:COUNT" in cli("backbones", "--plugin", plugin).stdout
    detail = cli("backbones", "layers", "--plugin", plugin).stdout
    assert "--set backbone.width=16" in detail and "units of a layer" in detail
    assert cli("plugins", "check", "layers:2", "--plugin", plugin).exit_code == 0
    lacking = cli("plugins", "check", "layers", "--plugin", plugin)
    assert lacking.stderr == "Error: backbone layers needs an argument after a colon: layers:COUNT\n"


def test_conformance_kit_with_argument() -> None:
    class Wide:
        name = "wide"
        argument = "WIDTH"

        def __init__(self, width: str) -> None:
            self.width = int(width)

        def build(self, channels: int, size: int, classes: int) -> object:
            from torch import nn

            inputs = channels * size * size
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, self.width), nn.ReLU(), nn.Linear(self.width, classes))

    assert [verdict for verdict in try_all(checks(Wide, argument="7")) if verdict.word == "failed"] == []
    with pytest.raises(BadInput, match="needs an argument after a colon: wide:WIDTH"):
        checks(Wide)


def test_argument_without_the_name_before_it(cli: Cli, own_folder: Path) -> None:
    path = write(own_folder / "layers.py", PLUGIN)
    (own_folder / "12").mkdir()
    for arguments, problem in (
        (("--backbone", "resnet18"), "unknown backbone 'resnet18'; did you mean 'torchvision:resnet18'?"),
        (("--target", "8"), "unknown data set '8'; did you mean 'bars:8'?"),
        (("--target", "12"), "unknown data set '12'; did you mean 'bars:12' or 'folder:12'?"),
        (("--backbone", "smal_cnn"), "unknown backbone 'smal_cnn'; did you mean 'small_cnn'?"),
    ):
        result = cli("run", "-s", "head", "--plugin", str(path), "--no-track", *arguments)
        assert (result.exit_code, result.stderr) == (2, f"Error: {problem}\n")


def test_unusable_names_are_not_listed(cli: Cli, own_folder: Path) -> None:
    plugin = """
        from adaptkit import hookimpl

        class Gone:
            "Needs a package."
            name = "gone"
            unavailable = "it needs a package"
            def adapt(self, model):
                return []

        @hookimpl
        def adaptkit_strategies():
            return [Gone]
    """
    path = str(write(own_folder / "gone.py", plugin))
    for arguments in ((), ("-s", "qqqq"), ("-s", "gon")):
        result = cli("run", *arguments, "--plugin", path, "--no-track")
        assert result.exit_code == 2 and "gone" not in result.stderr.replace("'gon'", ""), result.stderr
    result = cli("run", "-s", "gone", "--plugin", path, "--no-track")
    assert result.stderr == "Error: strategy gone cannot be used: it needs a package\n"
