"""Describe an adaptation run for plugins and MLflow, and write the card of its adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch

from adaptkit.data.protocols import DRAWS, division_of, most_shots
from adaptkit.events import RunInput, RunStart
from adaptkit.experiment.base_cache import Base
from adaptkit.experiment.prepare import Experiment, find_fits
from adaptkit.names import (
    ARM_TAG,
    BASE_FINGERPRINT_TAG,
    BASE_RUN_ID_TAG,
    DATA_FINGERPRINT_TAG,
    DIVISION_TAG,
    DRAW_SEED_TAG,
    DRAWN_IMAGES_TAG,
    HELD_OUT_TAG,
    IMAGES_DIGEST_TAG,
    INIT_SEED_TAG,
    KIND_TAG,
    ORDER_SEED_TAG,
    PAIR_ID_TAG,
    POOL_IMAGES_TAG,
    PROCESSES_TAG,
    PROTOCOL_TAG,
    STARTS_AT_BASE_TAG,
    THREADS_TAG,
    TIMING_TAG,
    TRIAL_KEY_TAG,
    TUNED_INSIDE_TAG,
    TUNED_ON_TAG,
)
from adaptkit.plugins.components import starts_at_base
from adaptkit.seeds import derive_seed
from adaptkit.settings.identity import trial_key
from adaptkit.settings.request import OVERLAPPING, Arm
from adaptkit.system.core_sharing import Occupancy
from adaptkit.version import __version__


def describe_run(
    experiment: Experiment,
    base: Base,
    *,
    base_run_id: str | None,
    arm: Arm,
    seed: int,
    occupancy: Occupancy,
    label: str | None = None,
) -> RunStart:
    """Return the settings, tags, inputs and description of an adaptation run that is about to start.

    `occupancy` counts the other experiments on this machine. The name of the run consists of `label` (by default the
    strategy with its options) and the seed.
    """
    plan, domains = experiment.plan, experiment.domains
    params = experiment.request.run_params(arm, seed) | experiment.backbone_facts
    target = f"`{plan.target}`" + (f" under `{plan.shift}`" if plan.shift != "none" else "")
    tags = {
        KIND_TAG: "adaptation",
        ARM_TAG: arm.label,
        STARTS_AT_BASE_TAG: str(starts_at_base(arm.checked)),
        POOL_IMAGES_TAG: str(plan.pool_images),
        DRAWN_IMAGES_TAG: str(plan.drawn_images),
        BASE_FINGERPRINT_TAG: base.fingerprint,
        DATA_FINGERPRINT_TAG: domains.fingerprint,
        PAIR_ID_TAG: _pair_id(experiment, seed),
        PROTOCOL_TAG: plan.protocol,
        TRIAL_KEY_TAG: trial_key(
            "adaptation", params, data_fingerprint=domains.fingerprint, base_fingerprint=base.fingerprint
        ),
        TIMING_TAG: "shared" if occupancy.others else "alone",
        THREADS_TAG: str(torch.get_num_threads()),
        PROCESSES_TAG: "1",  # earlier versions could train one run in several processes
        DRAW_SEED_TAG: str(derive_seed(seed, "draw")),
        INIT_SEED_TAG: str(derive_seed(seed, "init")),
        ORDER_SEED_TAG: str(derive_seed(seed, "order")),
    }
    tuning = experiment.request.settings.tuning
    if tuning.trials and arm.searched:
        tags[TUNED_INSIDE_TAG] = str(tuning.trials)
    if tuning.on is not None:
        tags[TUNED_ON_TAG] = tuning.on
    if domains.images_digest is not None:
        tags[IMAGES_DIGEST_TAG] = domains.images_digest
    if domains.held_out is not None:
        tags[HELD_OUT_TAG] = json.dumps(domains.held_out[1])
    if plan.protocol == DRAWS and plan.shots is not None:
        numbers = domains.labels.numbers
        sampling = experiment.request.settings.split.sampling
        shots = min(plan.shots, most_shots(numbers, sampling))
        tags[DIVISION_TAG] = str(division_of(numbers, shots, sampling, seed))
    source: tuple[RunInput, ...] = ()
    weights = experiment.backbone_facts.get("backbone.weights_id", "none")
    history = f"with weights `{weights}` and a new head"
    if domains.clean_test is not None:
        source = (RunInput(name=plan.dataset, context="source", digest=domains.source_digest, source=plan.dataset),)
        history = f"trained on {plan.source_images} images of `{plan.dataset}`"
    in_folds = f" in each of {plan.folds} folds" if plan.folds else ""
    tuned = (
        f" Each fit chooses its values among {tuning.trials} configurations." if tuning.trials and arm.searched else ""
    )
    if base_run_id:
        tags[BASE_RUN_ID_TAG] = base_run_id
    return RunStart(
        kind="adaptation",
        name=f"{label or arm.label} seed={seed}",
        params=params,
        tags=tags,
        inputs=(
            *source,
            RunInput(
                name=plan.target,
                context="target",
                digest=domains.target_digest,
                source=f"{plan.target} shift={plan.shift}",
            ),
        ),
        description=(
            f"Strategy **{arm.label}** adapts a `{plan.backbone}` base, {history}, to {target} with "
            f"{plan.drawn_images} labelled images{in_folds} (seed {seed}).{tuned}"
        ),
    )


def _pair_id(experiment: Experiment, seed: int) -> str:
    """Return what runs share that use the same images in the same way: the data, and what trains and is evaluated."""
    domains, request = experiment.domains, experiment.request
    start = domains.fingerprint[:12]
    if experiment.plan.protocol == OVERLAPPING:
        return f"{start}-{seed}"
    sha = hashlib.sha256()
    for fit in find_fits(request, domains, seed):
        evaluated = () if fit.evaluated is None else fit.evaluated.tolist()
        sha.update(f"{sorted(fit.train.tolist())} {list(evaluated)}".encode())
    return f"{start}-{sha.hexdigest()[:12]}"


def adapter_card(
    experiment: Experiment,
    base: Base,
    *,
    arm: Arm,
    init_seed: int,
    tensors: Iterable[str],
    temperature: float | None = None,
) -> dict[str, Any]:
    """Return the card of an adapter file; `tensors` are the names of the tensors in it.

    `temperature` is that of a calibrated model.
    """
    domains = experiment.domains
    calibrated = {} if temperature is None else {"temperature": temperature}
    return calibrated | {
        "adaptkit_version": __version__,
        "strategy": arm.strategy,
        "options": dict(arm.options),
        "targets": changed_layers(tensors, base.state),
        "new_head": arm.new_head,
        "init_seed": init_seed,
        "base_fingerprint": base.fingerprint,
        "backbone": experiment.request.settings.backbone,
        "backbone_options": dict(experiment.request.backbone_options),
        "channels": domains.channels,
        "size": domains.size,
        "classes": list(domains.classes),
        "preprocessing": experiment.preprocessing(base.state),
    }


def changed_layers(tensors: Iterable[str], base: Iterable[str]) -> list[str]:
    """Return the names of the base's layers that an adapter trains or wraps.

    `tensors` and `base` are the names of the tensors of both. A tensor outside all layers, such as a class token, is
    returned under its own name.
    """
    layers = {name.rpartition(".")[0] for name in base}
    changed: dict[str, None] = {}
    for name in tensors:
        plain = name.replace(".base_layer.", ".")
        parts = plain.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        changed[next((prefix for prefix in prefixes if prefix in layers), plain)] = None
    return sorted(changed)
