"""Output on a real terminal: progress bars, colours, and tables that fit its width."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from rich.text import Text
from support.experiments import TINY
from support.terminal import on_a_terminal

Cli = Callable[..., Result]


@pytest.mark.slow
def test_bars_and_table() -> None:
    code, printed = on_a_terminal("run", "-s", "lora", "-s", "head", *TINY, "--no-track", width=90)
    assert code == 0
    assert "\x1b[?25l" in printed and printed.count("\x1b[?25h") >= 1  # the cursor is hidden and comes back
    assert re.search(r"lora seed=0.*2/2", printed) and re.search(r"head seed=0.*2/2", printed)
    lines = [Text.from_ansi(line).plain.rstrip() for line in printed.split("\r\n")]
    heading = next(line for line in lines if line.split()[:2] == ["strategy", "target"])
    assert heading.split() == ["strategy", "target", "gain", "source", "retention", "trainable", "share", "seconds"]
    table = lines[lines.index(heading) :]
    assert max(map(len, table)) <= 90
    assert [line.split()[0] for line in table[2:5]] == ["zero-shot", "head", "lora"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "moving"),
    [
        (("sweep", "--grid", "lr=0.001,0.01"), (r"head .*epoch \d/2, \d+ s", r"head .*  \d\d\.\d$")),
        (("tune", "--trials", "2"), (r"head .*[24]/[24].*lr 0\.\d+: validation \d\d\.\d %", r"on all images .*1/1")),
    ],
)
def test_live_trials(store: Path, command: tuple[str, ...], moving: tuple[str, ...]) -> None:
    code, printed = on_a_terminal(*command, "-s", "head", *TINY, "--seeds", "1", width=90)
    assert code == 0, printed
    lines = [Text.from_ansi(line).plain.rstrip() for line in printed.replace("\r\n", "\n").split("\n")]
    assert "\x1b[?25l" in printed and printed.count("\x1b[?25h") >= 1
    for words in moving:
        assert [line for line in lines if re.search(words, line)], printed


@pytest.mark.slow
def test_error_line() -> None:
    code, printed = on_a_terminal("run", "-s", "lorra", width=80)
    assert (code, printed) == (2, "Error: unknown strategy 'lorra'; did you mean 'lora'?\r\n")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "left_out"), [(60, "retention, share, seconds"), (80, "share, seconds")])
def test_table_on_a_narrow_terminal(width: int, left_out: str) -> None:
    code, printed = on_a_terminal("run", "-s", "lora", "-s", "head", *TINY, "--no-track", width=width)
    lines = [Text.from_ansi(line).plain.strip() for line in printed.split("\r\n")]
    assert code == 0
    table = lines[next(number for number, line in enumerate(lines) if line.startswith("zero-shot")) :]
    assert [line.split()[0] for line in table[:4]] == ["zero-shot", "head", "lora", "constant"]
    assert max(map(len, table)) <= width
    assert f"not shown: {left_out}" in " ".join(table)
