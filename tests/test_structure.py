"""The structure of the package: rooms that import downwards only, no circles, light start-up, every hook tested."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from support.experiments import TINY

PACKAGE = Path(__file__).parents[1] / "adaptkit"

#: rooms from the highest row to the lowest; a module belongs to the longest name that fits
ROWS = [
    ["adaptkit.cli", "adaptkit.__main__"],
    ["adaptkit", "adaptkit.api"],
    ["adaptkit.testing", "adaptkit.scaffold"],
    ["adaptkit.tuning"],
    ["adaptkit.sweeps"],
    ["adaptkit.resumption", "adaptkit.reproduction", "adaptkit.models"],
    ["adaptkit.experiment"],
    ["adaptkit.tracking"],
    ["adaptkit.reports"],
    ["adaptkit.comparison"],
    ["adaptkit.training"],
    ["adaptkit.strategies", "adaptkit.metrics"],
    ["adaptkit.backbones"],
    ["adaptkit.data"],
    ["adaptkit.adapters"],
    ["adaptkit.settings"],
    ["adaptkit.plugins"],
    ["adaptkit.system"],
    [
        "adaptkit.names",
        "adaptkit.events",
        "adaptkit.seeds",
        "adaptkit.contracts",
        "adaptkit.hookspecs",
        "adaptkit.errors",
        "adaptkit.version",
    ],
]

#: modules that one other module imports, with the reason why they are files of their own
ONE_IMPORTER = {
    "adaptkit.backbones.torchvision_models": "imports torch; the backbone's class does not, so that listing is quick",
    "adaptkit.cli": "the command itself",
    "adaptkit.cli.views.predictions": "a view is imported when its command prints",
    "adaptkit.cli.views.reproduction": "a view is imported when its command prints",
    "adaptkit.cli.views.tuning": "a view is imported when its command prints",
    "adaptkit.comparison.notes": "one idea: what to know about the runs next to their verdicts",
    "adaptkit.comparison.optimism": "one idea: how optimistic the choice of the best strategy is",
    "adaptkit.comparison.trends": "one idea: comparisons that differ in one number",
    "adaptkit.data.readers.arrays": "one kind of file",
    "adaptkit.data.readers.fits": "one kind of file",
    "adaptkit.data.readers.picture": "one kind of file",
    "adaptkit.data.readers.tiff": "one kind of file",
    "adaptkit.data.sets.table_files": "one idea: the rows of a file as text",
    "adaptkit.experiment.fits": "one idea: the results of the folds of a run",
    "adaptkit.models.formats.peft": "loaded by name, as a format",
    "adaptkit.training.phases": "one idea: the steps of a training divided into phases",
    "adaptkit.strategies.fitted_layers": "imports torch; the strategies' classes do not, so that listing is quick",
    "adaptkit.reports.figures.classes": "one kind of figure",
    "adaptkit.reports.figures.pairs": "one kind of figure",
    "adaptkit.reports.figures.reliability": "one kind of figure",
    "adaptkit.reports.figures.run": "one kind of figure, imported when a run has finished",
    "adaptkit.reports.figures.severity": "one kind of figure",
    "adaptkit.reproduction.rerun": "one idea: run a recorded run again",
    "adaptkit.resumption.group": "one idea: the runs of one command",
    "adaptkit.scaffold": "public",
    "adaptkit.scaffold.package": "the only module of its room",
    "adaptkit.settings.shifts": "one idea: texts of shifts",
    "adaptkit.strategies.adapter_layers": "imports torch; the strategy's class does not, so that listing is quick",
    "adaptkit.strategies.lora_layers": "imports torch; the strategy's class does not, so that listing is quick",
    "adaptkit.strategies.ssf_layers": "imports torch; the strategy's class does not, so that listing is quick",
    "adaptkit.sweeps.engines.inline": "imports torch; the engine's class does not, so that listing is quick",
    "adaptkit.sweeps.engines.processes": "imports torch; the engine's class does not, so that listing is quick",
    "adaptkit.sweeps.planning": "one idea: the plan of a sweep",
    "adaptkit.testing": "public",
    "adaptkit.testing.backbone_checks": "one kind of check",
    "adaptkit.testing.dataset_checks": "one kind of check",
    "adaptkit.testing.kit": "the only door to the checks",
    "adaptkit.testing.reader_checks": "one kind of check",
    "adaptkit.testing.shift_checks": "one kind of check",
    "adaptkit.testing.strategy_checks": "one kind of check",
    "adaptkit.testing.metric_checks": "the checks of one kind of plugin",
    "adaptkit.tracking.active_run": "one idea: MLflow's active run",
    "adaptkit.tracking.artifacts": "one idea: the artifacts of a finished run",
    "adaptkit.training.memory": "one idea: the peak memory of a training step",
    "adaptkit.tuning.figure": "a figure is imported when it is drawn",
    "adaptkit.tuning.runs": "one idea: the runs of a tuning",
}


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(path: Path) -> list[str]:
    """Return the modules that a module imports at run time, not only for type checkers."""
    return list(imported(path))


def imported(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("adaptkit"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("adaptkit"))


def row(module: str) -> int:
    matches = [(len(name), number) for number, names in enumerate(ROWS) for name in names if is_in(module, name)]
    assert matches, f"{module} is in no row"
    return max(matches)[1]


def is_in(module: str, name: str) -> bool:
    return module == name or (module.startswith(f"{name}.") and name != "adaptkit")


def test_imports_point_downwards() -> None:
    upward = [
        f"{module} -> {name}"
        for module, path in modules().items()
        if module != "adaptkit"  # the package itself names what is public, and imports it on first use
        for name in imports(path)
        if name != "adaptkit" and row(name) < row(module)
    ]
    assert upward == []


def test_no_import_circles() -> None:
    graph = {name: set(imports(path)) - {"adaptkit"} for name, path in modules().items() if name != "adaptkit"}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_root_holds_a_dozen_modules() -> None:
    assert len([name for name, path in modules().items() if path.parent == PACKAGE]) <= 12


def test_fragments_have_a_reason() -> None:
    importers: dict[str, set[str]] = {}
    for module, path in modules().items():
        for name in imports(path):
            importers.setdefault(name, set()).add(module)
    verbs = {f"adaptkit.api.{path.stem}": f"adaptkit.cli.{path.stem}" for path in (PACKAGE / "api").glob("*.py")}
    single = {name for name, found in importers.items() if len(found) == 1 and {verbs.get(name)} != found}
    assert single == set(ONE_IMPORTER)


def test_comparison_needs_neither_mlflow_nor_matplotlib() -> None:
    names = [name for name in modules() if name.startswith("adaptkit.comparison")]
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print([name for name in ('mlflow', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "allowed"), [(["--help"], set()), (["run", "--help"], {"pydantic"}), (["--version"], set())]
)
def test_help_imports_neither_torch_nor_mlflow(arguments: list[str], allowed: set[str]) -> None:
    code = (
        "import sys\nfrom adaptkit.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'mlflow', 'numpy', 'pydantic', 'rich'} & set(sys.modules)\n"
        f"print(sorted(heavy - {allowed!r}), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"
    assert "adaptkit" in result.stdout


@pytest.mark.slow
def test_no_unneeded_imports_before_training(cli: Callable[..., Result], store: Path, own_folder: Path) -> None:
    plugin = own_folder / "watching.py"
    plugin.write_text(
        "import sys\nfrom adaptkit import hookimpl\n"
        "LATE = ('torch._dynamo', 'torchvision', 'sklearn', 'scipy.stats', 'matplotlib')\n"
        "def show(run):\n"
        "    early = [name for name in LATE if name in sys.modules]\n"
        "    print(run.kind, 'mlflow' in sys.modules, early, file=sys.stderr)\n"
        "@hookimpl\ndef adaptkit_run_started(run, model):\n    show(run)\n"
        "@hookimpl\ndef adaptkit_epoch_ended(run, epoch):\n    show(run)\n"
    )
    # The first run records the base as well, for which figures are drawn.
    assert cli("run", "-s", "head", *TINY, "-q").exit_code == 0
    command = [sys.executable, "-m", "adaptkit", "run", "-s", "lora", *TINY, "-q", "--plugin", str(plugin)]
    seen = []
    for more in ([], ["--no-track"]):
        result = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        seen.append(list(dict.fromkeys(result.stderr.splitlines())))
    assert seen == [["adaptation True []"], ["adaptation False []"]]


def test_python_m_adaptkit() -> None:
    result = subprocess.run([sys.executable, "-m", "adaptkit", "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: adaptkit [OPTIONS] [COMMAND] [ARGS]...")


def test_every_hook_has_a_test() -> None:
    from adaptkit import hookspecs

    hooks = [name for name in vars(hookspecs) if name.startswith("adaptkit_")]
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    assert len(hooks) == 11
    assert [name for name in hooks if f"def {name}(" not in tests] == []


def test_files_have_at_most_500_lines() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}
