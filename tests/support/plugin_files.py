"""Plugins written to files and installed, for tests."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

PLUGIN = """
    from dataclasses import dataclass, field
    from adaptkit import hookimpl

    @dataclass
    class LastBias:
        "Train the bias of the head."
        name = "last-bias"
        scale: float = field(default=1.0, metadata={"help": "does nothing"})

        def adapt(self, model):
            return [model.head.bias]

    @hookimpl
    def adaptkit_strategies():
        return [LastBias]
"""


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    return path


def install(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution with an entry point on the path, as pip would."""
    write(folder / f"{name}.py", text)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[adaptkit]\n{name} = {name}\n")
    monkeypatch.syspath_prepend(folder)


@pytest.fixture(autouse=True)
def forget_modules() -> Any:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("adaptkit_file_", "thirdparty")):
            del sys.modules[name]
