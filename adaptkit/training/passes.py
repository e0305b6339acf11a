"""Ways to run a model over images: the whole model, or only its trained part over features of the frozen part."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adaptkit.contracts import StoredPixels
from adaptkit.data.pixels import as_floats, decoded
from adaptkit.data.views import Views
from adaptkit.training.evaluation import Rows, pass_size, whole
from adaptkit.training.frozen.division import Division
from adaptkit.training.frozen.features import FeatureStore, ImageSet, Value

#: number of an epoch whose training images are not augmented, for heads that are fitted once
PLAIN_VIEWS = 0


@dataclass(frozen=True)
class Test:
    """A fixed test set: its images and their labels, int64 `[n]`, on the model's device."""

    images: ImageSet
    labels: Tensor


class TrainingData(Protocol):
    """The inputs of a network in one epoch of training: `Rows`, or images that are loaded batch by batch."""

    @property
    def network(self) -> Callable[..., Tensor]:
        """Return the network."""

    @property
    def seconds(self) -> float:
        """Return the seconds that it took to make the inputs."""

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the network's arguments for each batch: `parts` are int64 indices on the CPU."""


class Passes(Protocol):
    """The inputs of training and evaluation: for each set of images a network and its arguments."""

    @property
    def labels(self) -> Tensor:
        """Return the labels of the training images, int64 `[n]`, on the model's device."""

    @property
    def tests(self) -> Mapping[str, Test]:
        """Return the test sets that are evaluated after each epoch."""

    @property
    def frozen_prefix(self) -> str:
        """Return the names of the last frozen layers, separated by commas, or `none`."""

    def training(self, epoch: int) -> TrainingData:
        """Return the training images of this epoch, which counts from 1, or of `PLAIN_VIEWS`."""

    def testing(self, name: str) -> Rows:
        """Return a test set's images."""


@dataclass(frozen=True)
class WholePasses:
    """Run the whole model over the images; `views(epoch)` are the training images of an epoch."""

    model: nn.Module
    views: Callable[[int], ImageSet]
    labels: Tensor
    tests: Mapping[str, Test]
    frozen_prefix = "none"

    def training(self, epoch: int) -> Rows:
        """Return this epoch's views of the training images."""
        value = self.views(epoch).value
        return Rows(self.model, (value.tensor,), value.seconds)

    def testing(self, name: str) -> Rows:
        """Return a test set's images."""
        images = self.tests[name].images
        return whole(self.model, images.value.tensor)


def plain_passes(
    model: nn.Module, views: Callable[[int], Views], *, labels: Tensor, test: tuple[Views, Tensor]
) -> WholePasses:
    """Return passes of the whole model over views that are made for each epoch; `test` are images and labels."""

    def timed(epoch: int) -> ImageSet:
        start = time.perf_counter()
        pixels = views(epoch).to(test[0].device)
        return ImageSet(f"views {epoch}", Value(pixels, time.perf_counter() - start))

    tests = {"clean": Test(ImageSet("clean", Value(test[0], 0.0)), test[1])}
    return WholePasses(model, timed, labels=labels, tests=tests)


@dataclass(frozen=True)
class DividedPasses:
    """Run the trained part of a model over the features of its frozen part, which the store computes once.

    The time to compute features counts once in a run, even if the run reads them several times: `charged` holds the
    names of the images whose features were counted.
    """

    division: Division
    store: FeatureStore
    views: Callable[[int], ImageSet]
    labels: Tensor
    tests: Mapping[str, Test]
    charged: set[str] = field(default_factory=set)

    @property
    def frozen_prefix(self) -> str:
        """Return the names of the last frozen layers."""
        return ",".join(str(node.target if node.op == "call_module" else node.name) for node in self.division.cut)

    def training(self, epoch: int) -> Rows:
        """Return the features of this epoch's views of the training images."""
        return self._divided(self.views(epoch))

    def testing(self, name: str) -> Rows:
        """Return the features of a test set's images."""
        return self._divided(self.tests[name].images)

    def _divided(self, images: ImageSet) -> Rows:
        if not self.division.holds():  # a plugin has since changed the trained parameters or added hooks
            return Rows(self.division.model, (images.value.tensor,), images.value.seconds)
        if not self.store.fits(self.division, images):
            return Rows(self._streamed, (images.value.tensor,), images.value.seconds)
        values = self.store.features(self.division, images)
        seconds = 0.0 if images.name in self.charged else max(value.seconds for value in values)
        self.charged.add(images.name)
        tensors = tuple(value.tensor for value in values)
        return Rows(self.division.trained, tensors, seconds, at_once=pass_size(images.value.tensor))

    def _streamed(self, images: Tensor) -> Tensor:
        """Run a batch through both parts, the frozen part without autograd."""
        with torch.no_grad():
            features = self.division.prefix(images)
        logits: Tensor = self.division.trained(*features)
        return logits


@dataclass(frozen=True)
class FoldPasses:
    """A part of the images of other passes: some training images, and some images of test sets.

    `rows` are the positions of the training images, and `evaluated` those of the test images by test set; a test set
    without an entry is evaluated as a whole.
    """

    whole: Passes
    rows: Tensor
    evaluated: Mapping[str, Tensor]

    @property
    def frozen_prefix(self) -> str:
        """Return the names of the last frozen layers."""
        return self.whole.frozen_prefix

    @functools.cached_property
    def labels(self) -> Tensor:
        """Return the labels of the training images."""
        return self.whole.labels[self.rows.to(self.whole.labels.device)]

    @functools.cached_property
    def tests(self) -> Mapping[str, Test]:
        """Return the test sets; their images are whole, their labels are those of the evaluated images."""
        return {name: Test(test.images, self._chosen(name, test.labels)) for name, test in self.whole.tests.items()}

    def training(self, epoch: int) -> TrainingData:
        """Return the training images of this epoch."""
        return FoldData(self.whole.training(epoch), self.rows)

    def testing(self, name: str) -> Rows:
        """Return the evaluated images of a test set."""
        rows = self.whole.testing(name)
        return dataclasses.replace(rows, tensors=tuple(self._chosen(name, tensor) for tensor in rows.tensors))

    def _chosen(self, name: str, values: Any) -> Any:
        if name not in self.evaluated:
            return values
        return values[self.evaluated[name].to(values.device)]


@dataclass(frozen=True)
class FoldData:
    """The training images of a fold; `rows` are their positions among all images."""

    whole: TrainingData
    rows: Tensor

    @property
    def network(self) -> Callable[..., Tensor]:
        """Return the network."""
        return self.whole.network

    @property
    def seconds(self) -> float:
        """Return the seconds that it took to make the inputs."""
        return self.whole.seconds

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the network's arguments for each batch: `parts` are positions among the images of the fold."""
        return self.whole.batches([self.rows[part] for part in parts])


@dataclass(frozen=True)
class ByteRows:
    """Training data from stored images: on the device, or stored elsewhere and decoded in advance."""

    network: nn.Module
    pixels: Tensor | StoredPixels
    device: torch.device
    seconds: float = 0.0

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the float32 images in 0..1 of each part: `parts` are int64 indices on the CPU."""
        for batch in self._batches(parts):
            yield (as_floats(batch),)

    def _batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        if isinstance(self.pixels, Tensor):
            for part in parts:
                yield self.pixels.index_select(0, part.to(self.device))
        else:
            for batch in decoded(self.pixels, parts, pinned=self.device.type == "cuda"):
                yield batch.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class BytePasses:
    """Run the whole model over the same training images in every epoch, without a copy of them as floats."""

    model: nn.Module
    pixels: Tensor | StoredPixels
    labels: Tensor
    tests: Mapping[str, Test]
    frozen_prefix = "none"

    def training(self, epoch: int) -> ByteRows:
        """Return the training images."""
        return ByteRows(self.model, self.pixels, self.labels.device)

    def testing(self, name: str) -> Rows:
        """Return a test set's images."""
        return whole(self.model, self.tests[name].images.value.tensor)


def on_device(pixels: Tensor | StoredPixels, device: torch.device) -> Tensor | StoredPixels:
    """Move pixels in memory to the device; return stored pixels unchanged."""
    return pixels.to(device) if isinstance(pixels, Tensor) else pixels
