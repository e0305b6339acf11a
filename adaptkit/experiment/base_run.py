"""The base run: train the base, or find it in the cache, and see that this store has a run of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from adaptkit.contracts import Predictions, Run, RunInput, RunResult
from adaptkit.experiment.base import Base, base_lock, build_model, store_base, stored_base, train_base
from adaptkit.experiment.preparation import Experiment
from adaptkit.plugins import Plugins
from adaptkit.training.evaluation import predict_logits

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker


def obtain_base(
    experiment: Experiment,
    plugins: Plugins,
    tracker: Tracker | None,
    refresh: bool,
    notice: Callable[[str], None],
) -> tuple[Base, str | None, bool]:
    """Return the base, its run id in this store, and whether it came from the cache."""
    run = _describe_base(experiment)

    def waiting() -> None:
        notice("waiting for another process that trains this base")

    with base_lock(experiment.base_key, waiting):
        base = None if refresh else stored_base(experiment.base_key)
        if base is None:
            base = _train_base(experiment, plugins, run)
            return base, tracker.run_id(run) if tracker else None, False
        if tracker is None:
            return base, None, True
        run_id = tracker.find_base(base.fingerprint)
        if run_id is None:
            model = experiment.place(base.build(experiment.request, experiment.domains))
            tracker.record(run, base.epochs, _base_result(experiment, run, base, model), model)
            run_id = tracker.run_id(run)
        return base, run_id, True


def _train_base(experiment: Experiment, plugins: Plugins, run: Run) -> Base:
    model = experiment.place(build_model(experiment.request, experiment.domains))
    epochs = []
    try:
        plugins.notify("adaptkit_run_started", run=run, model=model)
        for epoch in train_base(experiment.request, experiment.domains, model, experiment.clean):
            epochs.append(epoch)
            plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
        base = store_base(experiment.base_key, model, tuple(epochs))
        result = _base_result(experiment, run, base, model)
        plugins.notify("adaptkit_run_ended", run=run, result=result, model=model)
    except BaseException as error:
        plugins.notify("adaptkit_run_failed", run=run, error=error)
        raise
    return base


def _base_result(experiment: Experiment, run: Run, base: Base, model: nn.Module) -> RunResult:
    test = experiment.domains.clean_test
    logits = predict_logits(model, experiment.clean[0], experiment.request.settings.precision)
    predictions = Predictions.of(logits, test.index, test.labels)
    return RunResult(
        metrics={},
        epochs=base.epochs,
        predictions={"clean": predictions},
        classes=experiment.domains.classes,
        config=experiment.request.config_text(experiment.request.base_params()),
        samples={"clean": experiment.clean[0][:8].cpu()},
        tags={"adaptkit.base_fingerprint": base.fingerprint},
    )


def _describe_base(experiment: Experiment) -> Run:
    plan = experiment.plan
    return Run(
        kind="base",
        name=f"base {plan.backbone} {plan.dataset}",
        params=experiment.request.base_params() | experiment.backbone_facts,
        tags={"adaptkit.kind": "base", "adaptkit.recipe_key": experiment.base_key},
        inputs=(RunInput(plan.dataset, "source", experiment.domains.source_digest, plan.dataset),),
        description=f"The base: `{plan.backbone}` trained on {plan.source_images} images of `{plan.dataset}`.",
    )
