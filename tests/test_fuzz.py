"""Hostile input, drawn by hypothesis: every reader refuses it in expected ways, in bounded time and memory.

The same targets are fuzzed for longer, guided by coverage, by `python fuzzing/run.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptkit import config_files
from adaptkit.errors import BadInput
from fuzzing.targets import TARGETS, Target, TooLong, bounded, refusals

Cli = Callable[..., Result]

ROOT = Path(__file__).parents[1]
#: inputs for each target; those that make files, models or whole requests take longer
EXAMPLES = {"options": 25, "shift": 20, "grid": 25, "space": 20, "picture_folder": 25}
OTHERWISE = 40

#: what once came out as a traceback, a hang or memory without bound
FOUND = {
    "seeds": ("\u00b2".encode(), b"9" * 5000, b",".join(b"%d-%d" % (i * 9000, i * 9000 + 8999) for i in range(50))),
    "shift": (b"rotate=1 none " + b",".join(b"%d" % number for number in range(40_000)),),
    "grid": (b"lr=" + b",".join(b"%d..%d/1000" % (i, i + 1) for i in range(300)),),
    "sizes": (b"9" * 400 + b"TB", b"9" * 400 + b"d"),
    "address": (
        b"postgresql+psycopg2@://u@h/d",
        b"file://[a",
        b"sqlite://me@host/x",
        b"//me@host/x",
        b"databricks\xb1@",
    ),
    "config": (
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
    "options": (
        b"-s head --target folder:~nobody-here/x",
        b"-s head --backbone \xff",
        b"-s \xff -o rank=\xff --target folder:\xff",
    ),
    "predictions": (
        b'test_set,image,truth,prediction,confidence,base_prediction\n"clean{0,0,1,0.9,\nshifted,1,2,2,0.7,1\n',
        b"test_set,image,truth,prediction,confidence,base_prediction\nclean,0,0,1," + b"9" * 200_000 + b",\n",
    ),
    "split": (b"[" * 100_000,),
    "card": (b"[" * 100_000,),
    "journal": (
        b"[" * 100_000,
        b'{"local_id": 1, "name": 1, "store": 1, "experiment": 1}\0{"events": Infinity}\0{"number": Infinity}',
        b'{"local_id": 1, "name": 1, "store": 1, "experiment": 1}\0{}\0' + b"[" * 100_000,
    ),
    "base": (b"[" * 100_000 + b"\0", b'""\0'),
    "weights": (
        b"\2\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x81",  # IndexError
        b"\2\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02X\xff\xff\xff\x7f",  # 2 GB asked for
    ),
    "pickles": (b"q\x81.", b"\x80\x02}G\x00.", b"cbuiltins\neval\n(S'1'\ntR."),
    # a class that is a link to the root of all files
    "picture_folder": (bytes([0, 6, 0, 0, 19, 0, 1, 0, 5]), bytes([0, 3, 1, 0, 7, 19, 1, 1, 7, 0, 1, 0, 7, 0])),
}


def mangled(target: Target) -> st.SearchStrategy[bytes]:
    """Draw sound input with a few changes, or anything."""
    pieces = [st.binary(max_size=8)]
    if target.words:
        pieces.append(st.sampled_from([word.encode() for word in target.words]))
    edits = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), st.one_of(pieces)), min_size=1, max_size=6)

    def change(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        for place, gone, piece in changes:
            at = place % (len(content) + 1)
            content = content[:at] + piece + content[at + gone :]
        return content

    return st.one_of(st.builds(change, st.sampled_from(target.corpus), edits), st.binary(max_size=64))


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_refused_in_expected_ways(name: str) -> None:
    target = TARGETS[name]
    for data in (*target.corpus, *FOUND.get(name, ())):
        with bounded():
            target.run(data)

    @settings(
        max_examples=EXAMPLES.get(name, OTHERWISE),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mangled(target))
    def no_surprise(data: bytes) -> None:
        with bounded():
            target.run(data)

    no_surprise()


def test_a_target_notices_a_hang_a_lack_of_memory_and_an_error() -> None:
    def endless() -> None:
        while True:
            pass

    with pytest.raises(TooLong), bounded(seconds=0.1):
        endless()
    with pytest.raises(MemoryError), bounded(memory=1 << 28):
        bytes(1 << 29)
    with pytest.raises(KeyError), refusals():
        {}["x"]
    with pytest.raises(AssertionError), refusals():
        raise BadInput("")
    with refusals():
        raise BadInput("a reason")


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
    # a setting that there is not keeps those from training that would otherwise be sound
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
def test_a_command_line_ends_well_or_says_each_problem_in_a_line(cli: Cli, command: str, words: list[str]) -> None:
    with bounded(seconds=30):
        result = cli(command, *COMMANDS[command], *words)
    said = result.stderr.splitlines()
    assert result.exit_code in (0, 2), (result.exit_code, said)
    assert all(line.isprintable() for line in said)
    if result.exit_code:
        assert said and all(line.startswith(("Error: ", "Warning: ")) for line in said)
        assert result.stdout == ""


def problems(result: Result) -> list[str]:
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()


def test_a_pipe_that_nobody_writes_to_is_given_up(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo("pipe")
    monkeypatch.setattr(config_files, "PIPE_SECONDS", 0.2)
    with bounded(seconds=20):
        assert problems(cli("run", "-s", "head", "--config", "pipe")) == [
            "Error: config file pipe: a pipe that nobody wrote to within 0 s"
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


def test_a_config_that_a_shell_writes_into_a_pipe_is_read(cli: Cli) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"strategy: head\nepoch: 3\n")
    os.close(writing)
    try:
        (line,) = problems(cli("run", "--config", f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
    assert line == f"Error: {reading}: unknown key 'epoch'; did you mean 'epochs'?"


def test_a_config_without_end_is_not_read_whole(cli: Cli, own_folder: Path) -> None:
    with open("large.yaml", "wb") as stream:
        stream.truncate(1 << 40)
    with bounded(seconds=20):
        assert problems(cli("run", "-s", "head", "--config", "large.yaml")) == [
            "Error: config file large.yaml: larger than 1,048,576 bytes"
        ]


def test_links_that_multiply_are_followed_once(cli: Cli, own_folder: Path) -> None:
    """Of 25 folders, each links twice to the next: there are 2^25 ways to the picture."""
    picture = next(content for content in TARGETS["picture"].corpus if content[1:5] == b"\x89PNG")[1:]
    for number in range(25):
        folder = own_folder / "chain" / str(number)
        folder.mkdir(parents=True)
        for name in ("left", "right"):
            (folder / name).symlink_to(own_folder / "chain" / str(number + 1))
    (own_folder / "chain" / "25").mkdir()
    (own_folder / "chain" / "25" / "a.png").write_bytes(picture)
    for label in ("a", "b"):
        (own_folder / "data" / label).mkdir(parents=True)
        (own_folder / "data" / label / "chain").symlink_to(own_folder / "chain" / "0")
        (own_folder / "data" / label / "all").symlink_to("/")
    from adaptkit.data.class_folders import layout

    with bounded(seconds=20):
        (part,), notices = layout("folder:data", Path("data"))
    assert {label: len(names) for label, names in part.files.items()} == {"a": 1, "b": 1} and notices == ()


@pytest.mark.slow
def test_the_guided_fuzzer_writes_down_what_it_did(own_folder: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, str(ROOT / "fuzzing" / "run.py"), "seeds", "printing", "--seconds", "2"]
    done = subprocess.run([*command, "--json", "out.json"], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads((own_folder / "out.json").read_text())["targets"]
    assert list(found) == ["seeds", "printing"]
    assert all(one["inputs"] > 100 and one["seconds"] >= 2 and one["findings"] == [] for one in found.values())
    assert done.stdout.count("nothing found") == 2
