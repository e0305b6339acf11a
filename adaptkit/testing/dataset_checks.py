"""Checks of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaptkit.contracts import Corpus, Dataset, Images
from adaptkit.data.loading import load_checked
from adaptkit.errors import BadInput, listed
from adaptkit.testing.outcomes import CheckFailed, NotTried, described, require, watched

#: number of images to decode of a stored data set
DECODED = 8


@dataclass(frozen=True)
class Reading:
    """A data set, created by `create()`, and the folder that it reads from."""

    create: Callable[[], Dataset]
    data_dir: Path

    def corpus(self) -> Corpus:
        """Return the data set; raise NotTried if it cannot be read."""
        try:
            with watched():
                return load_checked(self.create(), self.data_dir)
        except Exception as error:
            raise NotTried("it cannot be read") from error


def reads_its_images(reading: Reading) -> None:
    """Check for square images of uint8 or of floats in 0..1, int64 labels, and a name for each class."""
    try:
        with watched():
            corpus = load_checked(reading.create(), reading.data_dir)
    except BadInput as error:
        raise CheckFailed(described(error)) from error
    except Exception as error:
        raise CheckFailed(f"load() raises {described(error)}") from error
    for images in parts(corpus):
        try:
            pixels_of(images)
        except BadInput as error:
            raise CheckFailed(described(error)) from error


def has_images_of_each_class(reading: Reading) -> None:
    """Check that each class has at least two images."""
    images = reading.corpus().train
    counts = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    few = [name for name, count in zip(images.classes, counts, strict=True) if count < 2]
    require(not few, f"fewer than two images of class {listed(few)}")


def reads_the_same_each_time(reading: Reading) -> None:
    """Check that images and labels are the same, in the same order, when read twice."""
    for ours, theirs in zip(parts(reading.corpus()), parts(reading.corpus()), strict=True):
        same = torch.equal(ours.labels, theirs.labels) and torch.equal(pixels_of(ours), pixels_of(theirs))
        require(same, "reading it twice gives different images or another order")


def changes_no_global_state(reading: Reading) -> None:
    """Check that no global state changes, including random generators."""
    reading.corpus()  # imports happen here, before global state is compared
    before = torch.get_rng_state()
    with watched() as changes:
        reading.create().load(reading.data_dir)
    require(not changes, f"it changes {listed(changes)} for the whole process")
    require(torch.equal(before, torch.get_rng_state()), "it uses torch's global generator")


#: in the order of the output
CHECKS: dict[str, Callable[[Reading], None]] = {
    "reads its images": reads_its_images,
    "has images of each class": has_images_of_each_class,
    "reads the same each time": reads_the_same_each_time,
    "changes no global state": changes_no_global_state,
}


def parts(corpus: Corpus) -> list[Images]:
    """Return the training images and the official test images, if there are any."""
    return [images for images in (corpus.train, corpus.test) if images is not None]


def pixels_of(images: Images) -> Tensor:
    """Return all pixels of a data set in memory, or the first images of a stored data set."""
    if isinstance(images.pixels, Tensor):
        return images.pixels
    return torch.stack([images.pixels[index] for index in range(min(DECODED, len(images)))])
