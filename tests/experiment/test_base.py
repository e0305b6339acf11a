"""The base is trained once per recipe, reused, and trained again if its files are damaged."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from support.experiments import TINY, TINY_SETTINGS
from support.plain_model import Plain
from support.processes import start
from torch import Tensor

import adaptkit
from adaptkit.adapters.files import card_digest
from adaptkit.system.folders import CacheWarning


@pytest.fixture(autouse=True)
def own_cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    return own_folder / "cache"


def base_of(**settings: object) -> tuple[str, bool]:
    outcome = adaptkit.run("head", settings=TINY_SETTINGS | settings, track=False)
    return outcome.base.fingerprint, outcome.base.cached


@pytest.mark.slow
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


NET = """
from adaptkit import hookimpl
FACTOR = {factor}
class Net:
    name = "net"
    def build(self, channels, size, classes):
        import json, pathlib, torch
        from torch import nn
        {comment}
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.gain = json.loads(pathlib.Path("gain.json").read_text())
                self.mid, self.fc = nn.Linear(channels * size * size, 16), nn.Linear(16, classes)
            def forward(self, x):
                h = scaled(x.flatten(1)) * self.gain
                {line}
                return self.fc(torch.relu(self.mid(h)))
        return Net()
def scaled(x):
    return x * FACTOR
@hookimpl
def adaptkit_backbones():
    return [Net]
"""


def write_net(folder: Path, *, line: str = "", comment: str = "", factor: float = 1.0, gain: float = 1.0) -> Path:
    path = folder / "net.py"
    path.write_text(NET.format(line=line or "pass", comment=comment, factor=factor))
    (folder / "gain.json").write_text(str(gain))
    return path


def run_net(path: Path) -> tuple[bool, float | None]:
    outcome = adaptkit.run("head", backbone="net", settings=TINY_SETTINGS, track=False, plugins=[path])
    return outcome.base.cached, outcome.base.test_accuracy


@pytest.mark.slow
def test_other_forward_pass_gets_another_base(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The layers and initial weights are the same in all cases.
    monkeypatch.chdir(own_folder)
    _, accuracy = run_net(write_net(own_folder))
    assert run_net(write_net(own_folder, comment="# a comment")) == (True, accuracy)
    for change in ({"line": "h = h * 0.0"}, {"factor": 0.0}):
        cached, other = run_net(write_net(own_folder, **change))  # type: ignore[arg-type]
        assert not cached and other != accuracy
    assert run_net(write_net(own_folder)) == (True, accuracy)  # the bases of both versions stay


@pytest.mark.slow
def test_base_with_other_outputs_is_made_again(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No code has changed: only the outputs show that the forward pass reads another number from a file.
    monkeypatch.chdir(own_folder)
    _, accuracy = run_net(write_net(own_folder))
    message = "backbone net gives other outputs for the weights of its cached base .* its code has changed"
    with pytest.warns(CacheWarning, match=message):
        cached, other = run_net(write_net(own_folder, gain=0.0))
    assert not cached and other != accuracy
    assert run_net(write_net(own_folder, gain=0.0)) == (True, other)
    with pytest.warns(CacheWarning, match=message):
        assert run_net(write_net(own_folder)) == (False, accuracy)


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_model_object_with_another_forward_pass(factor: float) -> None:
    def run_plain(factor: float) -> tuple[bool, float | None]:
        class Scaled(Plain):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x * factor)

        outcome = adaptkit.run("head", backbone=Scaled(10), settings=TINY_SETTINGS, track=False)
        return outcome.base.cached, outcome.base.test_accuracy

    first = run_plain(1.0)
    assert first[0] is False
    assert run_plain(factor)[0] is (factor == 1.0)


@pytest.mark.slow
def test_run_of_another_forward_pass_is_refused(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_folder)
    uri = f"sqlite:///{own_folder / 'm.db'}"
    path = write_net(own_folder)
    outcome = adaptkit.run("head", backbone="net", settings=TINY_SETTINGS, plugins=[path], tracking_uri=uri)
    run_id = outcome.runs[0].run_id
    assert run_id is not None
    adaptkit.load(run_id, tracking_uri=uri, plugins=[path])
    write_net(own_folder, line="h = h.relu() - 1.0")
    with pytest.raises(adaptkit.BadInput, match="gives other outputs for the weights of the base than when the run"):
        adaptkit.load(run_id, tracking_uri=uri, plugins=[path])


@pytest.mark.slow
def test_base_without_recorded_logits_is_completed(own_cache: Path) -> None:
    first = base_of()
    (path,) = (own_cache / "bases").glob("*/base.json")
    card = json.loads(path.read_text())
    logits = card.pop("logits")
    assert len(logits) == 4 and len(logits[0]) == 10
    card["card_sha256"] = card_digest(card)
    path.write_text(json.dumps(card))
    assert base_of() == (first[0], True)
    assert json.loads(path.read_text())["logits"] == logits


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
    processes = [start("run", "-s", "head", *TINY, "--no-track") for _ in range(2)]
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
