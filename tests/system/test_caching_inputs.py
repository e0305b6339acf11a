"""Hostile files in the cache: bases and features."""

from __future__ import annotations

import json

import torch
from hostile import environment, hostile, refusals, scratch
from safetensors.torch import save

from adaptkit.api.cache import verify_cache
from adaptkit.experiment.base_cache import stored_base
from adaptkit.names import BASE_CARD_FILE, BASE_WEIGHTS_FILE
from adaptkit.training.frozen.features import FeatureFiles, sound

EPOCH = {"number": 1, "loss": 0.5, "train_accuracy": 0.5, "test_accuracy": 0.5, "seconds": 1.0}
BASE = {"fingerprint": "0", "key": "key", "epochs": [EPOCH]}


def _safetensors() -> bytes:
    return save({"body.weight": torch.ones(3, 2), "features": torch.zeros(2, 1, 2, 2)}, {"sha256": "0"})


@hostile(
    json.dumps(BASE).encode() + b"\0" + _safetensors(),
    words=tuple(f'"{key}"' for key in EPOCH),
    found=(b"[" * 100_000 + b"\0", b'""\0'),
)
def test_base(data: bytes) -> None:
    """Read a base from the cache. The input holds the card, a zero byte and the weights."""
    folder = scratch() / "cache" / "bases" / "key"
    folder.mkdir(parents=True, exist_ok=True)
    text, _, content = data.partition(b"\0")
    (folder / BASE_CARD_FILE).write_bytes(text)
    (folder / BASE_WEIGHTS_FILE).write_bytes(content)
    with refusals(), environment(ADAPTKIT_CACHE=str(scratch() / "cache")):
        stored_base("key")
        list(verify_cache(["bases"]))


@hostile(
    _safetensors(),
    words=("features", "sha256", "seconds", "channels_last"),
)
def test_features(data: bytes) -> None:
    """Read cached features."""
    files = FeatureFiles(scratch() / "features")
    files.folder.mkdir(exist_ok=True)
    files.path("key").write_bytes(data)
    with refusals():
        sound(files.path("key"))
        files.read("key")
