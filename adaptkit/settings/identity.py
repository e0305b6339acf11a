"""What makes two runs the same: the settings that decide a run's result, and those that do not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: params that do not change a run's result, or are held by the fingerprints or by `ComparedRun` itself
NOT_OF_AN_ARM = {
    "strategy", "seed", "preset", "device", "data_dir", "evaluate_shifted", "shots", "image_size", "skip_bad_images",
    "severity", "checkpointing",
}  # fmt: skip
DATA = ("dataset", "target", "shift")
#: what runs did before these params existed
ALWAYS = {"augment": "none", "bn": "freeze"}


def training_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the params that decide how a run was trained, beside base, split, data and the strategy's options."""
    apart = ("base.", "split.", "shift.", "strategy.")
    return {
        key: value
        for key, value in settings.items()
        if key not in (*NOT_OF_AN_ARM, *DATA, "backbone") and not key.startswith(apart) and ALWAYS.get(key) != value
    }


def trial_key(kind: str, params: Mapping[str, Any], data_fingerprint: str, base_fingerprint: str) -> str:
    """Return the sha256 of all that decides the result of a run of this kind, whoever makes it, wherever and when.

    Images and base count by their content: which device, threads or folder they were read with says nothing.
    """
    written = {key: str(value) for key, value in params.items()}
    # What is measured besides counts, too: who asks for it is not served by a run without.
    named = ("strategy", "seed", "shots", "backbone", "split.sampling", "severity")
    deciding = {
        **training_settings(written),
        **{key: value for key, value in written.items() if key in named or key.startswith("strategy.")},
        "kind": kind,
        "data": data_fingerprint,
        "base": base_fingerprint,
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
