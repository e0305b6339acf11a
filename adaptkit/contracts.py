"""Define the interfaces of plugins: strategies, backbones, data sets, readers, shifts, metrics and engines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from torch import Generator, Tensor, dtype, nn

    from adaptkit.data.raw_values import Conversion
    from adaptkit.sweeps.engines.tasks import Ended, Task, Tell
    from adaptkit.sweeps.engines.worker import Work


@dataclass(frozen=True)
class Phase:
    """A phase of training: what gradient descent trains, its share of the steps, and its learning rate.

    `groups` are parameters or optimizer groups. Shares are relative: two phases of share 1 have half of the steps each.
    With `lr` None, the phase has the learning rate of the run.

    Examples
    --------
    >>> from adaptkit import Phase
    >>> Phase([], share=2).share
    2
    """

    groups: Iterable[nn.Parameter] | Iterable[dict[str, Any]]
    share: float = 1.0
    lr: float | None = None


class Step(int):
    """The number of an optimizer step, from 1, with the number of all steps (`total`) and of the epoch, from 1."""

    total: int
    epoch: int

    def __new__(cls, number: int, total: int, epoch: int) -> Step:
        """Return the number of a step."""
        step = super().__new__(cls, number)
        step.total, step.epoch = total, epoch
        return step


class Strategy(Protocol):
    """Choose which parameters of a model are trained.

    A strategy with options is a standard dataclass; its fields are the options. An option `train_head` states that the
    head itself is trained; adaptkit sets it to true if the head is new. In place of `adapt`, a strategy can have

    - `phases(model)`: return several `Phase`, one after the other, each with an optimizer and a schedule of its own;
    - `fit(model, features, labels)`: fit a head without gradient descent.

    Optional members:

    - `lr`: the default learning rate, 1e-3 if it is absent; or one for each kind of backbone, as in `{"plain": 1e-3,
      "batch_norm": 3e-4, "transformer": 1e-4}`: without normalization layers, with BatchNorm, and all others.
    - `starts_at_base`: False if the adapted model does not give the logits of the base before training.
    - `merge(model)`: merge the adapter into the weights, in place.
    - `loss(model, images, labels, logits)`: the loss of a batch, a scalar tensor; without it, the cross-entropy.
    - `batch(images, labels, generator)`: other images and labels for a batch, before the forward pass. Labels are class
      indices `[n]` or probabilities `[n, classes]`; random numbers come from the generator, on the CPU.
    - `step_ended(model, step)`: called after each optimizer step with its number, a `Step`; the first step is 1.
    - `state_dict()` and `load_state_dict(state)`: tensors and plain values that `step_ended` changes, so that
      interrupted runs can resume.
    - `needs_source`: True if the head of the base must be trained, which needs a source.
    - `finish(model, base)`: change the trained parameters once, after training. `base` is a copy of the base.
    - `notices(model)`: messages for the user before training. It receives a model that is not adapted yet, and must
      not change it.
    - `unavailable`: the reason why the strategy is listed but cannot be used.
    """

    name: ClassVar[str]

    def adapt(self, model: nn.Module) -> Iterable[nn.Parameter] | Iterable[dict[str, Any]]:
        """Change the model in place if necessary, and return the parameters or optimizer groups to train."""


class Backbone(Protocol):
    """Build a model.

    A backbone with options is a standard dataclass; its fields are the options, given as `--set backbone.KEY=VALUE`.
    The option `weights` is also set by `--weights`: `default` for published weights, `none` for random weights, or a
    file. Optional members:

    - `argument`: a word in capitals, if the name takes an argument as in `timm:resnet18`. The class is called with the
      argument; in a dataclass, the argument is the first field.
    - `image_size`: the side in pixels to which images are resized if the data set has no fixed size.
    - `described(channels, size)`: returns further facts to record with each run, including `mean` and `std` if the
      model normalises its images.
    """

    name: ClassVar[str]

    def build(self, channels: int, size: int, classes: int) -> nn.Module:
        """Return a model from float images `[n, channels, size, size]` in 0..1 to logits `[n, classes]`."""


@dataclass(frozen=True)
class Raster:
    """The values in an image file: `values` `[bands, h, w]`, or `[h, w]`, of any integer or float type.

    `missing` is True where a value is missing, with the shape of the values; NaN and infinite values are missing in any
    case. `bands` are the names of the bands, if the file names them.
    """

    values: NDArray[Any]
    missing: NDArray[numpy.bool_] | None = None
    bands: tuple[str, ...] | None = None


class Reader(Protocol):
    """Decode an image file to its raw values.

    `suffixes` are the ends of the names of its files in lower case, such as `.fits` and `.fits.gz`. A reader with
    options is a standard dataclass; its fields are the options, given as `--set NAME.KEY=VALUE`. Worker processes
    decode: instances must be picklable. `unavailable` is the reason why the reader cannot be used, such as a package
    that is not installed.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def read(self, path: Path) -> Raster:
        """Return the values in a file. Any error means that the file cannot be read; the user sees its message."""


@dataclass(frozen=True)
class Reading:
    """How to read images: resize them to `size` x `size` pixels; with `skip_bad`, skip files that are not images.

    `columns` are the names of columns of a table that the user chose, by their meaning: image, label, split, group,
    domain or id. `group` is a regular expression that finds the group of an image in the name of its file. `readers`
    decode the files; without any, the built-in ones. `image` are the settings of raw values that the user chose: fields
    of `adaptkit.data.raw_values.Conversion`.
    """

    size: int
    skip_bad: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    readers: tuple[Reader, ...] = ()
    image: Mapping[str, Any] = field(default_factory=dict)


class Dataset(Protocol):
    """Read labelled images.

    The name may take an argument, as the name of a backbone may. A data set whose images have different sizes has a
    method `at(reading)`, which is called before `load` and returns the data set for this `Reading`.

    Give `Images` the `ids` of the images, and `columns` such as `group` (images that belong together), if known.
    """

    name: ClassVar[str]

    def load(self, data_dir: Path) -> Corpus:
        """Return all images; `data_dir` is the folder for downloaded files."""


class Shift(Protocol):
    """Convert source images to target images.

    A shift is a dataclass; its only field is the amount in `--shift name=amount`.
    """

    name: ClassVar[str]

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Return shifted copies of float images `[n, c, h, w]` in 0..1; draw random numbers for each image."""


class Metric(Protocol):
    """Score the predicted probabilities of a model.

    `title` is its name in text. `unit` is "points" for a fraction, which is shown in percent, otherwise a unit such as
    "nats", or "". A metric is created without arguments.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def score(
        self,
        probabilities: NDArray[numpy.float64],
        truth: NDArray[numpy.int64],
        *,
        weights: NDArray[numpy.float64] | None = None,
        groups: NDArray[numpy.int64] | None = None,
    ) -> float:
        """Return the score of probabilities `[n, classes]` for true classes `[n]`; NaN if it is not defined.

        `weights` `[n]` are the weights of the images, and `groups` `[n]` number their groups; None if there are none.
        """


class Engine(Protocol):
    """Run the trials of a sweep or a tuning.

    An engine with options is a standard dataclass; its fields are the options, given as `--engine-option KEY=VALUE`.
    `jobs` is the number of trials to run at a time, None if the user has not set it.
    Optional members:

    - `check(jobs=..., device=..., plugins=...)` is called before training. It raises BadInput if the engine
      cannot run trials here, or not on this device (auto, cpu, cuda or mps). Engines that run trials in other processes
      call `plugins.require_files(...)`: a plugin that is a Python object cannot be loaded there.
    - `connect()` returns a context manager that is entered before anything is trained and left after the last trial.
      Entering it returns the names of the engine's other machines, or raises BadInput if machines cannot be reached.
    - `unavailable` is the reason why the engine is listed but cannot be used, such as a package that is not installed.
    """

    name: ClassVar[str]

    def start(self, work: Work) -> AbstractContextManager[TrialRunner]:
        """Return a context manager that starts workers, and at its end stops them and their unfinished trials.

        `work.worker()` is a worker in this process. Other processes receive `work.packed(...)`, a byte string, and call
        `adaptkit.sweeps.engines.worker.open_worker`.
        """


class TrialRunner(Protocol):
    """The started workers of an engine."""

    def run(self, tasks: Iterable[Task], tell: Tell) -> Iterator[Ended]:
        """Yield each task when it has ended, in any order; call `tell` with events in between.

        Take a task only when a worker is free to run it: the sweep can end the iterable at any time.
        """


class StoredPixels(Protocol):
    """Images outside of memory that are decoded one by one when they are needed.

    Worker processes decode them: instances must be picklable, and an index must always give the same image. An
    optional attribute `names` holds a name for each image, such as the path of its file. An optional attribute `dtype`
    is the type of the images: torch.uint8, the default, or torch.float32 for values in 0..1.
    """

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return `(n, c, h, w)`: the number of images, their channels, height and width."""

    def __getitem__(self, index: int) -> Tensor:
        """Return one image `[c, h, w]`. If this raises an error, the message to the user names the index."""


@dataclass(frozen=True)
class SelectedPixels:
    """A selection of stored images, in the order of the int64 `indices`; images are decoded when they are needed."""

    stored: StoredPixels
    indices: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the selection."""
        _, channels, height, width = self.stored.shape
        return len(self.indices), channels, height, width

    @property
    def dtype(self) -> dtype:
        """Return the type of the images."""
        import torch

        return getattr(self.stored, "dtype", torch.uint8)

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image of the selection."""
        return self.stored[int(self.indices[index])]

    @property
    def names(self) -> Sequence[str] | None:
        """Return the names of the images of the selection, if the stored images have names."""
        names = getattr(self.stored, "names", None)
        return None if names is None else [names[index] for index in self.indices.tolist()]


@dataclass(frozen=True)
class Images:
    """Labelled images: `pixels` `[n, c, h, w]`, `labels` int64 `[n]`, and the name of each class.

    Pixels are uint8, or float32 in 0..1, with any number of channels: a tensor, or `StoredPixels` if they do not fit
    into memory. `ids` identify the images, such as the paths of their files; no two are equal. `columns` are further
    facts about each image by name, such as a group or a domain: n values each.
    """

    pixels: Tensor | StoredPixels
    labels: Tensor
    classes: tuple[str, ...]
    ids: tuple[str, ...] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Return the images at these indices, in this order, without decoding stored images."""
        import torch

        chosen = torch.arange(len(self))[indices]
        pixels = self.pixels
        if isinstance(pixels, torch.Tensor):
            # This copies whole images; indexing copies byte by byte, which is slower.
            pixels = pixels.index_select(0, chosen)
        elif isinstance(pixels, SelectedPixels):
            pixels = SelectedPixels(pixels.stored, pixels.indices[chosen])
        else:
            pixels = SelectedPixels(pixels, chosen)
        positions = chosen.tolist()
        return Images(
            pixels,
            self.labels[chosen],
            self.classes,
            ids=None if self.ids is None else tuple(self.ids[position] for position in positions),
            columns={name: tuple(values[position] for position in positions) for name, values in self.columns.items()},
        )


@dataclass(frozen=True)
class Corpus:
    """A data set: its images and, if it exists, its official test set.

    `notices` are messages for the user before training. `conversion` says how raw values of files became floats in
    0..1, if they did; it is recorded with the model.
    """

    train: Images
    test: Images | None = None
    notices: tuple[str, ...] = ()
    conversion: Conversion | None = None
