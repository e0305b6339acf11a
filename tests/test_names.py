"""The names of MLflow metrics, tags and artifacts are written only in `adaptkit/names.py`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptkit import names

PACKAGE = Path(names.__file__).parent
NAMES = {key: value for key, value in vars(names).items() if key.isupper()}
KEYS = [re.escape(value) for key, value in NAMES.items() if re.search("[/.]", value) and not key.endswith("_FILE")]
FILES = [re.escape(value) for key, value in NAMES.items() if key.endswith("_FILE")]
FAMILIES = sorted({value.split("/")[0] for value in NAMES.values() if re.fullmatch(r"[a-z]+/\w*", value)})
#: Finds names anywhere in a text, but names of files only if they are the whole text, since messages name files too.
#: Also finds new metrics of a known family and new tags.
LITERAL = re.compile(
    rf"(?<![\w./-])(?:{'|'.join(sorted(KEYS, key=len, reverse=True))})(?![\w-])"
    rf"|^(?:{'|'.join(FILES)})$"
    rf"|^(?:{'|'.join(FAMILIES)})/[a-z_]*$"
    r"|^adaptkit\.[a-z_]*$"
    r"|^mlflow\.(?:data|note|parentRunId|source|user)\b"
)


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string in a module, without docstrings and imported modules."""
    tree = ast.parse(source)
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr):
                skipped.add(id(first.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def test_names_are_unique() -> None:
    assert len(set(NAMES.values())) == len(NAMES)


def test_names_module_holds_all_names() -> None:
    places = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == Path(names.__file__):
            continue
        for line, text in literals(path.read_text(encoding="utf-8")):
            if match := LITERAL.search(text):
                places.append(f"{path.relative_to(PACKAGE)}:{line}: {match[0]!r}")
    assert places == []


@pytest.mark.parametrize(
    "code",
    [
        'KEY = "final/gain"',
        'f"no metric final/gain in {run}"',
        'metrics["time/something_new"]',
        'key.startswith("severity/")',
        'tags["adaptkit.new"]',
        'tags[f"adaptkit.{name}"]',
        'tags["mlflow.note.content"]',
        'f"tags.`adaptkit.kind` = {kind}"',
        'open("predictions.csv")',
    ],
)
def test_scan_finds_literals(code: str) -> None:
    assert any(LITERAL.search(text) for _, text in literals(code))


def test_scan_ignores_docstrings() -> None:
    assert list(literals('def f():\n    """Return `final/gain`."""')) == []
