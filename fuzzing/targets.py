"""What is fuzzed: a function for each grammar and each kind of file, which takes bytes and calls the real reader.

A target lets pass what is expected of hostile input, `BadInput` above all; whatever else it raises is a finding. Each
says how much memory and time one input may take.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import struct
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.errors import BadInput

#: what one input may cost, beyond what the process held before it
SECONDS, BYTES = 10.0, 1 << 30


class TooLong(BaseException):
    """One input took longer than it may: not an Exception, which readers might take for damage."""


@dataclass(frozen=True)
class Target:
    """A reader under test: `run` takes hostile bytes; `corpus` are sound ones to begin with, `words` its grammar's."""

    run: Callable[[bytes], None]
    corpus: tuple[bytes, ...]
    words: tuple[str, ...] = ()


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, memory: int = BYTES) -> Iterator[None]:
    """Bound the time and the memory of a block: beyond them TooLong and MemoryError (or torch's error) are raised."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"still running after {seconds:g} s")

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def refusals(*also: type[Exception]) -> Iterator[None]:
    """Let BadInput pass whose problems are all said, in text that can be printed, and other errors that are named."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadInput as error:
        assert error.problems and all(problem.strip() for problem in error.problems), error.problems
    except also:
        pass


class Choices:
    """Choices made by bytes: the same bytes, the same choices; when they are spent, zeros."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def number(self, below: int) -> int:
        """Return a number from 0 on, below another of at most 256."""
        first, self.left = self.left[:1] or b"\0", self.left[1:]
        return first[0] % below

    def take(self, count: int) -> bytes:
        """Return so many bytes, or those that are left."""
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def text_of(data: bytes) -> str:
    """Return bytes as what a shell hands over: bytes that are no UTF-8 become surrogates."""
    return data.decode(errors="surrogateescape")


def in_memory() -> str | None:
    """Return where files of no worth go: to the worker's own folder, or into memory where there is such a place."""
    return os.environ.get("FUZZING_FOLDER") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


@functools.cache
def scratch() -> Path:
    """Return this process's folder for files."""
    folder = Path(tempfile.mkdtemp(prefix="fuzzing-", dir=in_memory()))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    import atexit

    atexit.register(remove)
    return folder


def file_of(data: bytes, name: str) -> Path:
    """Return a file with these bytes."""
    path = scratch() / name
    path.write_bytes(data)
    return path


@functools.cache
def plugins() -> Any:
    """Return the built-in plugins."""
    from adaptkit.loading import load_plugins

    os.environ["ADAPTKIT_ENTRY_POINTS"] = "0"
    return load_plugins()


# ---- what is typed -------------------------------------------------------------------------------------------------


def options(data: bytes) -> None:
    """Read the arguments of `adaptkit run`, as a shell would divide them, and check the settings."""
    import click

    from adaptkit.cli.run import run
    from adaptkit.cli.settings import collect_layers
    from adaptkit.resolve import resolve

    with refusals(click.UsageError, click.exceptions.Exit):
        text = text_of(data).replace("\0", "")
        try:
            arguments = shlex.split(text)
        except ValueError:
            arguments = text.split()
        # Help is printed, and files are targets of their own.
        left_out = ("-h", "--h", "--config", "--conf", "--plugin", "--pl")
        arguments = [word for word in arguments if not word.startswith(left_out)]
        given = run.make_context("run", arguments).params
        layers, problems = collect_layers(
            given["strategy"], given["options"], None, given["settings"], given["seeds"], given
        )
        resolve(layers, plugins(), problems)


def seeds(data: bytes) -> None:
    """Read `--seeds`."""
    _resolve({"strategy": "head", "seed": text_of(data)})


def shift(data: bytes) -> None:
    """Read `--shift`, `--augment` and `--severity`, divided by spaces."""
    shift, augment, severity, *_ = [*text_of(data).split(" "), "none", "none", "none"]
    _resolve({"strategy": "head", "shift": shift, "augment": augment, "severity": severity})


def grid(data: bytes) -> None:
    """Read `--grid` of a sweep, a part a line, and make its cells."""
    from adaptkit.resolve import Layer
    from adaptkit.sweeps import grid as grids
    from adaptkit.sweeps import trials

    problems: list[str] = []
    with refusals():
        layers = [Layer({"strategy": ["lora", "head"]})]
        found, layers = grids.collect_grid(text_of(data).split("\n"), layers, problems)
        size = 1
        for values in found.values():
            size *= len(values)
        if size <= 30 or size > trials.MOST_CELLS:  # between, thousands of cells are made as they should be
            trials.expand(layers, found, plugins(), problems)


def space(data: bytes) -> None:
    """Read `--space` of tuning, a part a line, and grow its ranges."""
    from adaptkit.sweeps.spaces import make_spaces

    with refusals():
        request = _request()
        given: dict[str, set[str]] = {arm.strategy: set() for arm in request.arms}
        for found in make_spaces(request.arms, text_of(data).split("\n"), given, lambda arm: True):
            assert found.text
            found.defaults  # noqa: B018
            for side in ("low", "high"):
                grown = found.grown(dict.fromkeys(found.dimensions, side), lambda arm: True)
                assert grown.text


def sizes(data: bytes) -> None:
    """Read lengths of time and sizes, as in `--unused-for 30d --keep 2GB`."""
    from adaptkit.cli.cache import parse_size
    from adaptkit.cli.durations import parse_duration

    with refusals():
        parse_duration("--unused-for", text_of(data))
    with refusals():
        parse_size("--keep", text_of(data))


def address(data: bytes) -> None:
    """Read `--tracking-uri`: a password in it must not come out again."""
    from adaptkit.tracking.address import resolve

    secret = "hunter2-s3cret"
    given = text_of(data).replace("@", f":{secret}@", 1)
    try:
        found = resolve(given or None)
        told = f"it is {given} and {found.uri}" if found.path is None else "of a file"
        said = [repr(found), found.shown, str(found.ui_command), found.runs_url("1"), found.without_secrets(told)]
    except BadInput as error:
        said = list(error.problems)
    # The name of a file is no secret, nor what stands after the first slash or ? of one.
    is_file = re.match(r"(file:|sqlite(\+pysqlite)?:)?(/(?!/)|//[^/]*[/?]|[^/@:]*/)", given, flags=re.IGNORECASE)
    assert is_file or not any(secret in text for text in said), said


def printing(data: bytes) -> None:
    """Make any text fit for a terminal."""
    from adaptkit.printing import printable

    shown = printable(text_of(data))
    assert all(sign in "\n\t" or unicodedata.category(sign)[0] not in "C" for sign in shown)
    shown.encode()


def _resolve(values: Mapping[str, Any]) -> None:
    from adaptkit.resolve import Layer, resolve

    with refusals():
        resolve([Layer(values)], plugins())


@functools.cache
def _request() -> Any:
    from adaptkit.resolve import Layer, resolve

    return resolve([Layer({"strategy": ["lora", "head"]})], plugins())


# ---- files of text -------------------------------------------------------------------------------------------------


def config(data: bytes) -> None:
    """Read a config file and check its settings."""
    from adaptkit.config_files import read_config
    from adaptkit.resolve import Layer, resolve
    from adaptkit.sweeps.grid import collect_grid

    problems: list[str] = []
    with refusals():
        read = read_config(file_of(data, "config.yaml"))
        layers = [Layer({"strategy": ["head"]}), Layer(read, "config.yaml")]
        _, layers = collect_grid({}, layers, problems)
        resolve(layers, plugins(), problems)


def split(data: bytes) -> None:
    """Read a split and find its images."""
    from adaptkit.data.split_files import PARTS, positions, read_split, split_text

    with refusals():
        found = read_split(file_of(data, "split.json"))
        assert found.told("mnist5k")
        split_text(found.classes, found.parts)
        for title in PARTS:
            positions(found.part(title), range(10), "mnist5k")


def predictions(data: bytes) -> None:
    """Read a run's table of predictions, as `compare` does."""
    from adaptkit.tracking.predictions import read_predictions

    with refusals(ValueError, KeyError):
        read_predictions(file_of(data, "predictions.csv"), ["0", "1", "2"])


def card(data: bytes) -> None:
    """Read the card of an adapter."""
    from adaptkit.adapters.files import card_digest, read_card
    from adaptkit.trained import ADAPTER_TYPES, MODEL_TYPES

    with refusals():
        card_digest(read_card(file_of(data, "adapter.json"), ADAPTER_TYPES | MODEL_TYPES))


# ---- files of models -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A model with a head, small enough for thousands of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 3)
        self.head = nn.Linear(3, 2)


def adapter(data: bytes) -> None:
    """Put an adapter onto a model: its weights are the bytes, or tensors made by them, and its card fits them."""
    import hashlib

    from adaptkit.adapters.files import CARD, WEIGHTS, card_digest, load_adapter

    made = Choices(data)
    content = data[1:] if made.number(2) == 0 else _weights(made, ("body.weight", "body.bias", "head.weight", "x"))
    said = {"base_fingerprint": "0", "sha256": hashlib.sha256(content).hexdigest()}
    said["card_sha256"] = card_digest(said)
    folder = scratch()
    (folder / WEIGHTS).write_bytes(content)
    (folder / CARD).write_text(json.dumps(said))
    with refusals():
        load_adapter(folder, Net(), "0")


def weights(data: bytes) -> None:
    """Read a file of weights, as `--weights FILE` does: safetensors, and torch's own kinds."""
    from adaptkit.adapters.weight_files import read_weight_file

    suffix = (".safetensors", ".pt", ".pth", ".bin")[Choices(data).number(4)]
    with refusals():
        read_weight_file(file_of(data[1:], f"weights{suffix}"))


def pickles(data: bytes) -> None:
    """Read a sound archive of torch whose pickle is hostile."""
    from adaptkit.adapters.weight_files import read_weight_file

    with refusals():
        read_weight_file(file_of(_archive(data), "weights.pt"))


def base(data: bytes) -> None:
    """Look for a base in a cache that somebody wrote: the card, a zero byte, the weights."""
    from adaptkit.caching import verify_cache
    from adaptkit.experiment.base import CARD_FILE, WEIGHTS_FILE, stored_base

    os.environ["ADAPTKIT_CACHE"] = str(scratch() / "cache")
    folder = scratch() / "cache" / "bases" / "key"
    folder.mkdir(parents=True, exist_ok=True)
    text, _, content = data.partition(b"\0")
    (folder / CARD_FILE).write_bytes(text)
    (folder / WEIGHTS_FILE).write_bytes(content)
    with refusals():
        stored_base("key")
        list(verify_cache(["bases"]))


def features(data: bytes) -> None:
    """Read features that are kept on disk."""
    from adaptkit.training.feature_files import FeatureFiles, sound

    files = FeatureFiles(scratch() / "features")
    files.folder.mkdir(exist_ok=True)
    files.path("key").write_bytes(data)
    with refusals():
        sound(files.path("key"))
        files.read("key")


def peft(data: bytes) -> None:
    """Read a folder of PEFT: a configuration, a zero byte, and what makes its tensors."""
    from adaptkit.adapters.peft_reading import CONFIG, WEIGHTS, adapter_of

    text, _, rest = data.partition(b"\0")
    folder = scratch() / "peft"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_bytes(text)
    inner = "base_model.model."
    names = tuple(
        f"{inner}{layer}.{part}"
        for layer in ("body", "head", "..")
        for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "weight", "modules_to_save.bias")
    )
    (folder / WEIGHTS).write_bytes(_weights(Choices(rest), names))
    with refusals():
        adapter_of(folder)


def _weights(made: Choices, names: tuple[str, ...]) -> bytes:
    """Return a safetensors file of tensors whose names, shapes and numbers are chosen."""
    from safetensors.torch import save

    kinds = (torch.float32, torch.float16, torch.int64, torch.bool)
    tensors: dict[str, Tensor] = {}
    for _ in range(made.number(5)):
        name = names[made.number(len(names))]
        shape = [made.number(5) for _ in range(made.number(5))]
        tensor = torch.full(shape, (0.5, float("nan"), float("inf"), 3.0)[made.number(4)])
        kind = kinds[made.number(4)]
        tensors[name] = tensor.nan_to_num().to(kind) if kind in (torch.int64, torch.bool) else tensor.to(kind)
    return save(tensors)


def _archive(pickled: bytes) -> bytes:
    """Return a file of `torch.save` with this pickle in it."""
    import io
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(64))
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def journal(data: bytes) -> None:
    """Look for journals in a state folder that somebody wrote: what it is about, what was sent, its events."""
    from adaptkit.tracking.journal import ABOUT, EVENTS, SENT, left_journals

    os.environ["ADAPTKIT_STATE"] = str(scratch() / "state")
    folder = scratch() / "state" / "journals" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip((ABOUT, SENT, EVENTS), [*data.split(b"\0", 2), b"", b""], strict=False):
        (folder / name).write_bytes(content)
    with refusals():
        for found in left_journals():
            found.unsent()


# ---- pictures ------------------------------------------------------------------------------------------------------


def picture(data: bytes) -> None:
    """Decode one picture."""
    from adaptkit.data.pictures import fault_of, read_picture

    suffix = (".png", ".jpg", ".gif", ".tif", ".txt")[Choices(data).number(5)]
    path = file_of(data[1:], f"picture{suffix}")
    with refusals():
        fault = fault_of(path, 8)
        image = read_picture(path, 8)
        assert fault == "" and image.shape == (3, 8, 8) and image.dtype == torch.uint8


def picture_folder(data: bytes) -> None:
    """Load a folder of pictures that is built as the bytes say, with everything in it that a file system knows."""
    from adaptkit.contracts import Reading
    from adaptkit.data.folder import Folder

    os.environ["ADAPTKIT_CACHE"] = str(scratch() / "cache")
    made = Choices(data)
    root = scratch() / "pictures"
    _remove(root)
    root.mkdir()
    try:
        skip = bool(made.number(2))
        for _ in range(made.number(24)):
            _build(root, made)
        with refusals():
            corpus = Folder(str(root)).at(Reading(8, skip)).load(Path("data"))
            for images in filter(None, (corpus.train, corpus.test)):
                assert len(images.labels) == len(images.pixels.names)  # type: ignore[union-attr]
                for index in range(len(images.labels)):
                    assert images.pixels[index].shape == (3, 8, 8)
    finally:
        _remove(root)


NAMES = (
    *("a", "b", "train", "test", "val", "c.png", "d.jpg", "e.gif", ".hidden", "Thumbs.db"),
    *("new\nline", "\x1b[31mred", "\udcff", "[red]x", "<b>x", "é", "e\u0301", "con ", "-rf", "x" * 200),
)


def _build(root: Path, made: Choices) -> None:
    """Make one thing at one place below the root: never through a link, nor over what is there."""
    place = root
    for _ in range(1 + made.number(3)):
        if place.is_symlink():
            return
        place = place / NAMES[made.number(len(NAMES))]
    if os.path.lexists(place):
        return
    what = MAKERS[made.number(len(MAKERS))]
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        what(place, made)


def _link(target: str) -> Callable[[Path, Choices], None]:
    return lambda path, made: path.symlink_to(target)


def _socket(path: Path, made: Choices) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's whole path may have about 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name[:90])
    finally:
        os.chdir(here)


def _unreadable(path: Path, made: Choices) -> None:
    path.write_bytes(PICTURES["png"])
    path.chmod(0)


def _closed(path: Path, made: Choices) -> None:
    path.mkdir(exist_ok=True)
    path.chmod(0)


def _deep(path: Path, made: Choices) -> None:
    for _ in range(60):
        path = path / "d"
    path.mkdir(parents=True)
    (path / "deep.png").write_bytes(PICTURES["png"])


def _sparse(path: Path, made: Choices) -> None:
    with path.open("wb") as stream:
        stream.write(PICTURES["png"][:40])
        stream.truncate(1 << 40)


def _content(path: Path, made: Choices) -> None:
    path.write_bytes(made.take(64))


def _picture(kind: str, cut: bool = False) -> Callable[[Path, Choices], None]:
    def write(path: Path, made: Choices) -> None:
        content = PICTURES[kind]
        path.write_bytes(content[: made.number(min(len(content), 255)) + 1] if cut else content)

    return write


def _remove(root: Path) -> None:
    """Remove a folder with what may not be read in it."""
    for folder, inner, _ in os.walk(root):
        for name in inner:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)


def _png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG that says to be so large, whatever is in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _encoded(mode: str, kind: str, **how: Any) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, (6, 5)).save(file, kind, **how)
    return file.getvalue()


def _animated() -> bytes:
    from PIL import Image

    frames = [Image.new("P", (6, 5), number) for number in range(3)]
    return _encoded("P", "GIF", save_all=True, append_images=frames)


PICTURES = {
    "png": _png(3, 2, bytes(20)),
    "bomb": _png(60_000, 60_000, bytes(100)),
    "narrow": _png(1, 30_000, bytes(4 * 30_000)),
    "wide": _png(200_000, 1, bytes(1 + 3 * 200_000)),
    "sixteen": _png(2, 2, bytes(10), depth=16, colour=0),
    "jpeg": _encoded("RGB", "JPEG"),
    "cmyk": _encoded("CMYK", "JPEG"),
    "gif": _animated(),
    "transparent": _encoded("LA", "PNG"),
    "float": _encoded("F", "TIFF"),
    "webp": _encoded("RGBA", "WEBP"),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(id) system\n%%EOF\n",
}
MAKERS: tuple[Callable[[Path, Choices], None], ...] = (
    *(_picture(kind) for kind in PICTURES),
    *(_picture(kind, cut=True) for kind in ("png", "jpeg", "gif", "webp")),
    *(_link(target) for target in ("..", ".", "c.png", "/", "/dev/zero", "/dev/stdin", "/nowhere", "../a", "x/../..")),
    *(_content, _unreadable, _closed, _deep, _sparse, _socket),
    lambda path, made: os.mkfifo(path),
    lambda path, made: path.touch(),
    lambda path, made: path.mkdir(),
)


def idx(data: bytes) -> None:
    """Read MNIST's files: which of the four are the bytes is chosen, the others are sound."""
    from adaptkit.data.idx import idx_files
    from adaptkit.data.torchvision_sets import Mnist

    root = scratch() / "idx"
    hostile = Choices(data).number(4)
    for number, name in enumerate(idx_files("MNIST")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[1:] if number == hostile else IDX[number % 2])
    with refusals():
        Mnist().load(root)


IDX = (
    bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 3, 3) + bytes(18),
    bytes([0, 0, 8, 1]) + struct.pack(">I", 2) + bytes([3, 4]),
)


# ---- all of them ---------------------------------------------------------------------------------------------------


def _safetensors() -> bytes:
    from safetensors.torch import save

    return save({"body.weight": torch.ones(3, 2), "features": torch.zeros(2, 1, 2, 2)}, {"sha256": "0"})


def _saved(**how: Any) -> bytes:
    import io

    file = io.BytesIO()
    torch.save({"body.weight": torch.ones(2, 2), "n": torch.zeros(1, dtype=torch.int8)}, file, **how)
    return file.getvalue()


def _saved_pickle() -> bytes:
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(_saved())) as archive:
        return archive.read("archive/data.pkl")


OPTION_WORDS = (
    *("-s", "-o", "--set", "--shift", "--seeds", "--severity", "--augment", "--backbone", "--weights", "--dataset"),
    *("--target", "--lr", "--epochs", "--image-size", "lora", "head", "full", "rank=", "lora.rank=", "targets="),
    *("base.epochs=", "split.file=", "rotate=", "noise=", "folder:", "torchvision:", "none", "1e-3", "nan", "inf"),
)
SETTING_WORDS = (
    *("strategy: ", "base:\n  ", "split:\n  ", "shift:\n  ", "grid:\n  ", "seed: ", "lora:\n  ", "rotate: ", "&a "),
    *("*a", "!!binary ", "!!python/object:", "<<: ", "2001-01-01", "0x", "1:30", "null", "[", "{", "- ", "? ", "---\n"),
)
CARD = {
    **{"strategy": "lora", "options": {}, "init_seed": 0, "base_fingerprint": "0", "sha256": "0"},
    **{"backbone": "small_cnn", "backbone_options": {}, "preprocessing": {}, "channels": 1, "size": 28},
    "classes": ["0", "1"],
}
SPLIT = {"classes": ["0"], "parts": {"source": {"dataset": "mnist5k", "images": [0, "a.png"]}}}
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"body": 2}, "use_dora": False}
# body's A [2, 2] and B [3, 2], float32
FACTORS = bytes([2, 0, 2, 2, 2, 0, 0, 1, 2, 3, 2, 0, 0])
TABLE = (
    b"test_set,image,truth,prediction,confidence,base_prediction\n"
    b"clean,0,0,1,0.9,\nshifted,1,2,2,0.7,1\nshifted,2,1,1,0.6,0\n"
)
EPOCH = {"number": 1, "loss": 0.5, "train_accuracy": 0.5, "test_accuracy": 0.5, "seconds": 1.0}
BASE = {"fingerprint": "0", "key": "key", "epochs": [EPOCH]}

TARGETS = {
    "options": Target(
        options,
        (
            b"-s lora -o rank=4 --seeds 0-4 --shift rotate=45,noise=0.3 --lr 1e-3 --set base.epochs=3",
            b"-s lora,head --set lora.rank=2 --set shift.rotate=9 --severity 0.5,1 --augment flip=0.5 --bn adapt",
            b"-s full --dataset none --target folder:. --backbone torchvision:resnet18 --weights none",
        ),
        OPTION_WORDS,
    ),
    "seeds": Target(seeds, (b"0-4", b"0,2,5-7", b"3"), ("0-9999", "-", ",", "\u00b2")),
    "shift": Target(
        shift,
        (b"rotate=45,noise=0.3 flip=0.5,crop=0.7 0.5,1,2", b"blur=1,contrast=0.5 none 1"),
        ("rotate=", "noise=", "blur=", "contrast=", "flip=", "crop=", "none", "nan", "1e308"),
    ),
    "grid": Target(
        grid,
        (b"lora.rank=2,4,8\nlr=1e-4..1e-2/5log", b"rank=1..8/8\nshots=5,10", b"shift.rotate=10..90/3\nbase.seed=0,1"),
        ("lora.rank=", "lr=", "shift=", "base.", "split.", "..", "/1000", "log", "1e-308", "nan", "inf"),
    ),
    "space": Target(
        space,
        (b"lr=1e-4..1e-1/log\nlora.rank=2,4,8", b"lora.rank=2..32/log\nlora.alpha=1..9", b"head.lr=1e-3"),
        ("lora.", "lr=", "rank=", "alpha=", "dropout=", "..", "/log", "1e308", "1e-308", "nan", "inf"),
    ),
    "sizes": Target(sizes, (b"1h30m", b"500MB", b"2 GB", b"90"), ("TB", "d", "9" * 400)),
    "address": Target(
        address,
        (
            b"http://user@host:5000/base?x=1",
            b"sqlite:///mlflow.db?x=1",
            b"postgresql+psycopg2://u@h/d",
            b"file:///a",
            b"//u@h/x",
        ),
        (
            "http://",
            "sqlite:///",
            "postgresql://",
            "mysql+pymysql://",
            "file:",
            "databricks",
            "@",
            "%40",
            "?",
            "mlruns",
        ),
    ),
    "printing": Target(printing, (b"plain", "\u202e\x1b]0;x\x07".encode(), b"\xff\n\t")),
    "config": Target(
        config,
        (
            b"strategy: [lora]\nseed: 0-4\nshift: {rotate: 45}\nbase:\n  epochs: 3\nlora:\n  rank: 4\n",
            b"grid:\n  lr: 1e-4..1e-2/3log\n  lora.rank: [2, 4]\naugment: {flip: 0.5}\nsplit: {file: none}\n",
            b"a: &a [1, 2]\nb: *a\nc: 2001-01-01\nd: !!binary YQ==\n",
        ),
        SETTING_WORDS,
    ),
    "split": Target(
        split,
        (json.dumps(SPLIT).encode(), b'{"classes": [], "parts": {"pool": {"dataset": "x", "images": [1, 1]}}}'),
        ('"source"', '"pool"', '"clean_test"', '"shifted_test"', '"images"', '"dataset"', '"classes"', "[", "NaN"),
    ),
    "predictions": Target(predictions, (TABLE,), ("clean,", "shifted,", '"', "\r\n", "9" * 30, "nan", "1_0")),
    "card": Target(card, (json.dumps(CARD).encode(),), tuple(f'"{key}"' for key in CARD)),
    "adapter": Target(
        adapter,
        (b"\0" + _safetensors(), bytes([1, 3, 0, 2, 3, 2, 0, 0, 1, 1, 3, 0, 0]), bytes([1, 1, 3, 1, 3, 1, 0])),
    ),
    "weights": Target(
        weights,
        (b"\0" + _safetensors(), b"\1" + _saved(), b"\2" + _saved(_use_new_zipfile_serialization=False)),
    ),
    "pickles": Target(
        pickles,
        (_saved_pickle(), b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02}q\x00."),
        ("ctorch._utils\n_rebuild_tensor_v2\n", "ccollections\nOrderedDict\n", "cbuiltins\neval\n", "storage"),
    ),
    "base": Target(base, (json.dumps(BASE).encode() + b"\0" + _safetensors(),), tuple(f'"{key}"' for key in EPOCH)),
    "journal": Target(
        journal,
        (
            json.dumps(dict.fromkeys(("local_id", "name", "store", "experiment"), "x")).encode()
            + b'\0{"events": 1, "run_id": "x"}\0'
            + b'{"number": 1, "do": "end", "status": "FAILED", "at": 1}\n{"number": 2, "do": "log", "params": {}}',
        ),
        ('"events": ', '"number": ', '"do": "create"', '"do": "put"', "Infinity", "NaN", "[", "\n"),
    ),
    "features": Target(features, (_safetensors(),), ("features", "sha256", "seconds", "channels_last")),
    "peft": Target(
        peft, (json.dumps(PEFT).encode() + b"\0" + FACTORS,), tuple(f'"{key}"' for key in (*PEFT, "alpha_pattern"))
    ),
    "picture": Target(picture, tuple(bytes([i % 5]) + content for i, content in enumerate(PICTURES.values()))),
    "picture_folder": Target(
        picture_folder,
        (
            bytes([0, 4, 1, 0, 5, 0, 1, 0, 6, 5, 1, 1, 5, 0, 1, 1, 6, 5]),
            bytes([1, 8, *(byte for step in range(8) for byte in (1, step % 2, step + 5, step * 4))]),
            random.Random(0).randbytes(120),
        ),
    ),
    "idx": Target(idx, (b"\0" + IDX[0], b"\1" + IDX[1])),
}
