"""The inputs of an experiment's models: training views, test sets, and features that runs share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptkit.contracts import Shift
from adaptkit.data.pixels import held
from adaptkit.data.protocols import Fit
from adaptkit.data.views import Views, views_of
from adaptkit.experiment.prepare import Experiment, draw_target, find_fits
from adaptkit.seeds import derive_seed
from adaptkit.system.folders import cache_folder, cache_limit
from adaptkit.training.evaluation import computing, predict_logits
from adaptkit.training.fitted import fitted_head
from adaptkit.training.frozen.division import Division, divide
from adaptkit.training.frozen.features import DISK_LIMIT, MEMORY_LIMIT, FeatureFiles, FeatureStore, ImageSet, Value
from adaptkit.training.loop import VALIDATION
from adaptkit.training.passes import PLAIN_VIEWS, DividedPasses, FoldPasses, Passes, Test, WholePasses
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import freeze, set_train_mode

#: number of images with which the division of a model is checked
TRIED = 5


@dataclass(frozen=True)
class Probe:
    """The base in evaluation mode, and its division before the head; None if it cannot be divided there."""

    model: nn.Module
    division: Division | None


@dataclass(frozen=True)
class Route:
    """How a model runs over images: its trained part, or the `whole` model.

    With a `probe`, only the head of the model differs from that of the base.
    """

    whole: bool = False
    probe: Probe | None = None


@dataclass(frozen=True)
class ModelInputs:
    """The images of an experiment; with `reuse`, features of frozen layers are computed once."""

    experiment: Experiment
    store: FeatureStore
    tests: dict[str, Test]
    reuse: bool

    @classmethod
    def of(cls, experiment: Experiment, reuse: bool) -> ModelInputs:
        """Return the inputs of an experiment, with an empty feature store."""
        digests = {"clean": experiment.domains.source_digest, "shifted": experiment.domains.target_digest}
        tests = {
            name: Test(ImageSet(f"{name}/{digests[name]}", Value(pixels, 0.0), lasting=True), labels)
            for name, (pixels, labels) in experiment.tests.items()
        }
        precision = experiment.request.settings.precision
        if reuse:
            limit = min(DISK_LIMIT, cache_limit())
            files = FeatureFiles(cache_folder() / "features", limit)
            store = FeatureStore(precision, files, MEMORY_LIMIT)
        else:
            store = FeatureStore(precision, None, limit=0)
        return cls(experiment=experiment, store=store, tests=tests, reuse=reuse)

    def expect(self, division: Division | None) -> None:
        """Mark the features at the cut of a model, so that the store keeps them once they are computed."""
        if division is not None:
            self.store.wanted |= {division.digests[node] for node in division.cut}

    def division_of(self, model: nn.Module) -> Division | None:
        """Return the division of an adapted model, which is put into training mode; None if it runs whole."""
        set_train_mode(model, self._adapt_statistics)
        return self._division(model, self.experiment.first_images(TRIED)) if self.reuse else None

    def probe(self, model: nn.Module) -> Probe:
        """Return a copy of the base, of which strategies replace the head, and its division."""
        freeze(model)
        for parameter in model.get_submodule(fitted_head(model)).parameters():
            parameter.requires_grad_(True)
        model.eval()
        return Probe(model, self._division(model, self.experiment.first_images(TRIED)) if self.reuse else None)

    def fits(self, seed: int) -> tuple[Fit, ...]:
        """Return the trainings of a run with this seed."""
        return find_fits(self.experiment.request, self.experiment.domains, seed)

    def passes(
        self, model: nn.Module, seed: int, *, fit: Fit, route: Route = Route(), all_tests: bool = False
    ) -> Passes:
        """Return the inputs of an adapted model: images, or features of its frozen part.

        The training images are those of one fit. The test sets are those that are evaluated after each epoch, or with
        `all_tests` all of them.
        """
        each_epoch = self.experiment.request.settings.evaluate_shifted == "epoch"
        tests = {name: test for name, test in self.tests.items() if all_tests or each_epoch or name == "clean"}
        passes = self.over(
            model,
            lambda epoch: self.views(seed, epoch),
            labels=self.labels(seed),
            tests=tests,
            tried=self.experiment.first_images(TRIED),
            route=route,
        )
        if fit.evaluated is None:
            return passes
        return FoldPasses(passes, self.rows(seed, fit.train), {"shifted": fit.evaluated})

    def over(
        self,
        model: nn.Module,
        views: Callable[[int], ImageSet],
        *,
        labels: Tensor,
        tests: Mapping[str, Test],
        tried: Tensor,
        route: Route = Route(),
        charged: set[str] | None = None,
    ) -> Passes:
        """Return the inputs of a model for these training views and test sets.

        `tried` are a few images on which the division into frozen and trained part is checked. `charged` are the names
        of images whose features other passes of the same run have computed and counted.
        """
        if route.probe is not None:
            division = route.probe.division and route.probe.division.of(model.eval())
        else:
            set_train_mode(model, self._adapt_statistics)
            division = self._division(model, tried) if self.reuse and not route.whole else None
        if division is None:
            return WholePasses(model, views, labels=labels, tests=tests)
        charged = set() if charged is None else charged
        return DividedPasses(division, self.store, views=views, labels=labels, tests=tests, charged=charged)

    def tuning_passes(self, model: nn.Module, seed: int, *, rows: Tensor, route: Route, charged: set[str]) -> Passes:
        """Return inputs for a trial of a tuning: all training images of a seed.

        The test set `validation` has the same images in the same order, without augmentation. `rows` are the positions
        of the images of one fit.
        """
        labels, images = self.labels(seed), self._validation_views(seed)
        return self.over(
            model,
            lambda epoch: self.views(seed, epoch),
            labels=labels,
            tests={VALIDATION: Test(images, labels)},
            tried=images.value.tensor[rows[:TRIED]],
            route=route,
            charged=charged,
        )

    def _validation_views(self, seed: int) -> ImageSet:
        request = self.experiment.request
        if not (request.shifts or request.augmentations):
            return self.views(seed, 1)
        drawn = functools.partial(draw_target, request, self.experiment.domains, seed)
        view_seed = derive_seed(derive_seed(seed, "draw"), "validation views")
        return self.drawn_views(f"views {seed}/validation", drawn, shifts=request.shifts, view_seed=view_seed)

    def rows(self, seed: int, positions: Tensor) -> Tensor:
        """Return where images at these positions in the pool are among the training images of a seed."""
        drawn = draw_target(self.experiment.request, self.experiment.domains, seed)
        places = torch.empty(len(self.experiment.domains.pool), dtype=torch.int64)
        places[drawn] = torch.arange(len(drawn))
        return places[positions]

    def labels(self, seed: int) -> Tensor:
        """Return the labels of the training images of a seed, on the device."""
        drawn = draw_target(self.experiment.request, self.experiment.domains, seed)
        return self.experiment.domains.pool.labels[drawn].to(self.experiment.device)

    def views(self, seed: int, epoch: int) -> ImageSet:
        """Return the training images of a seed in an epoch; without shifts and augmentations all epochs share them.

        Without augmentations, `PLAIN_VIEWS` are those of the first epoch.
        """
        request = self.experiment.request
        if epoch == PLAIN_VIEWS and not request.augmentations:
            epoch = 1
        shifts = request.shifts if epoch == PLAIN_VIEWS else (*request.shifts, *request.augmentations)
        if not shifts and self._is_whole_pool(seed):
            return self.tests["shifted"].images  # so that the features of all images are computed once
        drawn = functools.partial(draw_target, request, self.experiment.domains, seed)
        view_seed = derive_seed(derive_seed(seed, "order"), f"views {epoch}")
        name = f"views {seed}/{epoch if shifts else 'fixed'}"
        return self.drawn_views(name, drawn, shifts=shifts, view_seed=view_seed)

    def _is_whole_pool(self, seed: int) -> bool:
        """Return whether the training images of a seed are the target test images, in the same order."""
        domains = self.experiment.domains
        if not domains.is_pool_tested or self.experiment.request.settings.shots is not None:
            return False
        # Images whose group has images with every value of a column that is held out never train.
        return domains.held_out is None or len(self.labels(seed)) == len(domains.pool)

    def drawn_views(
        self, name: str, drawn: Callable[[], Tensor], *, shifts: Sequence[Shift], view_seed: int
    ) -> ImageSet:
        """Return shifted images of the pool at the positions `drawn()`; the store keeps them under their name."""

        def make() -> Views:
            images = held(self.experiment.domains.pool.take(drawn()))
            # In its own stream: training draws the same numbers whether views are made now or were stored.
            with RandomStream(view_seed):
                return views_of(images.pixels, shifts, view_seed).to(self.experiment.device)

        return self.store.images(name, make)

    def forget(self, seed: int) -> None:
        """Remove the training images of a seed and their features from memory."""
        self.store.forget(f"views {seed}/")

    def base_logits(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the base's logits on each test set; they are cached as the features of an entirely frozen model."""
        precision = self.experiment.request.settings.precision
        freeze(model)
        set_train_mode(model)
        division = self._division(model, self.experiment.first_images(TRIED)) if self.reuse else None
        logits = {}
        for name, test in self.tests.items():
            if division is None or not self.store.fits(division, test.images):
                logits[name] = predict_logits(model, test.images.value.tensor, precision)
            else:
                (value,) = self.store.features(division, test.images)
                assert isinstance(value.tensor, Tensor)
                logits[name] = value.tensor.float()
        return logits

    @property
    def _adapt_statistics(self) -> bool:
        return self.experiment.request.settings.bn == "adapt"

    def _division(self, model: nn.Module, images: Tensor) -> Division | None:
        device, precision = self.experiment.device, self.experiment.request.settings.precision
        return divide(model, images, lambda: computing(device, precision)) if len(images) == TRIED else None
