"""Read the files of MNIST and its kin: torchvision reads them too, but takes seconds to be imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptkit.contracts import Corpus

#: torchvision's name of a set, which is that of its folder -> its classes
CLASSES = {
    "MNIST": tuple("0123456789"),
    "FashionMNIST": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
        "Ankle boot",
    ),
    "KMNIST": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
#: images and labels, of the training and the official test set
FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
UNSIGNED_BYTES = 8  # the format's number for this kind of value


def idx_files(name: str) -> list[str]:
    """Return the files of the set of this torchvision name, relative to torchvision's root; none of other sets."""
    return [f"{name}/raw/{file}" for pair in FILES for file in pair] if name in CLASSES else []


def read_corpus(folder: Path, name: str) -> Corpus:
    """Return the images of the set of this torchvision name below `folder`; raise ValueError if a file is damaged."""
    import torch

    from adaptkit.contracts import Corpus, Images

    parts = []
    for images, labels in FILES:
        pixels = torch.from_numpy(_read(folder / name / "raw" / images, dimensions=3)).unsqueeze(1)
        truth = torch.from_numpy(_read(folder / name / "raw" / labels, dimensions=1)).to(torch.int64)
        if len(pixels) != len(truth) or not len(truth) or truth.max() >= len(CLASSES[name]):
            raise ValueError("images and labels do not belong together")
        parts.append(Images(pixels, truth, CLASSES[name]))
    train, test = parts
    return Corpus(train, test)


def _read(path: Path, dimensions: int) -> Any:  # of numpy, which is imported when it is needed
    """Return the uint8 array of an IDX file: two zeros, the kind of value, the dimensions, each size, the values.

    http://yann.lecun.com/exdb/mnist/ describes the format.
    """
    import numpy

    content = bytearray(path.read_bytes())  # torch takes writable memory only
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]) or len(content) < start:
        raise ValueError("not an IDX file of bytes")
    sizes = numpy.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
    return numpy.frombuffer(content, numpy.uint8, offset=start).reshape(sizes)
