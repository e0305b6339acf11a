"""The base run: train the base, or find it in the cache, and see that this store has a run of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from adaptkit.backbones.structure import find_head
from adaptkit.data.domains import Domains
from adaptkit.data.views import Views
from adaptkit.errors import BASE_HINT, RunFailed, lacks_memory
from adaptkit.events import Epoch, Predictions, RunInput, RunResult, RunStart
from adaptkit.experiment.base_cache import (
    Base,
    base_lock,
    build_model,
    make_room,
    mark_used,
    sound_base,
    store_base,
    write_base,
)
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.recovery import Recovery, RunRecovery, kept_while
from adaptkit.names import BASE_FINGERPRINT_TAG, BASE_FOLDER, KIND_TAG, PROCESSES_TAG, RECIPE_KEY_TAG
from adaptkit.plugins.manager import Plugins
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Request
from adaptkit.system.folders import LIMIT_VARIABLE, cache_limit, shown_size
from adaptkit.system.signals import origin
from adaptkit.training.checkpoints import Checkpoint, Keep
from adaptkit.training.evaluation import predict_logits
from adaptkit.training.frozen.features import ImageSet, Value
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import BytePasses, Test, on_device
from adaptkit.training.trainable import freeze

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker


def train_base(
    request: Request,
    domains: Domains,
    model: nn.Module,
    clean: tuple[Views, Tensor],
    start: Checkpoint | None = None,
    keep: Keep | None = None,
) -> Iterator[Epoch]:
    """Train the prepared model on the source, in place, yielding each epoch; `clean` is the clean test set on the
    device. Training goes on from `start`, and each epoch's checkpoint is given to `keep`.
    """
    settings = request.settings
    device = clean[1].device
    test = Test(ImageSet("clean", Value(clean[0], 0.0)), clean[1])
    passes = BytePasses(model, on_device(domains.source.pixels, device), device, {"clean": test})
    recipe = Recipe(
        epochs=settings.base.epochs,
        batch_size=settings.base.batch_size,
        lr=settings.base.lr,
        order_seed=derive_seed(settings.base.seed, "base order"),
        precision=settings.precision,
        checkpointing=settings.checkpointing,
        lr_option="--set base.lr=",
    )
    # A backbone may come with frozen parameters of its own.
    trained = list(model.parameters())
    if settings.base.mode == "probe":
        trained = [parameter for parameter in trained if parameter.requires_grad]
    groups, labels = [{"params": trained}], domains.source.labels.to(device)
    yield from fit(model, groups, passes, labels, recipe, start=start, keep=keep)


def prepare_base(request: Request, model: nn.Module) -> None:
    """Choose what is trained of the base: where it is only probed, the head alone."""
    if request.settings.base.mode == "probe":
        freeze(model)
        for parameter in find_head(model.head).parameters():  # type: ignore[arg-type]
            parameter.requires_grad_(True)


def obtain_base(
    experiment: Experiment,
    plugins: Plugins,
    tracker: Tracker | None,
    refresh: bool,
    notice: Callable[[str], None],
    keeping: Recovery | None = None,
) -> tuple[Base, str | None, bool]:
    """Return the base, its run id in this store, and whether it came from the cache."""
    run = _describe_base(experiment)
    cache_limit()  # of a wrong one the user hears before anything is trained

    def waiting() -> None:
        notice("waiting for another process that trains this base")

    with base_lock(experiment.base_key, waiting):
        base = None if refresh else sound_base(experiment.base_key)
        mark_used(experiment.base_key)
        if base is None:
            base = _train_base(experiment, plugins, run, keeping)
            if removed := make_room(experiment.base_key):
                what = "the base that was" if len(removed) == 1 else f"the {len(removed)} bases that were"
                notice(
                    f"{what} used longest ago left the cache ({shown_size(sum(removed))}): "
                    f"{LIMIT_VARIABLE} is {shown_size(cache_limit())}"
                )
            return base, tracker.run_id(run.name) if tracker else None, False
        if tracker is None:
            return base, None, True
        goes_on = keeping is not None and run.name in keeping.resumed
        run_id = None if goes_on else tracker.find_base(base.fingerprint)
        if run_id is None:
            model = experiment.place(base.build(experiment.request, experiment.domains))
            with _base_result(experiment, base, model) as result:
                tracker.record(run, base.epochs, result, model)
            run_id = tracker.run_id(run.name)
        return base, run_id, True


def _train_base(experiment: Experiment, plugins: Plugins, run: RunStart, keeping: Recovery | None) -> Base:
    """Train the base; without a source its pretrained weights, with a new head, are the base."""
    with kept_while(keeping, run, experiment.request.command_text()) as kept:
        return _trained_base(experiment, plugins, run, kept)


def _trained_base(experiment: Experiment, plugins: Plugins, run: RunStart, kept: RunRecovery) -> Base:
    model = experiment.place(build_model(experiment.request, experiment.domains))
    epochs: list[Epoch] = []
    try:
        plugins.notify("adaptkit_run_started", run=run, model=model)
        if experiment.clean is not None:
            prepare_base(experiment.request, model)
            start = kept.start(model)
            epochs += start.epochs if start is not None else ()
            for epoch in filter(kept.lacks, tuple(epochs)):  # kept, but not told: its process died in between
                plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
            given = (experiment.request, experiment.domains, model, experiment.clean, start, kept.keep)
            for epoch in train_base(*given):
                epochs.append(epoch)
                plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
        base = store_base(experiment.base_key, model, tuple(epochs))
        with _base_result(experiment, base, model) as result:
            plugins.notify("adaptkit_run_ended", run=run, result=result, model=model)
        return base
    except BaseException as raised:
        error = origin(raised)
        if lacks_memory(error):
            error = RunFailed(BASE_HINT)
        plugins.notify("adaptkit_run_failed", run=run, error=error)
        if error is not raised:
            raise error from raised
        raise


@contextmanager
def _base_result(experiment: Experiment, base: Base, model: nn.Module) -> Iterator[RunResult]:
    """Lend what there is to tell of a base; its files exist as long."""
    domains, request = experiment.domains, experiment.request
    predictions, samples = {}, {}
    if experiment.clean is not None and domains.clean_test is not None:
        logits = predict_logits(model, experiment.clean[0], request.settings.precision)
        predictions["clean"] = Predictions.of(logits, domains.clean_test.index, domains.clean_test.labels)
        samples["clean"] = experiment.clean[0][:8].cpu()
    card = {
        "fingerprint": base.fingerprint,
        "key": base.key,
        "backbone": request.settings.backbone,
        "backbone_options": dict(request.backbone_options),
        "channels": domains.channels,
        "size": domains.size,
        "classes": list(domains.classes),
        "preprocessing": experiment.preprocessing,
        "new_head": experiment.clean is None,
    }
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
        files = write_base(Path(folder), base, card)
        yield RunResult(
            metrics={},
            epochs=base.epochs,
            predictions=predictions,
            classes=domains.classes,
            config=request.config_text(request.base_params()),
            files={f"{BASE_FOLDER}/{name}": path for name, path in files.items()},
            samples=samples,
            tags={BASE_FINGERPRINT_TAG: base.fingerprint},
        )


def _describe_base(experiment: Experiment) -> RunStart:
    plan = experiment.plan
    has_source = experiment.clean is not None
    inputs: tuple[RunInput, ...] = ()
    if has_source:
        inputs = (RunInput(plan.dataset, "source", experiment.domains.source_digest, plan.dataset),)
        story = f"trained on {plan.source_images} images of `{plan.dataset}`"
    else:
        story = f"with a new head for {len(plan.classes)} classes, untrained"
    return RunStart(
        kind="base",
        name=f"base {plan.backbone} {plan.dataset if has_source else f'for {plan.target}'}",
        params=experiment.request.base_params() | experiment.backbone_facts,
        tags={
            KIND_TAG: "base",
            RECIPE_KEY_TAG: experiment.base_key,
            PROCESSES_TAG: "1",  # earlier versions shared a run out
        },
        inputs=inputs,
        description=f"The base: `{plan.backbone}` {story}.",
    )
