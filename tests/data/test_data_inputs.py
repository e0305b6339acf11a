"""Hostile pictures, folders, splits and data sets: each is refused with an expected error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import torch
from hostile import Choices, bounded, environment, file_of, hostile, refusals, scratch
from PIL import Image

from adaptkit.contracts import Reading
from adaptkit.data.sets.folder import Folder
from adaptkit.data.sets.image_files import fault_of, read_picture
from adaptkit.data.sets.layout import layout
from adaptkit.data.sets.table import Table
from adaptkit.data.sets.torchvision_sets import Mnist, idx_files
from adaptkit.data.split_files import PARTS, positions, read_split, split_text

SPLIT = {"classes": ["0"], "parts": {"source": {"dataset": "mnist5k", "images": [0, "a.png"]}}}
IDX = (
    bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 3, 3) + bytes(18),
    bytes([0, 0, 8, 1]) + struct.pack(">I", 2) + bytes([3, 4]),
)
NAMES = (
    *("a", "b", "train", "test", "val", "c.png", "d.jpg", "e.gif", ".hidden", "Thumbs.db"),
    *("new\nline", "\x1b[31mred", "\udcff", "[red]x", "<b>x", "é", "e\u0301", "con ", "-rf", "x" * 200),
)


def _png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG with this size in its header and any content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _encoded(mode: str, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (6, 5)).save(file, kind, **how)
    return file.getvalue()


def _animated() -> bytes:
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


def _link(target: str) -> Callable[[Path, Choices], None]:
    return lambda path, made: path.symlink_to(target)


def _socket(path: Path, made: Choices) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is limited to about 100 bytes
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
    """Remove a folder with unreadable content."""
    for folder, inner, _ in os.walk(root):
        for name in inner:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)


MAKERS: tuple[Callable[[Path, Choices], None], ...] = (
    *(_picture(kind) for kind in PICTURES),
    *(_picture(kind, cut=True) for kind in ("png", "jpeg", "gif", "webp")),
    *(_link(target) for target in ("..", ".", "c.png", "/", "/dev/zero", "/dev/stdin", "/nowhere", "../a", "x/../..")),
    *(_content, _unreadable, _closed, _deep, _sparse, _socket),
    lambda path, made: os.mkfifo(path),
    lambda path, made: path.touch(),
    lambda path, made: path.mkdir(),
)


def _build(root: Path, made: Choices) -> None:
    """Create one entry below the root, never through a link and never over an existing entry."""
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


@hostile(
    json.dumps(SPLIT).encode(),
    b'{"classes": [], "parts": {"pool": {"dataset": "x", "images": [1, 1]}}}',
    words=('"source"', '"pool"', '"clean_test"', '"shifted_test"', '"images"', '"dataset"', '"classes"', "[", "NaN"),
    found=(b"[" * 100_000,),
)
def test_split(data: bytes) -> None:
    """Read a split and find its images."""
    with refusals():
        found = read_split(file_of(data, "split.json"))
        assert found.notice("mnist5k")
        split_text(found.classes, found.parts)
        for title in PARTS:
            positions(found.part(title), range(10), "mnist5k")


@hostile(
    *tuple(bytes([i % 5]) + content for i, content in enumerate(PICTURES.values())),
)
def test_picture(data: bytes) -> None:
    """Decode one picture."""
    suffix = (".png", ".jpg", ".gif", ".tif", ".txt")[Choices(data).number(5)]
    path = file_of(data[1:], f"picture{suffix}")
    with refusals():
        fault = fault_of(path, 8)
        image = read_picture(path, 8)
        assert fault == "" and image.shape == (3, 8, 8) and image.dtype == torch.uint8


@hostile(
    bytes([0, 4, 1, 0, 5, 0, 1, 0, 6, 5, 1, 1, 5, 0, 1, 1, 6, 5]),
    bytes([1, 8, *(byte for step in range(8) for byte in (1, step % 2, step + 5, step * 4))]),
    random.Random(0).randbytes(120),
    # a class that is a link to the root of all files
    found=(bytes([0, 6, 0, 0, 19, 0, 1, 0, 5]), bytes([0, 3, 1, 0, 7, 19, 1, 1, 7, 0, 1, 0, 7, 0])),
    examples=25,
)
def test_picture_folder(data: bytes) -> None:
    """Load a folder of pictures that the bytes describe, with all kinds of file system entries."""
    made = Choices(data)
    root = scratch() / "pictures"
    _remove(root)
    root.mkdir()
    try:
        skip = bool(made.number(2))
        for _ in range(made.number(24)):
            _build(root, made)
        with refusals(), environment(ADAPTKIT_CACHE=str(scratch() / "cache")):
            corpus = Folder(str(root)).at(Reading(8, skip)).load(Path("data"))
            for images in filter(None, (corpus.train, corpus.test)):
                assert len(images.labels) == len(images.pixels.names)  # type: ignore[union-attr]
                for index in range(len(images.labels)):
                    assert images.pixels[index].shape == (3, 8, 8)
    finally:
        _remove(root)


def _parquet() -> bytes:
    file = io.BytesIO()
    pandas.DataFrame({"path": ["1.png", None], "label": [0, 1]}).to_parquet(file)
    return file.getvalue()


@hostile(
    b"\0path,class,split,group,id\n1.png,a,train,g,1\n2.png,b,train,h,2\n3.png,a,test,g,3\n2.png,b,test,g,4\n",
    b'\0path;label\n"1.png";"a\nb"\n2.png;\x1b[31m\n../../etc/passwd;a\n/dev/zero;a\n',
    b"\0path\tlabel\n1.png\ta\n2.png\tb\n",
    b"\1" + _parquet(),
    # a value longer than the limit of the csv module, and a name that is too long for a file
    found=(
        b"\0path,label\n1.png," + b"a" * 200_000,
        b"\0path,label\n" + b"x/" * 5000 + b",a\n2.png,b",
        b"\1" + _parquet().replace(b"1.png", b"\xed.png"),
    ),
)
def test_table(data: bytes) -> None:
    """Load a table that consists of the bytes, next to two pictures."""
    root = scratch() / "table"
    root.mkdir(exist_ok=True)
    for name in ("1.png", "2.png", "3.png"):
        (root / name).write_bytes(PICTURES["jpeg"])
    path = root / ("x.parquet" if data[:1] == b"\1" else "x.csv")
    path.write_bytes(data[1:])
    with refusals(), environment(ADAPTKIT_CACHE=str(scratch() / "cache")):
        corpus = Table(str(path)).at(Reading(8)).load(Path("data"))
        for images in filter(None, (corpus.train, corpus.test)):
            assert len(images) == len(images.ids or ()) == len(set(images.ids or ()))
            assert all(len(values) == len(images) for values in images.columns.values())
            assert all(name.isprintable() for name in images.classes)


@hostile(
    b"\0" + IDX[0],
    b"\1" + IDX[1],
)
def test_idx(data: bytes) -> None:
    """Read the files of MNIST: one of the four has these bytes, the others are valid."""
    root = scratch() / "idx"
    changed = Choices(data).number(4)
    for number, name in enumerate(idx_files("MNIST")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[1:] if number == changed else IDX[number % 2])
    with refusals():
        Mnist().load(root)


def test_multiplying_links(own_folder: Path) -> None:
    """25 folders have two links each to the next one: the picture has 2^25 paths."""
    for number in range(25):
        folder = own_folder / "chain" / str(number)
        folder.mkdir(parents=True)
        for name in ("left", "right"):
            (folder / name).symlink_to(own_folder / "chain" / str(number + 1))
    (own_folder / "chain" / "25").mkdir()
    (own_folder / "chain" / "25" / "a.png").write_bytes(PICTURES["png"])
    for label in ("a", "b"):
        (own_folder / "data" / label).mkdir(parents=True)
        (own_folder / "data" / label / "chain").symlink_to(own_folder / "chain" / "0")
        (own_folder / "data" / label / "all").symlink_to("/")

    with bounded(seconds=20):
        (part,), notices = layout("folder:data", Path("data"), (".png",))
    assert {label: len(names) for label, names in part.files.items()} == {"a": 1, "b": 1} and notices == ()
