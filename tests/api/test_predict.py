"""Use the model of a run from Python: `adaptkit.predict`, and `adaptkit.load` with an exported folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.artifacts import run_of
from support.experiments import Tracked

import adaptkit


@pytest.fixture
def photos(own_folder: Path) -> Path:
    folder = own_folder / "photos"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((30, 28), 80).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_exported_folder(tracked: Tracked, photos: Path) -> None:
    run_id = run_of(tracked, "lora")
    adaptkit.export(run_id, to="merged", output="model", images=[photos], tracking_uri=tracked.uri)
    model = adaptkit.load("model")
    images = model.preprocess(sorted(photos.iterdir()))
    assert torch.equal(model(images), adaptkit.load(run_id, tracking_uri=tracked.uri)(images))
    predictions = adaptkit.predict(Path("model"), photos, top_k=3)
    assert predictions == adaptkit.predict(run_id, sorted(photos.iterdir()), top_k=3, tracking_uri=tracked.uri)
    assert [prediction.path.name for prediction in predictions] == ["0.png", "1.png", "2.png"]
    assert [prediction.label for prediction in predictions] == [model.classes[best] for best in model(images).argmax(1)]
    assert "adaptkit.load" in Path("model/README.md").read_text()
    card = json.loads(Path("model/model.json").read_text())
    Path("model/model.json").write_text(json.dumps(card | {"format": "onnx"}))
    with pytest.raises(adaptkit.BadInput, match="model holds a model in the format onnx; only merged exports can be"):
        adaptkit.load("model")


@pytest.mark.slow
def test_bad_images(tracked: Tracked, photos: Path) -> None:
    (photos / "notes.png").write_text("no image")
    run_id = run_of(tracked, "head")
    with pytest.raises(adaptkit.BadInput, match=r"photos/notes\.png"):
        adaptkit.predict(run_id, photos, tracking_uri=tracked.uri)
    assert len(adaptkit.predict(run_id, photos, tracking_uri=tracked.uri, skip_bad_images=True)) == 3
    with pytest.raises(adaptkit.BadInput, match="missing: "):
        adaptkit.predict(run_id, "missing", tracking_uri=tracked.uri)
