"""`refit --calibrate`: one temperature in the model, in its exports and in MLflow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from mlflow import MlflowClient
from PIL import Image
from support.artifacts import artifacts_of, copied, run_of
from support.experiments import Tracked

import adaptkit

Cli = Callable[..., Result]
pytestmark = pytest.mark.slow


@pytest.fixture
def calibrated(tracked: Tracked, own_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Refit the tracked LoRA run twice, calibrated and not; return the ids of both runs and the temperature."""
    uri = copied(tracked, own_folder / "project")
    monkeypatch.chdir(own_folder / "project")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    Image.effect_noise((28, 28), 80).save("picture.png")
    found = {}
    for name, options in (("plain", ()), ("calibrated", ("--calibrate",))):
        result = cli("refit", run_of(tracked, "lora"), *options, "--json", "-q")
        assert result.exit_code == 0, result.stderr
        found[name] = json.loads(result.stdout)
    assert found["plain"]["calibration"] is None
    calibration = found["calibrated"]["calibration"]
    return {"uri": uri, **{name: one["run_id"] for name, one in found.items()}, "calibration": calibration}


def test_model_and_record(calibrated: dict[str, Any], cli: Cli, tracked: Tracked) -> None:
    calibration = calibrated["calibration"]
    temperature = calibration["temperature"]
    assert temperature > 0 and temperature != 1
    plain, model = (adaptkit.load(calibrated[name]) for name in ("plain", "calibrated"))
    images = torch.rand(50, 1, 28, 28)
    assert torch.equal(model(images), plain(images) / temperature)
    assert torch.equal(model(images).argmax(1), plain(images).argmax(1))
    assert list(model.state_dict()) == list(plain.state_dict())

    (prediction,) = adaptkit.predict(calibrated["calibrated"], "picture.png")
    expected = (plain(plain.preprocess("picture.png")) / temperature).softmax(1)[0]
    assert list(prediction.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    (before,) = adaptkit.predict(calibrated["plain"], "picture.png")
    assert prediction.label == before.label and prediction.confidence != before.confidence

    metrics = MlflowClient().get_run(calibrated["calibrated"]).data.metrics
    assert {key: metrics[f"calibration/{key}"] for key in ("temperature", "nll_before", "nll_after")} == {
        key: calibration[key] for key in ("temperature", "nll_before", "nll_after")
    }
    folders = {name: artifacts_of(calibrated["uri"], calibrated[name]) for name in ("plain", "calibrated")}
    with Image.open(folders["calibrated"] / "reliability.png") as figure:
        assert figure.size[0] > 500
    assert not (folders["plain"] / "reliability.png").exists()
    weights = [(folder / "adapter" / "adapter.safetensors").read_bytes() for folder in folders.values()]
    assert weights[0] == weights[1]
    note = MlflowClient().get_run(calibrated["calibrated"]).data.tags["mlflow.note.content"]
    assert f"Calibrated with temperature {temperature:.3g}" in note
    printed = cli("refit", run_of(tracked, "lora"), "--calibrate", "--dry-run").stdout
    assert printed.splitlines()[-1] == note.splitlines()[-1]


def test_exports(calibrated: dict[str, Any], cli: Cli) -> None:
    temperature = calibrated["calibration"]["temperature"]
    model = adaptkit.load(calibrated["calibrated"])
    expected = model(model.preprocess("picture.png"))[0]
    for to in ("merged", "peft", "torch-export", "onnx", "mlflow"):
        result = cli("export", calibrated["calibrated"], "--to", to, "-o", to)
        assert result.exit_code == 0, result.stderr
        assert "Verified: " in result.stdout
        readme, card = Path(to, "README.md").read_text(), json.loads(Path(to, "model.json").read_text())
        assert f"divided by the temperature {temperature:.4g}" in readme
        assert card.get("temperature") == (temperature if to in ("merged", "peft") else None)
        if to == "mlflow":
            continue  # the code of its README needs a server
        (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
        code += "\nprint([float(value) for value in logits[0]])\n"
        shutil.copy("picture.png", to)
        done = subprocess.run([sys.executable, "-c", code], cwd=to, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        name, logits = done.stdout.strip().splitlines()[-2:]
        assert json.loads(logits) == pytest.approx(expected.tolist(), abs=1e-4)
        assert name == model.classes[int(expected.argmax())]
    card = json.loads(Path("merged/model.json").read_text())
    for value in (0, -1.5, "2", True):
        Path("merged/model.json").write_text(json.dumps(card | {"temperature": value}))
        with pytest.raises(adaptkit.BadInput, match="the temperature must be a positive number"):
            adaptkit.load("merged")


def test_calibrate_needs_a_refit(cli: Cli, own_folder: Path) -> None:
    result = cli("run", "-s", "head", "--calibrate")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: --calibrate calibrates the model of --refit; add --refit\n",
    )
