"""Malformed settings in options and config files: each raises an expected error."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hostile import bounded, file_of, hostile, plugins, refusals, text_of

from adaptkit.settings import files as config_files
from adaptkit.settings.files import read_config
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.settings.spaces import make_spaces
from adaptkit.sweeps.grid import MOST_CELLS, collect_grid, expand

Cli = Callable[..., Result]


SETTING_WORDS = (
    *("strategy: ", "base:\n  ", "split:\n  ", "shift:\n  ", "grid:\n  ", "seed: ", "lora:\n  ", "rotate: ", "&a "),
    *("*a", "!!binary ", "!!python/object:", "<<: ", "2001-01-01", "0x", "1:30", "null", "[", "{", "- ", "? ", "---\n"),
)


def _resolve(values: Mapping[str, Any]) -> None:
    with refusals():
        resolve([Layer(values)], plugins())


@functools.cache
def _request() -> Any:
    return resolve([Layer({"strategy": ["lora", "head"]})], plugins())


@hostile(
    b"0-4",
    b"0,2,5-7",
    b"3",
    words=("0-9999", "-", ",", "\u00b2"),
    found=("\u00b2".encode(), b"9" * 5000, b",".join(b"%d-%d" % (i * 9000, i * 9000 + 8999) for i in range(50))),
)
def test_seeds(data: bytes) -> None:
    """Read `--seeds`."""
    _resolve({"strategy": "head", "seed": text_of(data)})


@hostile(
    b"rotate=45,noise=0.3 flip=0.5,crop=0.7 0.5,1,2",
    b"blur=1,contrast=0.5 none 1",
    words=("rotate=", "noise=", "blur=", "contrast=", "flip=", "crop=", "none", "nan", "1e308"),
    found=(b"rotate=1 none " + b",".join(b"%d" % number for number in range(40_000)),),
    examples=20,
)
def test_shift(data: bytes) -> None:
    """Read `--shift`, `--augment` and `--severity`, divided by spaces."""
    shift, augment, severity, *_ = [*text_of(data).split(" "), "none", "none", "none"]
    _resolve({"strategy": "head", "shift": shift, "augment": augment, "severity": severity})


@hostile(
    b"lora.rank=2,4,8\nlr=1e-4..1e-2/5log",
    b"rank=1..8/8\nshots=5,10",
    b"shift.rotate=10..90/3\nbase.seed=0,1",
    words=("lora.rank=", "lr=", "shift=", "base.", "split.", "..", "/1000", "log", "1e-308", "nan", "inf"),
    found=(b"lr=" + b",".join(b"%d..%d/1000" % (i, i + 1) for i in range(300)),),
    examples=25,
)
def test_grid(data: bytes) -> None:
    """Read `--grid` of a sweep, a part a line, and make its cells."""
    problems: list[str] = []
    with refusals():
        layers = [Layer({"strategy": ["lora", "head"]})]
        found, layers = collect_grid(text_of(data).split("\n"), layers, problems)
        size = 1
        for values in found.values():
            size *= len(values)
        if size <= 30 or size > MOST_CELLS:  # between, thousands of cells are made as they should be
            expand(layers, found, plugins(), problems)


@hostile(
    b"lr=1e-4..1e-1/log\nlora.rank=2,4,8",
    b"lora.rank=2..32/log\nlora.alpha=1..9",
    b"head.lr=1e-3",
    words=("lora.", "lr=", "rank=", "alpha=", "dropout=", "..", "/log", "1e308", "1e-308", "nan", "inf"),
    examples=20,
)
def test_space(data: bytes) -> None:
    """Read `--space` of tuning, a part a line, and grow its ranges."""
    with refusals():
        request = _request()
        given: dict[str, set[str]] = {arm.strategy: set() for arm in request.arms}
        for found in make_spaces(request.arms, text_of(data).split("\n"), given, lambda arm: True):
            assert found.text
            found.defaults  # noqa: B018
            for side in ("low", "high"):
                grown = found.grown(dict.fromkeys(found.dimensions, side), lambda arm: True)
                assert grown.text


@pytest.mark.slow
@hostile(
    b"strategy: [lora]\nseed: 0-4\nshift: {rotate: 45}\nbase:\n  epochs: 3\nlora:\n  rank: 4\n",
    b"grid:\n  lr: 1e-4..1e-2/3log\n  lora.rank: [2, 4]\naugment: {flip: 0.5}\nsplit: {file: none}\n",
    b"a: &a [1, 2]\nb: *a\nc: 2001-01-01\nd: !!binary YQ==\n",
    words=SETTING_WORDS,
    found=(
        b"a: 2001-00-01",
        b"a: &a {b: *a}",
        b"&a [*a]: 1",
        b"a: " + b"[" * 3000,
        b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 60)),
        b"strategy: [" + b"a," * 9000 + b"a]",
        b"a: !!int ''",
        b"a: !!timestamp x\nb: !!bool x",
        b"\xff",
        b'backbone: "\\udc86"',
    ),
)
def test_config(data: bytes) -> None:
    """Read a config file and check its settings."""
    problems: list[str] = []
    with refusals():
        read = read_config(file_of(data, "config.yaml"))
        layers = [Layer({"strategy": ["head"]}), Layer(read, "config.yaml")]
        _, layers = collect_grid({}, layers, problems)
        resolve(layers, plugins(), problems)


def problems(result: Result) -> list[str]:
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()


def test_pipes_without_writer(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo("pipe")
    monkeypatch.setattr(config_files, "PIPE_SECONDS", 0.2)
    with bounded(seconds=20):
        assert problems(cli("run", "-s", "head", "--config", "pipe")) == [
            "Error: config file pipe: no data from the pipe within 0 s"
        ]
        assert problems(cli("run", "-s", "head", "--no-track", "--set", "split.file=pipe")) == [
            "Error: split.file pipe: not a regular file"
        ]
        assert problems(cli("run", "-s", "head", "--no-track", "--set", "split.file=/dev/zero")) == [
            "Error: split.file /dev/zero: not a regular file"
        ]
    assert problems(cli("run", "-s", "head", "--config", "/dev/zero")) == [
        "Error: config file /dev/zero: not a regular file"
    ]


def test_config_from_pipe(cli: Cli) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"strategy: head\nepoch: 3\n")
    os.close(writing)
    try:
        (line,) = problems(cli("run", "--config", f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
    assert line == f"Error: {reading}: unknown key 'epoch'; did you mean 'epochs'?"


def test_endless_config(cli: Cli, own_folder: Path) -> None:
    with open("large.yaml", "wb") as stream:
        stream.truncate(1 << 40)
    with bounded(seconds=20):
        assert problems(cli("run", "-s", "head", "--config", "large.yaml")) == [
            "Error: config file large.yaml: larger than 1,048,576 bytes"
        ]
