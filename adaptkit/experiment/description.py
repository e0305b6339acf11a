"""Describe an adaptation run to whoever watches it: its settings, tags, inputs and a sentence."""

from __future__ import annotations

import torch

from adaptkit.contracts import Run, RunInput
from adaptkit.experiment.base import Base
from adaptkit.experiment.preparation import Experiment
from adaptkit.experiment.sharing import Company
from adaptkit.identity import trial_key
from adaptkit.request import Arm
from adaptkit.seeds import derive_seed


def describe_run(
    experiment: Experiment,
    base: Base,
    base_run_id: str | None,
    arm: Arm,
    seed: int,
    company: Company,
    label: str | None = None,
) -> Run:
    """Return what is known of an adaptation run before it begins; `company` are the experiments beside it then.

    `label` names it, with its seed; by default the strategy and its options do.
    """
    plan, domains = experiment.plan, experiment.domains
    params = experiment.request.run_params(arm, seed) | experiment.backbone_facts
    target = f"`{plan.target}`" + (f" under `{plan.shift}`" if plan.shift != "none" else "")
    tags = {
        "adaptkit.kind": "adaptation",
        "adaptkit.arm": arm.label,
        "adaptkit.starts_at_base": str(getattr(arm.checked, "starts_at_base", True)),
        "adaptkit.pool_images": str(plan.pool_images),
        "adaptkit.drawn_images": str(plan.drawn_images),
        "adaptkit.base_fingerprint": base.fingerprint,
        "adaptkit.data_fingerprint": domains.fingerprint,
        "adaptkit.pair_id": f"{domains.fingerprint[:12]}-{seed}",
        "adaptkit.trial_key": trial_key("adaptation", params, domains.fingerprint, base.fingerprint),
        "adaptkit.timing": "shared" if company.others else "alone",
        "adaptkit.threads": str(torch.get_num_threads()),
        "adaptkit.processes": "1",  # earlier versions shared a run out
        **{f"adaptkit.{purpose}_seed": str(derive_seed(seed, purpose)) for purpose in ("draw", "init", "order")},
    }
    if domains.images_digest is not None:
        tags["adaptkit.images_digest"] = domains.images_digest
    source: tuple[RunInput, ...] = ()
    weights = experiment.backbone_facts.get("backbone.weights_id", "none")
    story = f"with weights `{weights}` and a new head"
    if domains.clean_test is not None:
        source = (RunInput(plan.dataset, "source", domains.source_digest, plan.dataset),)
        story = f"trained on {plan.source_images} images of `{plan.dataset}`"
    if base_run_id:
        tags["adaptkit.base_run_id"] = base_run_id
    return Run(
        kind="adaptation",
        name=f"{label or arm.label} seed={seed}",
        params=params,
        tags=tags,
        inputs=(
            *source,
            RunInput(plan.target, "target", domains.target_digest, f"{plan.target} shift={plan.shift}"),
        ),
        description=(
            f"Strategy **{arm.label}** adapts a `{plan.backbone}` base, {story}, to {target} with {plan.drawn_images} "
            f"labelled images (seed {seed})."
        ),
    )
