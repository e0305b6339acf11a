"""Run a prepared experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from adaptkit.cache import features_allowed
from adaptkit.experiment.adaptation import Stage
from adaptkit.experiment.base_run import obtain_base
from adaptkit.experiment.feeding import Feeding
from adaptkit.experiment.keeping import Keeping
from adaptkit.experiment.preparation import Experiment
from adaptkit.experiment.sharing import Seat
from adaptkit.outcome import BaseRecord, Outcome, RunRecord
from adaptkit.plugins import Plugins
from adaptkit.training.evaluation import share_right

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker


def execute(
    experiment: Experiment,
    plugins: Plugins,
    seat: Seat,
    tracker: Tracker | None = None,
    refresh_base: bool = False,
    feature_cache: bool = True,
    notice: Callable[[str], None] = lambda line: None,
    keeping: Keeping | None = None,
    done: Mapping[str, RunRecord] = {},
) -> Outcome:
    """Train or find the base, adapt a copy of it with each strategy and seed, and return all results.

    A run that fails for a known reason is a record with its error; the others go on. Without `feature_cache`, every
    forward pass is through the whole model. Runs are kept while they are made, if `keeping` says so; those that are
    `done`, by name, are not made again.
    """
    base, base_run_id, cached = obtain_base(experiment, plugins, tracker, refresh_base, notice, keeping)
    base_model = experiment.place(base.build(experiment.request, experiment.domains))
    feeding = Feeding.of(experiment, reuse=feature_cache and features_allowed())
    stage = Stage(experiment, plugins, seat, tracker, feeding, base, base_run_id, base_model, keeping=keeping)
    accuracies = {name: share_right(logits, experiment.tests[name][1]) for name, logits in stage.base_logits.items()}
    runs = []
    for seed in experiment.request.settings.seed:
        for arm in experiment.request.arms:
            known = done.get(f"{arm.label} seed={seed}")
            runs.append(stage.run(arm, seed) if known is None else known)
        feeding.forget(seed)
    return Outcome(
        plan=dataclasses.replace(experiment.plan, base_cached=cached),
        base=BaseRecord(
            fingerprint=base.fingerprint,
            run_id=base_run_id,
            cached=cached,
            test_accuracy=accuracies.get("clean"),
            shifted_accuracy=accuracies.get("shifted"),
            epochs=base.epochs,
        ),
        runs=tuple(runs),
        data_fingerprint=experiment.domains.fingerprint,
    )
