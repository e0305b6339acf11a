"""Errors in the code of plugins: one message with the place, and other runs continue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from support.experiments import TINY

import adaptkit

Cli = Callable[..., Result]

STRATEGY = """
from torch import nn
from adaptkit import hookimpl

class Scaled(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.scale = base_layer, nn.Parameter(base_layer.weight.new_ones(()))

    def forward(self, x):
        return self.base_layer(x) * self.scale

class Odd:
    name = "odd"

    def adapt(self, model):
        model.classifier[3] = Scaled(model.classifier[3])
        return [model.classifier[3].scale]

    def step_ended(self, model, step):
        pass

    def merge(self, model):
        scaled = model.classifier[3]
        scaled.base_layer.weight.data *= scaled.scale.data
        scaled.base_layer.bias.data *= scaled.scale.data
        model.classifier[3] = scaled.base_layer

@hookimpl
def adaptkit_strategies():
    return [Odd]
"""


def plugin(folder: Path, old: str, new: str, text: str = STRATEGY) -> tuple[str, int]:
    """Write the plugin with one change; return its path and the line number of the change."""
    assert text.count(old) == 1
    changed = text.replace(old, new)
    path = folder / "odd.py"
    path.write_text(changed)
    return str(path), changed[: changed.index(new)].count("\n") + 1


def test_correct_plugin(cli: Cli, own_folder: Path) -> None:
    path, _ = plugin(own_folder, "pass", "pass")
    assert cli("run", "-s", "odd", *TINY, "--no-track", "-q", "--plugin", path).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("pass", "raise ValueError('no')", "strategy odd fails in step_ended(): ValueError: no ({place})"),
        (
            "pass",
            "model.classifier[1].weight.data = model.classifier[1].weight.data[0, :3]",
            "strategy odd fails: ",
        ),
        (
            "scaled.base_layer.bias.data *= scaled.scale.data",
            "scaled.base_layer.bias.data *= 2 if vars(Odd).get('tried') else scaled.scale.data; Odd.tried = True",
            "strategy odd: the merged model's logits differ ",
        ),
    ],
    ids=["step_ended", "error in torch", "merge is wrong after training"],
)
def test_strategy_error_fails_only_its_run(
    cli: Cli, own_folder: Path, store: Path, old: str, new: str, reason: str
) -> None:
    path, line = plugin(own_folder, old, new)
    result = cli("run", "-s", "odd", "-s", "head", *TINY, "--json", "-q", "--plugin", path)
    odd, head = json.loads(result.stdout)["runs"]
    assert (result.exit_code, odd["status"], head["status"]) == (1, "failed", "finished")
    assert odd["error"].startswith(reason.format(place=f"{path}:{line}"))
    assert "Traceback" not in result.stderr
    (text,) = own_folder.glob("mlruns/*/*/artifacts/error.txt")
    assert "Traceback" in text.read_text()


COMPONENTS = """
from torch import nn
from adaptkit import hookimpl

class Net:
    name = "net"

    def build(self, channels, size, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))

class Data:
    name = "data"

    def load(self, data_dir):
        return []

@hookimpl
def adaptkit_backbones():
    return [Net]

@hookimpl
def adaptkit_datasets():
    return [Data]
"""


@pytest.mark.parametrize(
    ("arguments", "text", "old", "new", "line"),
    [
        (
            ["-s", "odd"],
            STRATEGY,
            "return self.base_layer(x) * self.scale",
            "return self.base_layer(x) * self.nothing",
            "strategy odd cannot be tried: AttributeError: 'Scaled' object has no attribute 'nothing' ({place})",
        ),
        (
            ["-s", "odd"],
            STRATEGY,
            "return [model.classifier[3].scale]",
            "return [{'params': [model.classifier[3].scale], 'lr_ration': 4}]",
            "strategy odd ({path}): unknown key 'lr_ration' in an optimizer group; did you mean 'lr_ratio'?",
        ),
        (
            ["-s", "head", "-s", "lora", "--backbone", "net"],
            COMPONENTS,
            "nn.Linear(channels * size * size, classes)",
            "nn.Linear(7, classes)",
            "backbone net fails for images [1, 28, 28]: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        (
            ["-s", "head", "-s", "lora", "--backbone", "net"],
            COMPONENTS,
            "return nn.Sequential(",
            "raise KeyError(1)\n        return nn.Sequential(",
            "backbone net: build() raises KeyError: 1 ({place})",
        ),
        (
            ["-s", "head", "-s", "lora", "--backbone", "net"],
            COMPONENTS,
            "return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))",
            "return None",
            "backbone net: build() returned NoneType, not a torch.nn.Module",
        ),
        (
            ["-s", "head", "--dataset", "data"],
            COMPONENTS,
            "[]",
            "[ ]",
            "data set data: load() returned list, not a Corpus",
        ),
        (
            ["-s", "head", "--dataset", "data"],
            COMPONENTS,
            "return []",
            "raise OSError('gone')",
            "data set data: load() raises OSError: gone ({place})",
        ),
        (
            ["-s", "head"],
            COMPONENTS,
            "return [Data]",
            "return Data",
            "plugin {path}: adaptkit_datasets: it returned type, not a list of classes",
        ),
    ],
    ids=["forward", "group", "size", "build", "nothing", "list", "load", "class"],
)
def test_errors_before_training(
    cli: Cli, own_folder: Path, arguments: list[str], text: str, old: str, new: str, line: str
) -> None:
    path, number = plugin(own_folder, old, new, text=text)
    result = cli("run", *arguments, *TINY, "--no-track", "--plugin", path)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert result.stderr.startswith(f"Error: {line.format(path=path, place=f'{path}:{number}')}")


@pytest.mark.parametrize(
    ("old", "new", "failure"),
    [
        ("scaled = model", "scaled = model.nothing", "FAILED merges exactly (cnn): merge() raises AttributeError: "),
        ("def merge(self, model)", "def merge(self)", "FAILED merges exactly (cnn): merge() raises TypeError: "),
        ("* self.scale", "* self.nothing", "FAILED trains (cnn): training fails: AttributeError: "),
    ],
)
def test_plugins_check_reports_errors(cli: Cli, own_folder: Path, old: str, new: str, failure: str) -> None:
    # It only adapts the CNN of the notebook and raises BadInput for other models.
    text = STRATEGY.replace(
        "        model.classifier[3] = Scaled(",
        "        if not hasattr(model, 'classifier'):\n"
        "            from adaptkit.errors import BadInput\n"
        "            raise BadInput('it has no classifier')\n"
        "        model.classifier[3] = Scaled(",
    )
    path, _ = plugin(own_folder, old, new, text=text)
    result = cli("plugins", "check", path)
    assert result.exit_code == 1
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert failed[0].startswith(failure)
    if "merge" in failure:
        assert len(failed) == 1
    assert "it does not fit this model: it has no classifier" in result.stdout


@pytest.mark.slow
def test_place_of_an_error_in_an_installed_plugin(
    cli: Cli, own_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In one folder with adaptkit, as pip installs it; the layers are in a separate module.
    package = own_folder / "site" / "adaptkit_odd"
    package.mkdir(parents=True)
    hooks, layers = STRATEGY.split("class Scaled")[0], STRATEGY.split("class Odd")
    (package / "layers.py").write_text(
        # After the first step: earlier errors are found before training.
        layers[0].replace("* self.scale", "* (self.scale if not self.training or self.scale == 1 else 1 / 0)")
    )
    (package / "__init__.py").write_text(f"{hooks}from adaptkit_odd.layers import Scaled\nclass Odd{layers[1]}")
    info = own_folder / "site" / "adaptkit_odd-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adaptkit-odd\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[adaptkit]\nodd = adaptkit_odd\n")
    monkeypatch.syspath_prepend(own_folder / "site")
    monkeypatch.setattr(adaptkit, "__file__", str(own_folder / "site" / "adaptkit" / "__init__.py"))
    result = cli("run", "-s", "odd", "-s", "head", *TINY, "--json", "-q")
    odd, head = json.loads(result.stdout)["runs"]
    place = f"{package / 'layers.py'}:11"
    assert odd["error"] == f"strategy odd fails in forward(): ZeroDivisionError: division by zero ({place})"
    assert head["status"] == "finished"


FAILING = """
from torch import nn
from adaptkit import hookimpl

class Model(nn.Sequential):
    def forward(self, x):
        # The passes on a few images succeed, those over a whole test set do not.
        if len(x) > 50 and not self.training:
            raise ValueError("too many images")
        return super().forward(x)

class Net:
    name = "net"

    def build(self, channels, size, classes):
        return Model(nn.Flatten(), nn.Linear(channels * size * size, classes))

@hookimpl
def adaptkit_backbones():
    return [Net]
"""


@pytest.mark.parametrize(
    "arguments", [(), ("--dataset", "none", "--weights", "none", "--target", "mnist5k")], ids=["base", "run"]
)
def test_backbone_that_fails_after_the_first_checks(cli: Cli, own_folder: Path, arguments: tuple[str, ...]) -> None:
    (own_folder / "net.py").write_text(FAILING)
    result = cli("run", "-s", "head", *TINY, "--backbone", "net", "--plugin", "net.py", "--no-track", "-q", *arguments)
    assert result.exit_code == 1 and "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    subject = "strategy head" if arguments else "backbone net"
    assert line.startswith("Error: ") and f"{subject} fails" in line
    assert line.endswith(f"ValueError: too many images ({own_folder / 'net.py'}:9)")
