"""Obtain the base of an experiment: train it or take it from the cache, and record its run."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from adaptkit.backbones.structure import BY_SOURCE, MEAN, STD, find_head
from adaptkit.data.domains import Domains
from adaptkit.data.pixels import channel_statistics
from adaptkit.data.protocols import class_counts
from adaptkit.data.views import Views, views_of
from adaptkit.errors import BASE_HINT, AdaptkitError, RunFailed, lacks_memory, plugin_fault
from adaptkit.events import Epoch, RunInput, RunResult, RunStart
from adaptkit.experiment.base_cache import (
    Base,
    base_lock,
    build_model,
    make_room,
    mark_used,
    sound_base,
    standardization,
    store_base,
    write_base,
)
from adaptkit.experiment.inputs import TRIED
from adaptkit.experiment.prepare import Experiment
from adaptkit.experiment.recovery import Recovery, RunRecovery, recoverable
from adaptkit.experiment.run_warnings import training_warnings, warning_tags
from adaptkit.names import BASE_FINGERPRINT_TAG, BASE_FOLDER, KIND_TAG, PROCESSES_TAG, RECIPE_KEY_TAG
from adaptkit.plugins.manager import Plugins, is_strict
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Request
from adaptkit.system.folders import LIMIT_VARIABLE, CacheWarning, cache_limit, features_allowed, shown_size
from adaptkit.system.signals import origin
from adaptkit.training.checkpoints import Checkpoint, Keep
from adaptkit.training.evaluation import computing, predict_logits
from adaptkit.training.frozen.division import divide
from adaptkit.training.frozen.features import MEMORY_LIMIT, FeatureStore, ImageSet, Value
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.objective import predictions_of
from adaptkit.training.passes import BytePasses, DividedPasses, Passes, Test, WholePasses, on_device
from adaptkit.training.trainable import freeze, set_train_mode

if TYPE_CHECKING:
    from adaptkit.tracking.tracker import Tracker


@dataclass(frozen=True)
class TrackedBase:
    """A base with the id of its run in the tracking store, if any, and whether it came from the cache."""

    base: Base
    run_id: str | None
    cached: bool


def train_base(
    request: Request,
    domains: Domains,
    model: nn.Module,
    *,
    clean: tuple[Views, Tensor],
    start: Checkpoint | None = None,
    keep: Keep | None = None,
) -> Iterator[Epoch]:
    """Train a base on the source images, in place, and yield each epoch.

    `prepare_base` must have been called before. `clean` is the test set of the source, on the device. Training resumes
    from the checkpoint `start`; `keep` receives the checkpoint of each epoch.
    """
    settings = request.settings
    device = clean[1].device
    tests = {"clean": Test(ImageSet("clean", Value(clean[0], 0.0)), clean[1])}
    passes: Passes | None = None
    if request.base_augmentations:
        passes = _augmented_passes(request, domains, model, tests)
    elif settings.base.mode == "probe":
        passes = _probe_passes(request, domains, model, tests)
    if passes is None:
        pixels = on_device(domains.source.pixels, device)
        passes = BytePasses(model, pixels, labels=domains.source.labels.to(device), tests=tests)
    assert settings.base.lr is not None  # prepare() has chosen it
    recipe = Recipe(
        epochs=settings.base.epochs,
        batch_size=settings.base.batch_size,
        lr=settings.base.lr,
        order_seed=derive_seed(settings.base.seed, "base order"),
        precision=settings.precision,
        checkpointing=settings.checkpointing,
        schedule=settings.base.schedule,
        clip=settings.base.clip,
        lr_option="--set base.lr=",
    )
    # All parameters, also those that the backbone itself has frozen.
    trained = list(model.parameters())
    if settings.base.mode == "probe":
        trained = [parameter for parameter in trained if parameter.requires_grad]
    yield from fit(model, [{"params": trained}], passes, recipe=recipe, start=start, keep=keep)


def _augmented_passes(request: Request, domains: Domains, model: nn.Module, tests: Mapping[str, Test]) -> Passes:
    """Return the inputs of a base whose source images are augmented anew in each epoch."""
    device, seed = tests["clean"].labels.device, derive_seed(request.settings.base.seed, "base views")

    def views(epoch: int) -> ImageSet:
        start = time.perf_counter()
        made = views_of(domains.source.pixels, request.base_augmentations, derive_seed(seed, f"epoch {epoch}"))
        return ImageSet(f"source {epoch}", Value(made.to(device), time.perf_counter() - start))

    return WholePasses(model, views, labels=domains.source.labels.to(device), tests=tests)


def _probe_passes(request: Request, domains: Domains, model: nn.Module, tests: Mapping[str, Test]) -> Passes | None:
    """Return the inputs of a head on frozen layers, whose features are computed once; None if they cannot be."""
    device, precision = tests["clean"].labels.device, request.settings.precision
    views = views_of(domains.source.pixels, (), 0).to(device)
    set_train_mode(model)
    division = divide(model, views[:TRIED], lambda: computing(device, precision)) if len(views) >= TRIED else None
    if division is None or not features_allowed():
        return None
    store = FeatureStore(precision, None, MEMORY_LIMIT)
    images = ImageSet("source", Value(views, 0.0))
    labels = domains.source.labels.to(device)
    return DividedPasses(division, store, views=lambda epoch: images, labels=labels, tests=tests)


def prepare_base(request: Request, domains: Domains, model: nn.Module) -> None:
    """Set the statistics of the source; freeze all layers of a base but its head if `base.mode` is probe."""
    if standardization(request, domains) == BY_SOURCE:
        for name, values in zip((MEAN, STD), channel_statistics(domains.source.pixels), strict=True):
            model.get_buffer(name).copy_(values.view(-1, 1, 1))
    if request.settings.base.mode == "probe":
        freeze(model)
        for parameter in find_head(model.head).parameters():  # type: ignore[arg-type]
            parameter.requires_grad_(True)


def obtain_base(
    experiment: Experiment,
    plugins: Plugins,
    *,
    tracker: Tracker | None = None,
    refresh: bool = False,
    notice: Callable[[str], None] = lambda line: None,
    recovery: Recovery | None = None,
) -> TrackedBase:
    """Return the base from the cache, or train it; in both cases, make sure that the store has a run of it.

    With `refresh`, the base is trained in any case. `recovery` keeps checkpoints of the training.
    """
    run = _describe_base(experiment)
    cache_limit()  # validate the variable now, so that a bad value fails before training

    def waiting() -> None:
        notice("waiting for another process that trains this base")

    with base_lock(experiment.base_key, waiting):
        base = None if refresh else _cached_base(experiment)
        mark_used(experiment.base_key)
        if base is None:
            with recoverable(recovery, run, experiment.request.command_text()) as kept:
                base = _train_and_report(experiment, plugins, run, recovery=kept)
            _evict_bases(experiment.base_key, notice)
            return TrackedBase(base, run_id=tracker.run_id(run.name) if tracker else None, cached=False)
        for warning in base_warnings(experiment, base):
            notice(f"Warning: the base in the cache: {warning}")
        run_id = None if tracker is None else _base_run_id(experiment, base, run, tracker=tracker, recovery=recovery)
        return TrackedBase(base, run_id=run_id, cached=True)


def base_warnings(experiment: Experiment, base: Base) -> tuple[str, ...]:
    """Return a warning for each sign that the training of a base has not learned."""
    domains = experiment.domains
    if not base.epochs or not len(domains.source):  # trials of a sweep do not have the source: the sweep itself warns
        return ()
    counts = class_counts(domains.source.labels, domains.classes)
    return training_warnings(base.epochs, classes=domains.classes, trained=counts)


def _cached_base(experiment: Experiment) -> Base | None:
    """Return the base from the cache, or None with a warning if the backbone computes something else with its weights.

    An entry of an earlier version, without recorded logits, is accepted, and its logits are recorded now.
    """
    request, domains = experiment.request, experiment.domains
    base = sound_base(experiment.base_key)
    if base is not None and base.logits is None:
        base = store_base(experiment.base_key, base.state, base.epochs, request=request, domains=domains)
    if base is None or base.is_unchanged(request, domains):
        return base
    warnings.warn(
        f"backbone {request.settings.backbone} gives other outputs for the weights of its cached base "
        f"{base.fingerprint[:12]} than when that was made: its code has changed, and the base is made again",
        CacheWarning,
        stacklevel=2,
    )
    return None


def _evict_bases(kept: str, notice: Callable[[str], None]) -> None:
    """Remove the least recently used bases from the cache if it exceeds its limit, and notify the user."""
    if removed := make_room(kept):
        bases = "base" if len(removed) == 1 else f"{len(removed)} bases"
        notice(
            f"evicted the least recently used {bases} from the cache ({shown_size(sum(removed))}): "
            f"{LIMIT_VARIABLE} is {shown_size(cache_limit())}"
        )


def _base_run_id(
    experiment: Experiment, base: Base, run: RunStart, *, tracker: Tracker, recovery: Recovery | None
) -> str | None:
    """Return the id of the run of a cached base; record a run if the store has none, or if that run is resumed."""
    is_resumed = recovery is not None and run.name in recovery.resumed
    run_id = None if is_resumed else tracker.find_base(base.fingerprint)
    if run_id is not None:
        return run_id
    model = experiment.place(base.build(experiment.request, experiment.domains))
    with _base_result(experiment, base, model) as result:
        tracker.record(run, base.epochs, result=result, model=model)
    return tracker.run_id(run.name)


def _train_and_report(experiment: Experiment, plugins: Plugins, run: RunStart, *, recovery: RunRecovery) -> Base:
    """Train the base and notify the plugins; without a source, the backbone with a new head is the base."""
    model = experiment.place(build_model(experiment.request, experiment.domains))
    epochs: list[Epoch] = []
    try:
        plugins.notify("adaptkit_run_started", run=run, model=model)
        if experiment.clean is not None:
            prepare_base(experiment.request, experiment.domains, model)
            start = recovery.start(model)
            epochs += start.epochs if start is not None else ()
            for epoch in filter(recovery.is_unreported, tuple(epochs)):
                plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
            for epoch in train_base(
                experiment.request,
                experiment.domains,
                model,
                clean=experiment.clean,
                start=start,
                keep=recovery.keep,
            ):
                epochs.append(epoch)
                plugins.notify("adaptkit_epoch_ended", run=run, epoch=epoch)
        base = store_base(
            experiment.base_key,
            model.state_dict(),
            tuple(epochs),
            request=experiment.request,
            domains=experiment.domains,
        )
        with _base_result(experiment, base, model) as result:
            plugins.notify("adaptkit_run_ended", run=run, result=result, model=model)
        return base
    except BaseException as raised:
        error = origin(raised)
        if lacks_memory(error):
            error = RunFailed(BASE_HINT)
        elif isinstance(error, Exception) and not isinstance(error, AdaptkitError | OSError) and not is_strict():
            backbone = experiment.request.backbone
            error = RunFailed(plugin_fault(raised, type(backbone), f"backbone {experiment.request.settings.backbone}"))
            error.__cause__ = raised
        plugins.notify("adaptkit_run_failed", run=run, error=error)
        if error is not raised:
            raise error from raised
        raise


@contextmanager
def _base_result(experiment: Experiment, base: Base, model: nn.Module) -> Iterator[RunResult]:
    """Yield the result of a base run; its files exist while the context is open."""
    domains, request = experiment.domains, experiment.request
    predictions, samples = {}, {}
    if experiment.clean is not None and domains.clean_test is not None:
        logits = predict_logits(model, experiment.clean[0], request.settings.precision)
        test = domains.clean_test
        predictions["clean"] = predictions_of(
            logits, image=test.index, truth=test.labels, ids=test.ids, groups=test.groups
        )
        samples["clean"] = experiment.clean[0][:8].cpu()
    card = {
        "fingerprint": base.fingerprint,
        "key": base.key,
        "backbone": request.settings.backbone,
        "backbone_options": dict(request.backbone_options),
        "channels": domains.channels,
        "size": domains.size,
        "classes": list(domains.classes),
        "preprocessing": experiment.preprocessing(base.state),
        "new_head": experiment.clean is None,
        "logits": base.logits,
    }
    signs = base_warnings(experiment, base)
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
            tags={BASE_FINGERPRINT_TAG: base.fingerprint, **warning_tags(signs)},
            warnings=signs,
        )


def _describe_base(experiment: Experiment) -> RunStart:
    plan = experiment.plan
    has_source = experiment.clean is not None
    inputs: tuple[RunInput, ...] = ()
    if has_source:
        inputs = (
            RunInput(
                name=plan.dataset,
                context="source",
                digest=experiment.domains.source_digest,
                source=plan.dataset,
            ),
        )
        history = f"trained on {plan.source_images} images of `{plan.dataset}`"
    else:
        history = f"with a new head for {len(plan.classes)} classes, untrained"
    return RunStart(
        kind="base",
        name=f"base {plan.backbone} {plan.dataset if has_source else f'for {plan.target}'}",
        params=experiment.request.base_params() | experiment.backbone_facts,
        tags={
            KIND_TAG: "base",
            RECIPE_KEY_TAG: experiment.base_key,
            PROCESSES_TAG: "1",  # earlier versions could train one run in several processes
        },
        inputs=inputs,
        description=f"The base: `{plan.backbone}` {history}.",
    )
