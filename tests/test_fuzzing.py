"""Tests with hostile input detect faults, and their targets can be fuzzed for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from hostile import TooLong, bounded, hostile, refusals

from adaptkit.errors import BadInput


def test_bounds_and_refusals() -> None:
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


def test_unexpected_error_fails() -> None:
    @hostile(b"sound")
    def read(data: bytes) -> None:
        with refusals():
            if data != b"sound":
                raise KeyError("a surprise")

    with pytest.raises(KeyError):
        read()


def test_all_targets() -> None:
    """Every test with hostile input has a unique name."""
    files = list(Path(__file__).parent.rglob("test_*_inputs.py"))
    assert len(files) >= 6
    assert len(fuzzing.targets()) == sum(path.read_text(encoding="utf-8").count("\n@hostile(") for path in files)


@pytest.mark.slow
def test_guided_fuzzing(own_folder: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, fuzzing.__file__, "seeds", "printing", "--seconds", "2"]
    done = subprocess.run([*command, "--json", "out.json"], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads((own_folder / "out.json").read_text())["targets"]
    assert list(found) == ["seeds", "printing"]
    assert all(one["inputs"] > 100 and one["seconds"] >= 2 and one["findings"] == [] for one in found.values())
    assert done.stdout.count("nothing found") == 2
