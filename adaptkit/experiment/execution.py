"""Run a prepared experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from adaptkit.experiment.adaptation import Stage
from adaptkit.experiment.base import place
from adaptkit.experiment.base_run import obtain_base
from adaptkit.experiment.preparation import Experiment
from adaptkit.outcome import BaseRecord, Outcome
from adaptkit.plugins import Plugins
from adaptkit.training.evaluation import predict_logits, share_right

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker


def execute(
    experiment: Experiment,
    plugins: Plugins,
    tracker: Tracker | None = None,
    *,
    refresh_base: bool = False,
    notice: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Train or find the base, adapt a copy of it with each strategy and seed, and return all results.

    A run that fails for a known reason is a record with its error; the others go on.
    """
    base, base_run_id, cached = obtain_base(experiment, plugins, tracker, refresh_base, notice)
    base_model = place(base.build(experiment.request, experiment.domains), experiment.device)
    precision = experiment.request.settings.precision
    logits = {
        "clean": predict_logits(base_model, experiment.clean[0], precision),
        "shifted": predict_logits(base_model, experiment.shifted[0], precision),
    }
    stage = Stage(experiment, plugins, tracker, base, base_run_id, base_model, logits)
    runs = [stage.run(arm, seed) for seed in experiment.request.settings.seed for arm in experiment.request.arms]
    return Outcome(
        plan=dataclasses.replace(experiment.plan, base_cached=cached),
        base=BaseRecord(
            fingerprint=base.fingerprint,
            run_id=base_run_id,
            cached=cached,
            test_accuracy=share_right(logits["clean"], experiment.clean[1]),
            shifted_accuracy=share_right(logits["shifted"], experiment.shifted[1]),
            epochs=base.epochs,
        ),
        runs=tuple(runs),
        data_fingerprint=experiment.domains.fingerprint,
    )
