"""Exports of models whose layers share weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from support.experiments import TINY_SETTINGS
from support.plugin_files import write

import adaptkit
from adaptkit.adapters.weights import pack, unpack

PLUGIN = """
    import torch
    from torch import nn
    from adaptkit import hookimpl

    class Net(nn.Module):
        def __init__(self, channels, classes):
            super().__init__()
            self.conv = nn.Conv2d(channels, 16, 4, 4)
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            self.second.weight = self.first.weight
            self.fc = nn.Linear(16, classes)

        def forward(self, x):
            x = torch.relu(self.conv(x)).mean((2, 3))
            return self.fc(torch.relu(self.second(torch.relu(self.first(x)))))

    class Tied:
        name = "tied"
        def build(self, channels, size, classes):
            return Net(channels, classes)

    class Untie:
        "Give the first layer a weight of its own, and train it."
        name = "untie"
        def adapt(self, model):
            model.first.weight = nn.Parameter(model.first.weight.detach().clone())
            return [model.first.weight, *model.head.parameters()]

    @hookimpl
    def adaptkit_backbones():
        return [Tied]

    @hookimpl
    def adaptkit_strategies():
        return [Untie]
"""


@pytest.mark.slow
def test_export_of_tied_weights(cli: Callable[..., Result], own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{own_folder / 'm.db'}")
    path = write(own_folder / "tied.py", PLUGIN)
    outcome = adaptkit.run(
        ["full", "untie"], backbone="tied", settings=TINY_SETTINGS | {"epochs": 1}, plugins=[path], lr=0.01
    )
    full, untie = (str(run.run_id) for run in outcome.runs)
    plugin = ("--plugin", str(path))
    for to in ("merged", "torch-export"):
        result = cli("export", full, "--to", to, "-o", f"full-{to}", *plugin)
        assert result.exit_code == 0 and "100.00% equal predictions" in result.stdout, result.stderr
    state = unpack(Path("full-merged/model.safetensors").read_bytes())
    assert torch.equal(state["first.weight"], state["second.weight"])
    result = cli("export", untie, "--to", "merged", "-o", "untie", *plugin)
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: backbone tied ties first.weight, second.weight, and strategy untie gave them different values; "
        "export with --to torch-export, onnx or mlflow\n",
    )
    result = cli("export", untie, "--to", "torch-export", "-o", "untie", *plugin)
    assert result.exit_code == 0 and "100.00% equal predictions" in result.stdout, result.stderr


def test_tensors_that_share_memory_are_written() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "same": whole, "row": whole[1], "column": whole[:, 1], "transposed": whole.t()}
    read = unpack(pack(tensors))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
