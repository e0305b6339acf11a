"""Data sets of torchvision: MNIST, Fashion-MNIST, KMNIST and CIFAR-10, downloaded once into a folder."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from adaptkit.errors import BadInput
from adaptkit.hookspecs import hookimpl
from adaptkit.system.files import expanded
from adaptkit.system.network import ANSWER_WITHIN, answering, bounded_waits

if TYPE_CHECKING:
    from adaptkit.contracts import Corpus, Dataset

#: name of a data set in torchvision, which is also the name of its folder -> its classes
CLASSES = {
    "MNIST": tuple("0123456789"),
    "FashionMNIST": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
        "Ankle boot",
    ),
    "KMNIST": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
#: files of images and labels, of the training and the official test set
FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
UNSIGNED_BYTES = 8  # code of the value type in the IDX format


def idx_files(name: str) -> list[str]:
    """Return the files of a data set in MNIST's format, relative to torchvision's root; an empty list for others."""
    return [f"{name}/raw/{file}" for pair in FILES for file in pair] if name in CLASSES else []


def read_corpus(folder: Path, name: str) -> Corpus:
    """Read a data set in MNIST's format from `folder`; raise ValueError if a file is damaged."""
    import torch

    from adaptkit.contracts import Corpus, Images

    parts = []
    for images, labels in FILES:
        pixels = torch.from_numpy(_read(folder / name / "raw" / images, dimensions=3)).unsqueeze(1)
        truth = torch.from_numpy(_read(folder / name / "raw" / labels, dimensions=1)).to(torch.int64)
        if len(pixels) != len(truth) or not len(truth) or truth.max() >= len(CLASSES[name]):
            raise ValueError("images and labels do not match")
        parts.append(Images(pixels, truth, CLASSES[name]))
    train, test = parts
    return Corpus(train, test)


def _read(path: Path, dimensions: int) -> Any:  # a numpy array; numpy is imported in the function
    """Return the uint8 array of an IDX file: two zeros, value type, number of dimensions, sizes, values.

    http://yann.lecun.com/exdb/mnist/ describes the format.
    """
    import numpy

    content = bytearray(path.read_bytes())  # torch needs writable memory
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]) or len(content) < start:
        raise ValueError("not an IDX file of bytes")
    sizes = numpy.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
    return numpy.frombuffer(content, numpy.uint8, offset=start).reshape(sizes)


class Mnist:
    """MNIST: 70,000 handwritten digits, 28x28 grey.

    10,000 of them are the official test images.
    """

    name: ClassVar[str] = "mnist"

    def load(self, data_dir: Path) -> Corpus:
        """Return the images in `data_dir`, after downloading missing files."""
        return _load(self.name, "MNIST", data_dir)


class FashionMnist:
    """Fashion-MNIST: 70,000 images of clothing, 28x28 grey.

    10,000 of them are the official test images.
    """

    name: ClassVar[str] = "fashion-mnist"

    def load(self, data_dir: Path) -> Corpus:
        """Return the images in `data_dir`, after downloading missing files."""
        return _load(self.name, "FashionMNIST", data_dir)


class Kmnist:
    """KMNIST: 70,000 cursive Japanese characters, 28x28 grey.

    10,000 of them are the official test images.
    """

    name: ClassVar[str] = "kmnist"

    def load(self, data_dir: Path) -> Corpus:
        """Return the images in `data_dir`, after downloading missing files."""
        return _load(self.name, "KMNIST", data_dir)


class Cifar10:
    """CIFAR-10: 60,000 photos of animals and vehicles, 32x32 colour.

    10,000 of them are the official test images.
    """

    name: ClassVar[str] = "cifar10"

    def load(self, data_dir: Path) -> Corpus:
        """Return the images in `data_dir`, after downloading missing files."""
        return _load(self.name, "CIFAR10", data_dir)


def _load(name: str, torchvision_name: str, data_dir: Path) -> Corpus:
    folder = expanded(data_dir).absolute()
    files = idx_files(torchvision_name)
    if not files or not _present(folder, files):
        published = _published(name, torchvision_name)
        files = _files(published)
        if not _present(folder, files):
            _download(name, published, folder=folder, files=files)
    try:
        return read_corpus(folder, torchvision_name) if torchvision_name in CLASSES else _cifar(folder, published)
    except Exception as error:
        # torchvision raises many types of errors: AssertionError, ValueError, RuntimeError, ...
        reason = _line(error) if isinstance(error, OSError) else "damaged or incomplete"
        where = (folder / files[0]).parent
        raise BadInput(
            f"data set {name}: cannot read the files in {where} ({reason}); delete them to download them again"
        ) from None


def _present(folder: Path, files: Sequence[str]) -> bool:
    return all(os.path.isfile(folder / file) for file in files)


def _published(name: str, torchvision_name: str) -> Any:
    try:
        import torchvision.datasets
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torchvision":
            raise BadInput(f"data set {name}: torchvision cannot be imported ({_line(error)})") from None
        raise BadInput(f"data set {name}: torchvision is not installed: pip install torchvision") from None
    except Exception as error:
        # Its compiled part is for another version of torch. The error is a RuntimeError ("operator torchvision::nms
        # does not exist"), an OSError ("undefined symbol"), an ImportError or an AttributeError ("partially
        # initialized").
        import torch

        raise BadInput(
            f"data set {name}: torchvision cannot be imported with torch {torch.__version__} ({_line(error)}); "
            "install the torchvision that matches torch: pip install --force-reinstall torch torchvision"
        ) from None
    return getattr(torchvision.datasets, torchvision_name)


def _files(published: Any) -> list[str]:
    """Return the files that torchvision reads, relative to its root."""
    if hasattr(published, "base_folder"):
        names = [*(name for name, _ in (*published.train_list, *published.test_list)), published.meta["filename"]]
        return [f"{published.base_folder}/{name}" for name in names]
    return [f"{published.__name__}/raw/{name.removesuffix('.gz')}" for name, _ in published.resources]


def _archives(published: Any) -> list[str]:
    """Return the files that torchvision downloads, relative to its root."""
    if hasattr(published, "base_folder"):
        return [published.filename]
    return [f"{published.__name__}/raw/{name}" for name, _ in published.resources]


def _cifar(folder: Path, published: Any) -> Corpus:
    import torch

    from adaptkit.contracts import Corpus, Images

    # numpy 2.4.0-2.4.4 warns about the pickled dtypes in the files of CIFAR, which cannot be changed here.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        parts = [published(root=folder, train=train) for train in (True, False)]
    images = []
    for part in parts:
        pixels = torch.as_tensor(part.data).permute(0, 3, 1, 2).contiguous()  # from [n, h, w, 3]
        labels = torch.as_tensor(part.targets, dtype=torch.int64)
        if len(pixels) != len(labels) or not set(part.targets) <= set(range(len(part.classes))):
            raise ValueError("images and labels do not match")
        images.append(Images(pixels, labels, tuple(part.classes)))
    train, test = images
    return Corpus(train, test)


def _download(name: str, published: Any, *, folder: Path, files: Sequence[str]) -> None:
    """Download into a temporary folder and move complete files, so that no partial file is read."""
    archives = _archives(published)
    where = (folder / files[0]).parent
    advice = f"copy its files to {where}, or use --dataset mnist5k, which needs no network"
    if not _present(folder, archives):
        published = _reachable(published, f"data set {name}: its files are not in {where}", advice)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-download-", dir=folder) as scratch:
            for archive in archives:
                # torchvision uses an existing archive, but overwrites a damaged one. Give it a copy.
                if os.path.isfile(folder / archive):
                    Path(scratch, archive).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(folder / archive, Path(scratch, archive))
            with bounded_waits(), _quietly():
                published(root=scratch, download=True)
            for file in files:
                if not os.path.isfile(folder / file):
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(Path(scratch, file), folder / file)
    except Exception as error:
        # torchvision raises errors of urllib, http, gzip and tarfile in addition to its own.
        raise BadInput(
            f"data set {name}: its files are not in {where}, and the download failed ({_line(error)}); {advice}"
        ) from None


def _reachable(published: Any, problem: str, advice: str) -> Any:
    """Return the torchvision class with only the mirrors that answer; raise BadInput if none answers.

    torchvision tries one mirror after the other without a timeout, which takes minutes behind a firewall.
    """
    mirrors = list(getattr(published, "mirrors", ()))
    addresses = [f"{mirror}{published.resources[0][0]}" for mirror in mirrors] or [published.url]
    answered = answering(addresses, ANSWER_WITHIN)
    if not answered:
        hosts = ", ".join(dict.fromkeys(urlsplit(address).netloc for address in addresses))
        raise BadInput(f"{problem}, and {hosts} does not answer; {advice}")
    if not mirrors:
        return published
    reachable = [mirror for mirror, address in zip(mirrors, addresses, strict=True) if address in answered]
    # The class name is the name of the folder.
    return type(published.__name__, (published,), {"mirrors": reachable})


def _quietly() -> contextlib.AbstractContextManager[object]:
    """Hide the progress bars of torchvision unless standard error is a terminal."""
    visible = sys.stderr is not None and sys.stderr.isatty()
    return contextlib.nullcontext() if visible else contextlib.redirect_stderr(io.StringIO())


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (error.strerror if isinstance(error, OSError) else None) or text


@hookimpl
def adaptkit_datasets() -> list[type[Dataset]]:
    """Return the data sets of torchvision."""
    return [Mnist, FashionMnist, Kmnist, Cifar10]
