"""Decide which settings determine the result of a run, and hash them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: params that do not change the result of a run, or that fingerprints and `ComparedRun` already cover
NOT_OF_AN_ARM = {
    "strategy", "seed", "preset", "device", "data_dir", "evaluate_shifted", "shots", "image_size", "skip_bad_images",
    "severity", "checkpointing", "classes", "metric",
}  # fmt: skip
DATA = ("dataset", "target", "shift")
#: values of these params in runs that were made before the params existed
ALWAYS = {
    **{"augment": "none", "bn": "freeze", "tuning.trials": "0", "class_weights": "none"},
    "backbone.bands": "none",
}


def training_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the params that determine the training, without those of base, split, data and strategy."""
    apart = ("base.", "split.", "table.", "folder.", "image.", "shift.", "strategy.")
    return {
        key: value
        for key, value in settings.items()
        if key not in (*NOT_OF_AN_ARM, *DATA, "backbone") and not key.startswith(apart) and ALWAYS.get(key) != value
    }


def trial_key(kind: str, params: Mapping[str, Any], data_fingerprint: str, base_fingerprint: str) -> str:
    """Return the sha256 of everything that determines the result of a run of this kind.

    The content of images and base counts; device, threads and folders do not.
    """
    written = {key: str(value) for key, value in params.items()}
    # `severity` counts as well: a run without these measurements cannot replace one with them.
    names = ("strategy", "seed", "shots", "backbone", "split.sampling", "severity")
    deciding = {
        **training_settings(written),
        **{key: value for key, value in written.items() if key in names or key.startswith("strategy.")},
        "kind": kind,
        "data": data_fingerprint,
        "base": base_fingerprint,
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
