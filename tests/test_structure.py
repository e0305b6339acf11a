"""The shape of the code: rows that import downwards only, no circles, light start-up, every hook tested."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY

PACKAGE = Path(__file__).parents[1] / "adaptkit"

#: from the highest row to the lowest; a module belongs to the longest name that fits
ROWS = [
    ["adaptkit.cli", "adaptkit.__main__"],
    [
        "adaptkit.api",
        "adaptkit.comparing",
        "adaptkit.trained",
        "adaptkit.stored_runs",
        "adaptkit.run_data",
        "adaptkit.run_record",
        "adaptkit.run_environment",
        "adaptkit.record_checks",
        "adaptkit.reproducing",
        "adaptkit.rerun",
        "adaptkit.preprocessing",
        "adaptkit.exporting",
        "adaptkit.exports",
        "adaptkit.predicting",
        "adaptkit.importing",
        "adaptkit.sweeping",
        "adaptkit.tuning",
        "adaptkit.tuned_settings",
        "adaptkit.caching",
        "adaptkit.syncing",
        "adaptkit.concluding",
        "adaptkit.diagnosis",
        "adaptkit.machine_checks",
        "adaptkit.resuming",
        "adaptkit.regrouping",
        "adaptkit.resumable",
        "adaptkit",
    ],
    ["adaptkit.testing", "adaptkit.scaffold"],
    ["adaptkit.sweeps"],
    ["adaptkit.experiment"],
    ["adaptkit.tracking"],
    ["adaptkit.reports"],
    ["adaptkit.training"],
    ["adaptkit.strategies", "adaptkit.backbones", "adaptkit.data"],
    ["adaptkit.adapters"],
    [
        "adaptkit.resolve",
        "adaptkit.request",
        "adaptkit.config",
        "adaptkit.config_files",
        "adaptkit.presets",
        "adaptkit.outcome",
        "adaptkit.sweep_outcome",
        "adaptkit.tune_outcome",
        "adaptkit.comparison",
        "adaptkit.findings",
        "adaptkit.reproduction",
        "adaptkit.identity",
        "adaptkit.loading",
        "adaptkit.plugins",
        "adaptkit.offers",
        "adaptkit.hookspecs",
        "adaptkit.contracts",
        "adaptkit.cache",
        "adaptkit.state",
        "adaptkit.seeds",
        "adaptkit.severity",
        "adaptkit.shift_settings",
        "adaptkit.signals",
        "adaptkit.instances",
        "adaptkit.network",
        "adaptkit.ranges",
        "adaptkit.imports",
        "adaptkit.plain_files",
        "adaptkit.printing",
        "adaptkit.streams",
        "adaptkit.redaction",
        "adaptkit.errors",
    ],
]


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(path: Path) -> list[str]:
    """Return what a module imports when it runs: not for type checkers only."""
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
    fits = [(len(name), number) for number, names in enumerate(ROWS) for name in names if is_in(module, name)]
    assert fits, f"{module} stands in no row"
    return max(fits)[1]


def is_in(module: str, name: str) -> bool:
    return module == name or (module.startswith(f"{name}.") and name != "adaptkit")


@pytest.mark.parametrize("module", modules())
def test_a_lower_row_never_imports_a_higher_one(module: str) -> None:
    if module == "adaptkit":
        return  # the public names: whatever they are
    above = [name for name in imports(modules()[module]) if row(name) < row(module) and name != "adaptkit"]
    assert above == []


def test_nothing_imports_in_a_circle() -> None:
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
def test_nothing_that_training_does_without_is_imported_before_it(store: Path, own_folder: Path) -> None:
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
    command = [sys.executable, "-m", "adaptkit", "run", *TINY, "-q", "--plugin", str(plugin), "-s"]
    seen = []
    for strategy, more in (("head", []), ("lora", []), ("lora", ["--no-track"])):
        result = subprocess.run([*command, strategy, *more], capture_output=True, text=True, check=True)
        seen.append(list(dict.fromkeys(result.stderr.splitlines())))
    assert seen[1:] == [["adaptation True []"], ["adaptation False []"]]


def test_python_m_adaptkit_is_the_same_command() -> None:
    result = subprocess.run([sys.executable, "-m", "adaptkit", "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: adaptkit [OPTIONS] [COMMAND] [ARGS]...")


def test_every_hook_has_a_test() -> None:
    from adaptkit import hookspecs

    hooks = [name for name in vars(hookspecs) if name.startswith("adaptkit_")]
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert len(hooks) == 9
    assert [name for name in hooks if f"def {name}(" not in tests] == []


def test_no_file_is_overlong() -> None:
    long = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > 500} == {}
