"""Experiments with timm models: frozen layers are found, and all settings are recorded."""

from __future__ import annotations

from typing import Any

import adaptkit_timm
import pytest

import adaptkit

TINY = {
    "split.source": 200,
    "split.pool": 100,
    "split.test": 100,
    "shots": 5,
    "base.epochs": 1,
    "epochs": 2,
    "backbone.weights": "none",
}


class Watcher:
    def __init__(self) -> None:
        self.params: dict[str, dict[str, Any]] = {}
        self.prefixes: dict[str, str] = {}

    @adaptkit.hookimpl
    def adaptkit_run_started(self, run):
        self.params[run.name] = dict(run.params)

    @adaptkit.hookimpl
    def adaptkit_run_ended(self, run, result):
        if run.kind == "adaptation":
            self.prefixes[run.name.partition(" ")[0]] = result.tags["adaptkit.frozen_prefix"]


@pytest.mark.parametrize(
    ("backbone", "size", "prefixes"),
    [
        (
            "timm:resnet10t",
            "data",
            {"head": "global_pool.flatten", "lora": "truediv,conv1.0.base_layer"},
        ),
        (
            "timm:test_vit",
            "32",
            {"head": "head_drop", "lora": "norm_pre,blocks.0.norm1,blocks.0.attn.qkv.base_layer"},
        ),
        ("timm:test_convnext", "32", {"head": "head.drop"}),
    ],
)
def test_frozen_layers_and_recorded_params(backbone, size, prefixes):
    watcher = Watcher()
    outcome = adaptkit.run(
        list(prefixes),
        backbone=backbone,
        settings=TINY | {"backbone.size": size},
        plugins=[adaptkit_timm, watcher],
        track=False,
    )
    assert [run.status for run in outcome.runs] == ["finished"] * len(prefixes)
    assert watcher.prefixes == prefixes
    recorded = {key: value for key, value in watcher.params["head seed=0"].items() if key.startswith("backbone")}
    assert recorded == {
        "backbone": backbone,
        "backbone.weights": "none",
        "backbone.weights_by": "name",
        "backbone.size": size,
        "backbone.channels": 3,
        "backbone.input_size": 28 if size == "data" else 32,
        "backbone.mean": recorded["backbone.mean"],
        "backbone.std": recorded["backbone.std"],
        "backbone.weights_id": "none",
    }


def test_unknown_model():
    with pytest.raises(adaptkit.BadInput) as caught:
        adaptkit.run(["head", "lora"], backbone="timm:resnet81", settings=TINY, plugins=[adaptkit_timm], track=False)
    assert caught.value.problems == ("backbone timm:resnet81: timm has no model 'resnet81'; did you mean 'resnet18'?",)


def test_unknown_option():
    with pytest.raises(adaptkit.BadInput) as caught:
        adaptkit.run(
            "head", backbone="timm:resnet10t", settings={"backbone.sise": 3}, plugins=[adaptkit_timm], track=False
        )
    assert caught.value.problems == ("unknown option 'backbone.sise'; did you mean 'size'?",)
