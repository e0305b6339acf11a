"""The tutorial: it runs in an empty folder; what is kept of it are results, and nothing of a machine.

`KEEP_TUTORIAL=1 pytest -n 0 -m slow tests/docs/test_tutorial.py` runs it and keeps its new results.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from mlflow import MlflowClient
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
STRATEGIES = {"full", "head", "lora", "scratch"}
PNG = b"\x89PNG\r\n"

PAIR = re.compile(r"In target accuracy, (.+?) (?:is better than|and) (.+?) (?:by|differ by|are tied) .*\.")
SCOPE = re.compile(
    r"This holds for this base, models trained on 200 newly labelled images, and new test images of mnist5k under this "
    r"shift; 400 were measured\."
)


def outputs(book: Any, cell_id: str) -> list[Any]:
    """Return what a cell gave."""
    (cell,) = (cell for cell in book.cells if cell.id == cell_id)
    return list(cell.outputs)


def printed(book: Any, cell_id: str) -> str:
    """Return what a cell printed."""
    return "".join(output.text for output in outputs(book, cell_id) if output.output_type == "stream")


def check_sentences(sentences: list[str], strategies: set[str]) -> None:
    """Check that sentences compare all pairs of these strategies, and say what the comparison shows and covers."""
    pairs = [PAIR.fullmatch(sentence) for sentence in sentences if sentence.startswith("In target accuracy, ")]
    assert all(pairs), sentences
    names = {frozenset(match.groups()) for match in pairs if match}
    assert names == {frozenset(pair) for pair in itertools.combinations(strategies, 2)}
    others = sentences[len(pairs) :]
    for start in ("Without adaptation, the base reaches ", "The Pareto front by trainable parameters is "):
        assert sum(sentence.startswith(start) for sentence in others) == 1, start
    assert SCOPE.fullmatch(others[-1]), others[-1]


def check_results(book: Any) -> None:
    """Check that a tutorial that was run shows its table, verdicts, report and figures, and no warning."""
    given = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in given} == {"stream", "execute_result"}
    assert [output.text for output in given if output.get("name") == "stderr"] == []

    assert "200 labelled target images, 8 epochs, seeds (0, 1, 2, 3, 4)" in printed(book, "run")
    (table,) = (output for output in outputs(book, "table") if output.output_type == "execute_result")
    assert all(f"<th>{name}</th>" in table.data["text/html"] for name in STRATEGIES)

    check_sentences(printed(book, "verdict").strip().split("\n\n"), STRATEGIES)
    check_sentences(printed(book, "ranks").strip().split("\n\n"), {f"lora rank={rank}" for rank in (2, 4, 8)})

    assert printed(book, "report").split()[:4] == ["precision", "recall", "f1-score", "support"]
    for name in ("samples", "figures", "parameters", "classes", "sweep"):
        (figure,) = (output.data for output in outputs(book, name) if output.output_type == "execute_result")
        assert base64.b64decode(figure["image/png"]).startswith(PNG), name


def test_stored_notebook_ran_top_to_bottom() -> None:
    book = nbformat.read(TUTORIAL, as_version=4)
    nbformat.validate(book)
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    check_results(book)


def test_stored_notebook_is_small_and_portable() -> None:
    assert TUTORIAL.stat().st_size < 600_000
    book = json.loads(TUTORIAL.read_text(encoding="utf-8"))
    assert book["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert [cell["metadata"] for cell in book["cells"]] == [{}] * len(book["cells"])
    for cell in book["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
            text = json.dumps(output)
            # A path of two parts at least, since HTML has tags such as </div>; a drive; an address of a file or store.
            assert not re.search(r"(?<![<\w.])/[\w.~-]+/|\b[A-Z]:\\|\b(?:file|sqlite):/", text), text


@pytest.mark.slow
def test_notebook_runs_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not the settings of whoever runs the tests.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # `import mlflow` asks for notebook widgets, which nothing here shows.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    folder = tmp_path / "empty"
    folder.mkdir()
    book = nbformat.read(TUTORIAL, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None

    NotebookClient(
        book,
        timeout=600,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()

    check_results(book)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("adaptkit")
    assert experiment is not None
    kinds = [run.data.tags["adaptkit.kind"] for run in client.search_runs([experiment.experiment_id])]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"base": 1, "adaptation": 30, "comparison": 4}

    if os.environ.get("KEEP_TUTORIAL"):
        # The kernel adds its version.
        book.metadata["language_info"] = {"name": "python"}
        nbformat.write(book, TUTORIAL)
