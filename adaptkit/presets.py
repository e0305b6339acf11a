"""Named settings to start from; every other source of settings overrides them."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Finishes in seconds: for demonstrations and tests, not for conclusions.
    "quick": {
        "split.source": 1000,
        "split.pool": 400,
        "split.test": 400,
        "shots": 20,
        "epochs": 8,
        "base.epochs": 5,
    },
    "default": {},
    # The notebook that adaptkit grew from, but with disjoint source and target images.
    "notebook": {
        "dataset": "mnist",
        "shift": "rotate=25,noise=0.15",
        "split.source": 20_000,
        "split.pool": 40_000,
        "split.test": 5_000,
        "split.sampling": "random",
        "split.seed": 42,
        "seed": 42,
        "shots": 200,
        "epochs": 5,
        "batch_size": 128,
        "lr": 1e-3,
        "evaluate_shifted": "end",
        "base.epochs": 5,
        "base.batch_size": 128,
        "base.seed": 42,
    },
}
