"""The base is trained once per recipe, reused, and trained again if its files are damaged."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.experiments import TINY, TINY_SETTINGS

import adaptkit
from adaptkit.system.folders import CacheWarning


@pytest.fixture(autouse=True)
def own_cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    return own_folder / "cache"


def base_of(**settings: object) -> tuple[str, bool]:
    outcome = adaptkit.run("head", settings=TINY_SETTINGS | settings, track=False)
    return outcome.base.fingerprint, outcome.base.cached


def test_base_is_reused(own_cache: Path) -> None:
    first = base_of()
    assert first[1] is False
    assert base_of() == (first[0], True)
    # The base depends on its own settings and its data, not on the shift and settings of the adaptation.
    assert base_of(epochs=1, shots=3, shift="noise=0.1", lr=0.1) == (first[0], True)
    for changed in ({"base.seed": 1}, {"base.epochs": 1}, {"split.seed": 1}, {"split.source": 190}):
        fingerprint, cached = base_of(**changed)
        assert fingerprint != first[0] and cached is False
    assert len(list((own_cache / "bases").glob("*/base.safetensors"))) == 5


@pytest.mark.slow
def test_refresh_gives_the_same_weights() -> None:
    first = base_of()
    outcome = adaptkit.run("head", settings=TINY_SETTINGS, track=False, refresh_base=True)
    assert (outcome.base.fingerprint, outcome.base.cached) == (first[0], False)


def test_changed_backbone_gets_a_new_base(own_folder: Path) -> None:
    fingerprints = set()
    for activation in ("ReLU", "GELU"):
        path = own_folder / f"{activation}.py"
        path.write_text(
            "from adaptkit import hookimpl\nclass Line:\n    name = 'line'\n"
            "    def build(self, channels, size, classes):\n        from torch import nn\n"
            f"        middle = nn.{activation}()\n"
            "        return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), middle, nn.Linear(16, classes))\n"
            "@hookimpl\ndef adaptkit_backbones(): return [Line]\n"
        )
        outcome = adaptkit.run("head", backbone="line", settings=TINY_SETTINGS, track=False, plugins=[path])
        assert outcome.base.cached is False
        fingerprints.add(outcome.base.fingerprint)
    assert len(fingerprints) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["flip", *(pytest.param(name, marks=pytest.mark.slow) for name in ("truncate", "no card"))]
)
def test_damaged_base_is_trained_again(own_cache: Path, damage: str) -> None:
    first = base_of()
    (weights,) = (own_cache / "bases").glob("*/base.safetensors")
    content = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "truncate":
        weights.write_bytes(content[: len(content) // 2])
    else:
        (weights.parent / "base.json").unlink()
    warning = contextlib.nullcontext() if damage == "no card" else pytest.warns(CacheWarning, match="is damaged")
    with warning:  # an entry without a card was not finished by a killed process, and is not reported
        assert base_of() == (first[0], False)
    assert base_of() == (first[0], True)


@pytest.mark.slow
def test_concurrent_processes_train_the_base_once() -> None:
    command = [sys.executable, "-m", "adaptkit", "run", "-s", "head", *TINY, "--no-track"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    messages = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    trained = [text.count("[base small_cnn mnist5k] epoch 1/2") for text in messages]
    assert sorted(trained) == [0, 1]


def test_backbone_that_rejects_channels_last(own_folder: Path) -> None:
    # `view` fails in the channels-last format, so the model gets the default format.
    path = own_folder / "viewing.py"
    path.write_text(
        "from adaptkit import hookimpl\nclass Viewing:\n    name = 'viewing'\n"
        "    def build(self, channels, size, classes):\n        from torch import nn\n"
        "        class Model(nn.Module):\n"
        "            def __init__(self):\n                super().__init__()\n"
        "                self.conv, self.out = nn.Conv2d(channels, 4, 5, stride=4), nn.Linear(144, classes)\n"
        "            def forward(self, x):\n                return self.out(self.conv(x).view(x.size(0), -1))\n"
        "        return Model()\n"
        "@hookimpl\ndef adaptkit_backbones(): return [Viewing]\n"
    )
    outcome = adaptkit.run(["full", "lora"], backbone="viewing", settings=TINY_SETTINGS, track=False, plugins=[path])
    assert [run.status for run in outcome.runs] == ["finished", "finished"]
