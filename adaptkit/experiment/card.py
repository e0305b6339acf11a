"""The card of an adapter: what the file beside it holds, and what it takes to use it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adaptkit import __version__
from adaptkit.experiment.base import Base
from adaptkit.experiment.preparation import Experiment
from adaptkit.request import Arm
from adaptkit.seeds import derive_seed


def adapter_card(experiment: Experiment, base: Base, arm: Arm, seed: int, tensors: Iterable[str]) -> dict[str, Any]:
    """Return the card of an adapter that holds tensors of these names."""
    domains = experiment.domains
    return {
        "adaptkit_version": __version__,
        "strategy": arm.strategy,
        "options": dict(arm.options),
        "targets": changed_layers(tensors, base.state),
        "new_head": arm.new_head,
        "init_seed": derive_seed(seed, "init"),
        "base_fingerprint": base.fingerprint,
        "backbone": experiment.request.settings.backbone,
        "backbone_options": dict(experiment.request.backbone_options),
        "channels": domains.channels,
        "size": domains.size,
        "classes": list(domains.classes),
        "preprocessing": experiment.preprocessing,
    }


def changed_layers(tensors: Iterable[str], base: Iterable[str]) -> list[str]:
    """Return the layers of the base that tensors of an adapter belong to, trained or wrapped; both are given by name.

    Tensors outside of all layers, such as a class token, stand for themselves.
    """
    layers = {name.rpartition(".")[0] for name in base}
    found: dict[str, None] = {}
    for name in tensors:
        plain = name.replace(".base_layer.", ".")
        parts = plain.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        found[next((prefix for prefix in prefixes if prefix in layers), plain)] = None
    return sorted(found)
