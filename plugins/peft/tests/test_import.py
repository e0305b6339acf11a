"""Adapters that PEFT trained become runs of adaptkit with the same logits, or are refused in one line."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import adaptkit
import numpy
import peft
import pytest
import torch
from adaptkit.errors import BadInput
from PIL import Image
from torch import Tensor, nn


class Net(nn.Module):
    """Convolutions with and without zero padding, BatchNorm, and three linear layers, the last of which is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.last = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.circular(self.norm(self.conv(x)).relu()).relu()
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        logits: Tensor = self.last(x)
        return logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, nn.Module]:
    """Return the store, the run of a strategy, and the model that the run adapted."""
    folder = tmp_path_factory.mktemp("trained")
    draws = numpy.random.default_rng(0)
    for number in range(16):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 255, (16, 16, 3), dtype=numpy.uint8)).save(path)
    torch.manual_seed(0)
    model, uri = Net(), f"sqlite:///{folder / 'm.db'}"
    target = f"folder:{folder / 'images'}"
    outcome = adaptkit.run(
        "head",
        backbone=model,
        dataset="none",
        target=target,
        image_size=16,
        epochs=1,
        protocol="draws",
        tracking_uri=uri,
    )
    run_id = outcome.runs[0].run_id
    assert run_id is not None
    return uri, run_id, model


def saved_by_peft(base: nn.Module, folder: Path, options: dict[str, Any]) -> Any:
    """Let PEFT save an adapter with random weights; return the model."""
    torch.manual_seed(1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**{"r": 4} | options)).eval()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["layers.0"], "modules_to_save": ["layers.1"]},
        {"target_modules": ["layers.0"], "modules_to_save": ["last"], "bias": "lora_only"},
        {"target_modules": ["layers.0"], "modules_to_save": ["circular", "norm"]},
        {
            "target_modules": ["layers.0", "last"],
            "rank_pattern": {"layers.0": 2, "last": 2},
            "alpha_pattern": {".*": 3},
        },
        {"target_modules": ["layers.0", "conv"], "alpha_pattern": {"layers.0": 3, "conv": 3}, "use_rslora": True},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": r".*layers\.\d|conv", "bias": "lora_only"},
        {"target_modules": ["layers.0", "layers.1"], "exclude_modules": ["layers.1"], "fan_in_fan_out": True},
    ],
    ids=str,
)
def test_import(options: dict[str, Any], trained: tuple[str, str, nn.Module], tmp_path: Path) -> None:
    uri, run_id, net = trained
    base = adaptkit.load(run_id, tracking_uri=uri, backbone=net)
    base_run = adaptkit.load(base_of(uri, run_id), tracking_uri=uri, backbone=net)
    model = saved_by_peft(base_run, tmp_path / "adapter", options)
    record = adaptkit.import_peft(tmp_path / "adapter", run_id, tracking_uri=uri, backbone=net)
    ours = adaptkit.load(record.run_id, tracking_uri=uri, backbone=net)
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        assert float((model(images) - ours(images)).abs().max()) < 1e-5
        assert not torch.allclose(ours(images), base(images), atol=1e-3)
    assert record.options["train_head"] == ("last" in options.get("modules_to_save", ()))


def base_of(uri: str, run_id: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(tracking_uri=uri).get_run(run_id).data.tags["adaptkit.base_run_id"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"target_modules": ["circular", "layers.0"]},
            "PEFT computes another update of circular (padding mode circular); "
            "leave such layers out of its target_modules",
        ),
        (
            {"target_modules": ["layers.0", "layers.1"], "alpha_pattern": {"layers.1": 3}},
            "layers.1 has another rank or alpha than other layers",
        ),
        ({"target_modules": ["layers.0"], "lora_bias": True}, "lora_bias is not supported by adaptkit's lora"),
    ],
)
def test_refused(options: dict[str, Any], reason: str, trained: tuple[str, str, nn.Module], tmp_path: Path) -> None:
    uri, run_id, net = trained
    saved_by_peft(adaptkit.load(base_of(uri, run_id), tracking_uri=uri, backbone=net), tmp_path / "adapter", options)
    with pytest.raises(BadInput) as refused:
        adaptkit.import_peft(tmp_path / "adapter", run_id, tracking_uri=uri, backbone=net)
    (line,) = refused.value.problems
    assert reason in line
