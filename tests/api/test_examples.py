"""Public names: each has documentation with its sections, and its examples run."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.experiments import TINY_SETTINGS

import adaptkit
from adaptkit.settings.files import PRESETS

FUNCTIONS = [name for name in adaptkit.__all__ if inspect.isfunction(getattr(adaptkit, name))]
CLASSES = [name for name in adaptkit.__all__ if inspect.isclass(getattr(adaptkit, name))]
#: examples that take seconds: they train, export or run again
LONG_EXAMPLES = {
    "compare",
    "draw",
    "Reproduction",
    "refit",
    "RefitSummary",
    "reproduce",
    "resume",
    "sweep",
    "tune",
    "import_peft",
    "ImportRecord",
    "SweepOutcome",
    "TuneOutcome",
}
SECTION = re.compile(r"^\s*(\w+)\n\s*-{3,}$", re.MULTILINE)


class Interrupting:
    @adaptkit.hookimpl
    def adaptkit_epoch_ended(self, run: Any, epoch: Any) -> None:
        if run.kind == "adaptation":
            raise KeyboardInterrupt


def test_public_names() -> None:
    assert set(adaptkit.__all__) == set(dir(adaptkit)) == {
        *("run", "compare", "sweep", "tune", "resume", "reproduce", "load", "predict", "export", "import_peft", "draw"),
        *("hookimpl", "RunOutcome", "SweepOutcome", "TuneOutcome", "Comparison", "Comparisons", "Reproduction"),
        *("Prediction", "ExportRecord", "ImportRecord", "Preprocessing", "AdaptkitError", "BadInput", "RunFailed"),
        *("refit", "RefitSummary", "Phase", "__version__"),
    }  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_document_every_parameter(name: str) -> None:
    function = getattr(adaptkit, name)
    text = inspect.getdoc(function) or ""
    assert {"Parameters", "Returns", "Examples"} <= set(SECTION.findall(text))
    assert ("Raises" in text) == (name != "draw")
    section = text.partition("Parameters\n----------\n")[2].partition("\nReturns\n")[0]
    described = re.sub(r",\s*(\\\n)?\s*", " ", "\n".join(re.findall(r"^\S.*(?:\\\n.*)*", section, re.MULTILINE)))
    missing = [key for key in inspect.signature(function).parameters if not re.search(rf"\b{key}\b", described)]
    assert missing == []


class SharedRuns:
    """The package, with functions that do the same work only once."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(adaptkit, name)
        if name not in ("run", "sweep", "tune", "compare", "reproduce"):
            return attribute

        def shared(*arguments: Any, **keys: Any) -> Any:
            work = f"{name} {arguments} {keys}"
            if work not in self._outcomes:
                self._outcomes[work] = attribute(*arguments, **keys)
            return self._outcomes[work]

        return shared


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """Make a folder with a store and pictures."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    (folder / "photos").mkdir()
    for number in range(2):
        Image.effect_noise((30, 28), 80).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """Return the variables that examples use without defining them."""
    return {"adaptkit": SharedRuns(), "torch": torch}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG_EXAMPLES else []) for name in [*FUNCTIONS, *CLASSES]],
)
def test_examples(name: str, example_folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(example_folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(example_folder / "state"))
    monkeypatch.setitem(
        PRESETS,
        "quick",
        TINY_SETTINGS | {"epochs": 1, "base.epochs": 1} | dict.fromkeys(("min_steps", "base.min_steps")),
    )
    for folder in ("model", "program", "adapter"):
        shutil.rmtree(folder, ignore_errors=True)
    # The experiment that examples of other functions read.
    outcome = names["adaptkit"].run(["head", "lora"], seeds="0-1", preset="quick")
    names["run_id"] = outcome.runs[1].run_id
    if name == "ImportRecord":
        adaptkit.export(names["run_id"], to="peft", output="adapter")
    if name == "resume":
        with pytest.raises(KeyboardInterrupt) as caught:
            adaptkit.run("head", preset="quick", seeds=7, experiment="interrupted", plugins=[Interrupting()])
        names["interrupted_run_id"] = caught.value.__notes__[0].split()[-1]
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(adaptkit, name), name, globs=names)
    assert test.examples, f"{name} has no example"
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
