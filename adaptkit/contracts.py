"""What plugins provide, and the records that runs hand to whoever watches them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from adaptkit.sweeps.tasks import Ended, Task, Tell
    from adaptkit.sweeps.worker import Work


class Strategy(Protocol):
    """Decide what is trained.

    A strategy with options is a standard dataclass; its fields are the options. Optional members:
    `lr` (default learning rate, 1e-3 when absent), `starts_at_base` (False if the adapted model does not give the
    base's logits before training), `merge(model)` (fold the adapter into the weights, in place),
    `step_ended(model, step)` (called after each optimizer step, counted from 1), `notices(model)` (lines to tell the
    user before training, given an unadapted model, which is left alone) and `unavailable` (why it is listed, but cannot
    be used here). An option `train_head` says that the head is trained itself: it is true where the head is new.
    """

    name: ClassVar[str]

    def adapt(self, model: nn.Module) -> Iterable[nn.Parameter] | Iterable[dict[str, Any]]:
        """Change the model in place if need be and return the parameters, or optimizer groups, to train."""


class Backbone(Protocol):
    """Build an architecture.

    A class variable `argument` (a word in capitals) says that the name carries one, as in `timm:resnet18`; the instance
    is made with it. A standard dataclass has options, given as `--set backbone.KEY=VALUE`; where there is an argument,
    the first field is that. `--weights` is the option `weights`: `default` for the published ones, `none` for fresh
    ones, else a file. `image_size`, if there is one, is the side in pixels to which pictures without a size of their
    own are brought. `described(channels, size)`, if there is one, returns more facts to record with each run, `mean`
    and `std` among them where the model normalises its images.
    """

    name: ClassVar[str]

    def build(self, channels: int, size: int, classes: int) -> nn.Module:
        """Return a model from float images `[n, channels, size, size]` in 0..1 to logits `[n, classes]`."""


@dataclass(frozen=True)
class Reading:
    """How pictures are read: brought to `size` pixels a side; files that are no pictures are left out if `skip_bad`."""

    size: int
    skip_bad: bool = False


class Dataset(Protocol):
    """Read labelled images. Its name may carry an argument, as a backbone's may.

    A data set whose images have no size of their own has a method `at(reading)` that returns it with a `Reading`; it is
    called before `load`.
    """

    name: ClassVar[str]

    def load(self, data_dir: Path) -> Corpus:
        """Return all images; `data_dir` is where files are kept or downloaded to."""


class Shift(Protocol):
    """Turn source images into target images.

    A dataclass whose single field is the amount written in `--shift name=amount`.
    """

    name: ClassVar[str]

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return shifted copies of float images `[n, c, h, w]` in 0..1, drawing anew for each image."""


class Engine(Protocol):
    """Run the trials of a sweep or a tuning.

    An engine with options is a standard dataclass; its fields are the options, given as `--engine-option KEY=VALUE`.
    `jobs` is the number of trials that the user wants to run at a time, None where the user leaves it to the engine.
    Optional members:

    - `check(jobs=..., device=..., plugins=...)` is called before anything is trained. It raises BadInput if the engine
      cannot run trials here, or not on this device (auto, cpu, cuda or mps). Engines that run trials in other processes
      call `plugins.require_files(...)`: a plugin that is an object of this process cannot be loaded there.
    - `connect()` returns a context manager that is entered before anything is trained and left after the last trial.
      It raises BadInput if the engine's machines cannot be reached, and gives the names of those that are not this one.
    - `unavailable` is the reason why the engine is listed but cannot be used, such as a package that is not installed.
    """

    name: ClassVar[str]

    def start(self, work: Work) -> AbstractContextManager[TrialRunner]:
        """Return a context manager that starts workers, and stops them and the trials that still run at its end.

        `work.worker()` is a worker in this process. Other processes receive `work.packed(...)`, a byte string, and call
        `adaptkit.sweeps.worker.open_worker`.
        """


class TrialRunner(Protocol):
    """The started workers of an engine."""

    def run(self, tasks: Iterable[Task], tell: Tell) -> Iterator[Ended]:
        """Yield each task when it has ended, in any order; call `tell` with events in between.

        Take a task only when a worker is free to run it: the sweep can stop handing them out at any time.
        """


class StoredPixels(Protocol):
    """Images that are kept elsewhere and decoded one at a time, when they are needed.

    Worker processes decode them: an instance must be picklable, and an index must give the same image every time.
    `names`, if there are any, say which image is which by more than its index: the paths of files, for one.
    """

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return `(n, c, h, w)`: the number of images, and the channels and size they are decoded to."""

    def __getitem__(self, index: int) -> Tensor:
        """Return one image, uint8 `[c, h, w]`; an error that is raised here is told with the image's index."""


@dataclass(frozen=True)
class SelectedPixels:
    """Some of the stored images, in the order of the int64 `indices`; none is decoded before it is asked for."""

    stored: StoredPixels
    indices: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the selection."""
        _, channels, height, width = self.stored.shape
        return len(self.indices), channels, height, width

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image of the selection."""
        return self.stored[int(self.indices[index])]


@dataclass(frozen=True)
class Images:
    """Labelled images: `pixels` uint8 `[n, c, h, w]`, `labels` int64 `[n]`, and the name of each class.

    Pixels are a tensor, or stored elsewhere where they would not fit into memory.
    """

    pixels: Tensor | StoredPixels
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Return the images at these indices, in this order; stored ones stay where they are."""
        import torch

        chosen = torch.arange(len(self))[indices]
        pixels = self.pixels
        if isinstance(pixels, torch.Tensor):
            # Copies whole images, where indexing copies byte by byte.
            pixels = pixels.index_select(0, chosen)
        elif isinstance(pixels, SelectedPixels):
            pixels = SelectedPixels(pixels.stored, pixels.indices[chosen])
        else:
            pixels = SelectedPixels(pixels, chosen)
        return Images(pixels, self.labels[chosen], self.classes)


@dataclass(frozen=True)
class Corpus:
    """A data set as published: its images and, where there is one, its official test set.

    `notices` are lines to tell the user before training.
    """

    train: Images
    test: Images | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunInput:
    """A data set that a run reads: `digest` is the sha256 of its content."""

    name: str
    context: str
    digest: str
    source: str


@dataclass(frozen=True)
class Run:
    """A run that is about to begin: `kind` is base, adaptation or tuning; `params` holds every resolved setting."""

    kind: str
    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    inputs: tuple[RunInput, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class Epoch:
    """One epoch, trained and evaluated; `seconds` covers both.

    Accuracies are fractions: on the training images, the clean test (None without a source) and the shifted one (None
    where it is evaluated at the end). A tuning run has that on held-back target images, and none on a test set.
    """

    number: int
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    shifted_accuracy: float | None
    seconds: float
    evaluation_seconds: float
    cumulative_seconds: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class Predictions:
    """What a model and its base say of one test set, as 1-d arrays; `image` indexes the published data set."""

    image: Any
    truth: Any
    predicted: Any
    confidence: Any
    base_predicted: Any | None = None

    @classmethod
    def of(cls, logits: Tensor, image: Tensor, truth: Tensor, base_logits: Tensor | None = None) -> Predictions:
        """Return the predictions in logits `[n, classes]`."""
        confidence, predicted = logits.softmax(1).cpu().max(1)
        base = base_logits.argmax(1).cpu().numpy() if base_logits is not None else None
        return cls(image.numpy(), truth.numpy(), predicted.numpy(), confidence.numpy(), base)

    @property
    def accuracy(self) -> float:
        """Return the fraction of right predictions."""
        return float((self.predicted == self.truth).mean())


@dataclass(frozen=True)
class RunResult:
    """A finished run: final `metrics` by their MLflow names, its epochs, predictions by test set, and files.

    `tags` are those known only at the end; `files` maps artifact paths to local files that exist while the run is
    being reported; `samples` are the first images of each test set, float `[n, c, h, w]`.
    """

    metrics: Mapping[str, float]
    epochs: tuple[Epoch, ...]
    predictions: Mapping[str, Predictions]
    classes: tuple[str, ...]
    config: str
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    samples: Mapping[str, Tensor] = field(default_factory=dict)
