"""Feed models with the experiment's images: training views, test sets, and the features that runs share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from adaptkit.contracts import Shift
from adaptkit.data.pixels import held
from adaptkit.data.views import Views, views_of
from adaptkit.experiment.prepare import Experiment, draw_target
from adaptkit.seeds import derive_seed
from adaptkit.system.folders import cache_folder, cache_limit
from adaptkit.training.evaluation import computing, predict_logits
from adaptkit.training.frozen.division import Division, divide
from adaptkit.training.frozen.features import DISK_LIMIT, MEMORY_LIMIT, FeatureFiles, FeatureStore, ImageSet, Value
from adaptkit.training.passes import DividedPasses, Passes, Test, WholePasses
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import freeze, set_train_mode

#: images on which a division is tried
TRIED = 5


@dataclass(frozen=True)
class ModelInputs:
    """The images of an experiment, and whether features of frozen layers are computed once (`reuse`) or every time."""

    experiment: Experiment
    store: FeatureStore
    tests: dict[str, Test]
    reuse: bool

    @classmethod
    def of(cls, experiment: Experiment, reuse: bool) -> ModelInputs:
        """Return the feeding of an experiment with an empty store."""
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
        return cls(experiment, store, tests, reuse)

    def expect(self, model: nn.Module) -> None:
        """Let the store keep, when they come by, the features that this adapted model reads."""
        if self.reuse:
            set_train_mode(model, self._adapt_statistics)
            division = self._division(model, self.experiment.some(TRIED))
            if division is not None:
                self.store.wanted |= {division.digests[node] for node in division.cut}

    def passes(self, model: nn.Module, seed: int, *, whole: bool = False, judged: bool = False) -> Passes:
        """Return how an adapted model of this seed is run: divided where that is possible and wanted, else whole.

        The tests are those of each epoch, or all that a trained model is `judged` by.
        """
        each_epoch = self.experiment.request.settings.evaluate_shifted == "epoch"
        tests = {name: test for name, test in self.tests.items() if judged or each_epoch or name == "clean"}
        return self.over(model, lambda epoch: self.views(seed, epoch), tests, self.experiment.some(TRIED), whole=whole)

    def over(
        self,
        model: nn.Module,
        views: Callable[[int], ImageSet],
        tests: Mapping[str, Test],
        tried: Tensor,
        *,
        whole: bool = False,
    ) -> Passes:
        """Return how a model is run over these views and tests; `tried` are a few images to try a division on."""
        set_train_mode(model, self._adapt_statistics)
        division = self._division(model, tried) if self.reuse and not whole else None
        if division is None:
            return WholePasses(model, views, tests)
        return DividedPasses(division, self.store, views, tests)

    def views(self, seed: int, epoch: int) -> ImageSet:
        """Return the training images of a seed as an epoch sees them; without shifts they are the same in each."""
        request = self.experiment.request
        shifts = (*request.shifts, *request.augmentations)
        drawn = functools.partial(draw_target, request, self.experiment.domains, seed)
        view_seed = derive_seed(derive_seed(seed, "order"), f"views {epoch}")
        return self.drawn_views(f"views {seed}/{epoch if shifts else 'fixed'}", drawn, shifts, view_seed)

    def drawn_views(self, name: str, drawn: Callable[[], Tensor], shifts: Sequence[Shift], view_seed: int) -> ImageSet:
        """Return images of the pool, at the positions that `drawn()` gives, under shifts; they are kept by name."""

        def make() -> Views:
            images = held(self.experiment.domains.pool.take(drawn()))
            # A stream of its own: whether views are made or remembered, training draws the same numbers.
            with RandomStream(view_seed):
                return views_of(images.pixels, shifts, view_seed).to(self.experiment.device)

        return self.store.images(name, make)

    def forget(self, seed: int) -> None:
        """Drop the training images of a seed and their features."""
        self.store.forget(f"views {seed}/")

    def base_logits(self, model: nn.Module) -> dict[str, Tensor]:
        """Return what the base says of the test sets: the features of a model that is frozen as a whole."""
        precision = self.experiment.request.settings.precision
        freeze(model)
        set_train_mode(model)
        division = self._division(model, self.experiment.some(TRIED)) if self.reuse else None
        logits = {}
        for name, test in self.tests.items():
            if division is None or not self.store.fits(division, test.images):
                logits[name] = predict_logits(model, test.images.value.tensor, precision)
            else:
                (found,) = self.store.features(division, test.images)
                assert isinstance(found.tensor, Tensor)
                logits[name] = found.tensor.float()
        return logits

    @property
    def _adapt_statistics(self) -> bool:
        return self.experiment.request.settings.bn == "adapt"

    def _division(self, model: nn.Module, images: Tensor) -> Division | None:
        device, precision = self.experiment.device, self.experiment.request.settings.precision
        return divide(model, images, lambda: computing(device, precision)) if len(images) == TRIED else None
