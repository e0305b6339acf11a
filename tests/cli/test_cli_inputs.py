"""Hostile command lines: each problem is reported in one line."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Callable

import click
from click.testing import Result
from hostile import bounded, hostile, plugins, refusals, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptkit.cli.cache import parse_size
from adaptkit.cli.options import collect_layers, parse_duration
from adaptkit.cli.run import run
from adaptkit.settings.resolve import resolve
from adaptkit.system.streams import printable

Cli = Callable[..., Result]


OPTION_WORDS = (
    *("-s", "-o", "--set", "--shift", "--seeds", "--severity", "--augment", "--backbone", "--weights", "--dataset"),
    *("--target", "--lr", "--epochs", "--image-size", "lora", "head", "full", "rank=", "lora.rank=", "targets="),
    *("base.epochs=", "split.file=", "rotate=", "noise=", "folder:", "torchvision:", "none", "1e-3", "nan", "inf"),
)


@hostile(
    b"-s lora -o rank=4 --seeds 0-4 --shift rotate=45,noise=0.3 --lr 1e-3 --set base.epochs=3",
    b"-s lora,head --set lora.rank=2 --set shift.rotate=9 --severity 0.5,1 --augment flip=0.5 --bn adapt",
    b"-s full --dataset none --target folder:. --backbone torchvision:resnet18 --weights none",
    words=OPTION_WORDS,
    found=(
        b"-s head --target folder:~nobody-here/x",
        b"-s head --backbone \xff",
        b"-s \xff -o rank=\xff --target folder:\xff",
    ),
    examples=25,
)
def test_options(data: bytes) -> None:
    """Read the arguments of `adaptkit run`, split as by a shell, and check the settings."""
    with refusals(click.UsageError, click.exceptions.Exit):
        text = text_of(data).replace("\0", "")
        try:
            arguments = shlex.split(text)
        except ValueError:
            arguments = text.split()
        # Without options that print help or read files.
        left_out = ("-h", "--h", "--config", "--conf", "--plugin", "--pl")
        arguments = [word for word in arguments if not word.startswith(left_out)]
        values = run.make_context("run", arguments).params
        layers, problems = collect_layers(values)
        resolve(layers, plugins(), problems)


@hostile(
    b"1h30m",
    b"500MB",
    b"2 GB",
    b"90",
    words=("TB", "d", "9" * 400),
    found=(b"9" * 400 + b"TB", b"9" * 400 + b"d"),
)
def test_sizes(data: bytes) -> None:
    """Read durations and sizes, as in `--unused-for 30d --keep 2GB`."""
    with refusals():
        parse_duration("--unused-for", text_of(data))
    with refusals():
        parse_size("--keep", text_of(data))


@hostile(
    b"plain",
    "\u202e\x1b]0;x\x07".encode(),
    b"\xff\n\t",
)
def test_printing(data: bytes) -> None:
    """Escape any text for a terminal."""
    shown = printable(text_of(data))
    assert all(sign in "\n\t" or unicodedata.category(sign)[0] not in "C" for sign in shown)
    shown.encode()


WORDS = [
    *(
        "-s",
        "lora",
        "-o",
        "rank=4",
        "rank=\x1b[2J",
        "--shift",
        "rotate=",
        "--seeds",
        "0-99999999",
        "--set",
        "x=y",
        "--",
    ),
    *("--config", "no.yaml", "--lr", "nan", "--json", "-q", "--grid", "lr=1..2/9", "--jobs", "-1", "--plugin", "x.py"),
    *("--tracking-uri", "http://a:b@[", "--experiment", "[red]", "--top-k", "--format", "\u202e", "--device", "tpu"),
    *("--space", "lr=", "folder:\x07", "--target", "--dataset", "\udcff", "list", "new", "../x", "--keep", "1e9", ""),
]
COMMANDS = {
    # with an unknown setting, so that no command trains
    **dict.fromkeys(("run", "sweep", "tune"), ("--set", "no.such=1")),
    **dict.fromkeys(("compare", "predict", "export", "import-peft", "cache", "ui", "strategies", "nonsense"), ()),
}


@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(command=st.sampled_from(sorted(COMMANDS)), words=st.lists(st.sampled_from(WORDS), max_size=6))
def test_command_lines(cli: Cli, command: str, words: list[str]) -> None:
    with bounded(seconds=30):
        result = cli(command, *COMMANDS[command], *words)
    said = result.stderr.splitlines()
    assert result.exit_code in (0, 2), (result.exit_code, said)
    assert all(line.isprintable() for line in said)
    if result.exit_code:
        assert said and all(line.startswith(("Error: ", "Warning: ")) for line in said)
        assert result.stdout == ""
