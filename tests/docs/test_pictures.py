"""Run every command and Python example of docs/pictures.md on a small folder of photographs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.photos import make_photos

import adaptkit
from adaptkit.cli import COMMANDS

TEXT = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text(encoding="utf-8")
#: smaller than what is written there
SMALL = (
    "--weights",
    "none",
    "--image-size",
    "32",
    "--seeds",
    "0",
    "--epochs",
    "1",
    "--set",
    "base.epochs=1",
    "--folds",
    "2",
    "--json",
)


def commands() -> list[list[str]]:
    """Return the words of each command line, without the remark after it."""
    lines = [line.strip() for line in TEXT.splitlines() if re.match(r"\s*adaptkit \w", line)]
    return [shlex.split(re.split(r"\s{2,}", line)[0])[1:] for line in lines]


def test_commands_exist() -> None:
    assert {words[0] for words in commands()} == {"run", "refit", "predict", "export", "import-peft"} <= set(COMMANDS)


@pytest.mark.slow
def test_commands_and_python_run(cli: Any, store: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(own_folder / "pictures" / "good", per_class=12, size=32)
    make_photos(own_folder / "pictures" / "worn", per_class=20, size=32, seed=1, shifted=True)
    make_photos(own_folder / "pictures" / "new", per_class=1, size=32, seed=2)
    paths = sorted((own_folder / "pictures" / "worn").rglob("*.*"))
    rows = [
        f"worn/{path.parent.name}/{path.name},{path.parent.name},p{number // 4:02},s{number // 2:02},{'AB'[number % 2]}"
        for number, path in enumerate(paths)
    ]
    (own_folder / "pictures" / "labels.csv").write_text("\n".join(["path,label,patient,specimen,site", *rows]))
    runs = [words for words in commands() if words[0] == "run"]
    for words in runs:
        # With so few pictures, no strategy is shown to be the best; tests/cli/test_refit.py tests the option.
        result = cli(*(word for word in words if word != "--refit"), *SMALL)
        assert result.exit_code == 0, result.stderr
        if "table:pictures/labels.csv" in words:
            assert json.loads(result.stdout)["plan"]["notices"][0] in TEXT
        (run_id,) = [run["run_id"] for run in json.loads(result.stdout)["runs"] if run["strategy"] == "lora"]
    for words in commands():
        if words[0] != "run":
            result = cli(*[run_id if word == "RUN_ID" else word for word in words])
            assert result.exit_code == 0, result.stderr
    make_photos(own_folder, per_class=2, size=40, classes=["a"])
    for name, picture in (("a.jpg", "a/0000.jpg"), ("b.png", "a/0001.jpg")):
        (own_folder / picture).rename(own_folder / name)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(code.replace("RUN_ID", run_id), {"adaptkit": adaptkit})
