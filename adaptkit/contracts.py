"""What plugins provide, and the records that runs hand to whoever watches them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from adaptkit.sweeps.engines.tasks import Ended, Task, Tell
    from adaptkit.sweeps.engines.worker import Work


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
      call `plugins.require_files(...)`: a plugin that is a Python object cannot be loaded there.
    - `connect()` returns a context manager that is entered before anything is trained and left after the last trial.
      It raises BadInput if the engine's machines cannot be reached, and gives the names of those that are not this one.
    - `unavailable` is the reason why the engine is listed but cannot be used, such as a package that is not installed.
    """

    name: ClassVar[str]

    def start(self, work: Work) -> AbstractContextManager[TrialRunner]:
        """Return a context manager that starts workers, and stops them and the trials that still run at its end.

        `work.worker()` is a worker in this process. Other processes receive `work.packed(...)`, a byte string, and call
        `adaptkit.sweeps.engines.worker.open_worker`.
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
