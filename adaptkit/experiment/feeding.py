"""Feed models with the experiment's images: training views, test sets, and the features that runs share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from adaptkit.cache import cache_folder
from adaptkit.data.stored import held
from adaptkit.data.views import Views, views_of
from adaptkit.experiment.preparation import Experiment, draw_target
from adaptkit.seeds import derive_seed
from adaptkit.training.evaluation import computing, predict_logits
from adaptkit.training.feature_files import FeatureFiles
from adaptkit.training.features import MEMORY_LIMIT, FeatureStore, ImageSet, Value
from adaptkit.training.passes import DividedPasses, Passes, Test, WholePasses
from adaptkit.training.prefix import Division, divide
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import freeze, set_train_mode

#: images on which a division is tried
TRIED = 5


@dataclass(frozen=True)
class Feeding:
    """The images of an experiment, and whether features of frozen layers are computed once (`reuse`) or every time."""

    experiment: Experiment
    store: FeatureStore
    tests: dict[str, Test]
    reuse: bool

    @classmethod
    def of(cls, experiment: Experiment, reuse: bool) -> Feeding:
        """Return the feeding of an experiment with an empty store."""
        digests = {"clean": experiment.domains.source_digest, "shifted": experiment.domains.target_digest}
        tests = {
            name: Test(ImageSet(f"{name}/{digests[name]}", Value(pixels, 0.0), lasting=True), labels)
            for name, (pixels, labels) in experiment.tests.items()
        }
        precision = experiment.request.settings.precision
        if reuse:
            files = FeatureFiles(cache_folder() / "features", writable=experiment.processes.leads)
            store = FeatureStore(precision, files, MEMORY_LIMIT)
        else:
            store = FeatureStore(precision, None, limit=0)
        return cls(experiment, store, tests, reuse)

    def expect(self, model: nn.Module) -> None:
        """Let the store keep, when they come by, the features that this adapted model reads."""
        if self.reuse:
            set_train_mode(model, self._adapt_statistics)
            division = self._division(model)
            if division is not None:
                self.store.wanted |= {division.digests[node] for node in division.cut}

    def passes(self, model: nn.Module, seed: int, *, whole: bool = False, judged: bool = False) -> Passes:
        """Return how an adapted model of this seed is run: divided where that is possible and wanted, else whole.

        The tests are those of each epoch, or all that a trained model is `judged` by.
        """
        each_epoch = self.experiment.request.settings.evaluate_shifted == "epoch"
        tests = {name: test for name, test in self.tests.items() if judged or each_epoch or name == "clean"}
        set_train_mode(model, self._adapt_statistics)
        division = self._division(model) if self.reuse and not whole else None

        def views(epoch: int) -> ImageSet:
            return self.views(seed, epoch)

        if division is None:
            return WholePasses(model, views, tests)
        return DividedPasses(division, self.store, views, tests)

    def views(self, seed: int, epoch: int) -> ImageSet:
        """Return the training images of a seed as an epoch sees them; without shifts they are the same in each."""
        request, domains, device = self.experiment.request, self.experiment.domains, self.experiment.device
        shifts = (*request.shifts, *request.augmentations)

        def make() -> Views:
            view_seed = derive_seed(derive_seed(seed, "order"), f"views {epoch}")
            drawn = held(domains.pool.take(draw_target(request, domains, seed)))
            # A stream of its own: whether views are made or remembered, training draws the same numbers.
            with RandomStream(view_seed):
                return views_of(drawn.pixels, shifts, view_seed).to(device)

        return self.store.images(f"views {seed}/{epoch if shifts else 'fixed'}", make)

    def forget(self, seed: int) -> None:
        """Drop the training images of a seed and their features."""
        self.store.forget(f"views {seed}/")

    def base_logits(self, model: nn.Module) -> dict[str, Tensor]:
        """Return what the base says of the test sets: the features of a model that is frozen as a whole."""
        precision = self.experiment.request.settings.precision
        freeze(model)
        set_train_mode(model)
        division = self._division(model) if self.reuse else None
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

    def _division(self, model: nn.Module) -> Division | None:
        device, precision = self.experiment.device, self.experiment.request.settings.precision
        images = self.experiment.some(TRIED)
        return divide(model, images, lambda: computing(device, precision)) if len(images) == TRIED else None
