"""`adaptkit plugins list|check|new`, and broken plugins, which do not stop other commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from support.experiments import BITFIT, TINY
from support.plugin_files import PLUGIN, forget_modules, install, write

import adaptkit
from adaptkit.plugins.loading import load_plugins
from adaptkit.testing.models import MODELS

Cli = Callable[..., Result]
__all__ = ["forget_modules"]

PLUGIN_FLAT = """
from adaptkit import hookimpl

class LastBias:
    "Train the bias of the head."
    name = "last-bias"

    def adapt(self, model):
        return [model.head.bias]

@hookimpl
def adaptkit_strategies():
    return [LastBias]
"""

BROKEN = "raise RuntimeError('no GPU')\n"


def test_list(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_folder, "thirdparty_good", PLUGIN, monkeypatch)
    install(own_folder, "thirdparty_broken", BROKEN, monkeypatch)
    watcher = write(
        own_folder / "watcher.py", "from adaptkit import hookimpl\n@hookimpl\ndef adaptkit_run_ended(run): ...\n"
    )
    result = cli("plugins", "list", "--plugin", str(watcher))
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["name", "kind", "from", "state"]
    assert ["lora", "strategy", "built-in", "lora", "ok"] in rows
    assert ["last-bias", "strategy", "thirdparty_good", "1.2", "ok"] in rows
    assert ["-", "-", "thirdparty_broken", "1.2", "RuntimeError:", "no", "GPU"] in rows
    assert rows[-1] == ["Python:", sys.executable]
    assert result.stderr == (
        "Warning: plugin thirdparty_broken 1.2: RuntimeError: no GPU; fix it, or remove it with pip "
        "uninstall thirdparty_broken\n"
    )
    document = json.loads(cli("plugins", "list", "--json", "--plugin", str(watcher)).stdout)
    assert document["python"] == sys.executable
    assert {"name": "-", "kind": "watches runs", "origin": str(watcher), "state": "ok"} in document["offers"]
    assert [fault["origin"] for fault in document["faults"]] == ["thirdparty_broken 1.2"]
    assert document == json.loads(cli("plugins", "--json", "--plugin", str(watcher)).stdout)


def test_list_without_installed_plugins(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_folder, "thirdparty_broken", BROKEN, monkeypatch)
    monkeypatch.setenv("ADAPTKIT_ENTRY_POINTS", "0")
    result = cli("plugins", "list")
    assert result.stderr == "" and "thirdparty" not in result.stdout


def test_name_offered_twice(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_folder, "thirdparty_taken", PLUGIN.replace("last-bias", "lora"), monkeypatch)
    line = "plugin thirdparty_taken 1.2: strategy 'lora' is already provided by built-in lora; remove or rename one"
    assert cli("plugins", "list").exit_code == 0
    assert cli("run", "-s", "head", *TINY, "--no-track", "-q").exit_code == 0
    needed = cli("run", "-s", "lora", *TINY, "--no-track")
    assert needed.exit_code == 2 and needed.stderr.splitlines()[-1].startswith(f"Error: {line}")


def test_file_of_an_installed_plugin(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_folder, "thirdparty_same", PLUGIN, monkeypatch)
    path = write(own_folder / "same.py", PLUGIN)
    result = cli("run", "-s", "last-bias", "--plugin", str(path), *TINY, "--no-track")
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: plugin {path}: strategy 'last-bias' is already provided by thirdparty_same 1.2; "
        "leave out --plugin, or uninstall thirdparty_same\n"
    )


def test_plugin_for_a_newer_adaptkit(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_folder, "thirdparty_new", f"API_VERSION = 2\n{PLUGIN_FLAT}", monkeypatch)
    (fault,) = load_plugins().faults
    assert fault.message == (
        f"it needs version 2 of the plugin API, but adaptkit {adaptkit.__version__} has version 1; "
        "install a newer adaptkit-vision"
    )
    assert cli("strategies").exit_code == 0


@pytest.mark.slow
def test_plugin_with_a_slow_import(own_folder: Path) -> None:
    site = own_folder / "site"
    site.mkdir()
    (site / "thirdparty_heavy.py").write_text(f"import torch\n{PLUGIN_FLAT}")
    info = site / "thirdparty_heavy-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty_heavy\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[adaptkit]\nheavy = thirdparty_heavy\n")
    command = [sys.executable, "-m", "adaptkit", "strategies"]
    result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(site)})
    assert result.returncode == 0 and "last-bias" in result.stdout
    assert result.stderr == (
        "Warning: plugin thirdparty_heavy 1.2: it imports torch, which makes every command slow; import inside "
        "methods instead; fix it, or remove it with pip uninstall thirdparty_heavy\n"
    )


def test_warnings_that_python_hides_stay_hidden(own_folder: Path) -> None:
    leaky = "from adaptkit import hookimpl\n@hookimpl\ndef adaptkit_strategies():\n    open(__file__)\n    return []\n"
    path = write(own_folder / "adaptkit_leaky.py", leaky)
    command = [sys.executable, "-m", "adaptkit", "shifts", "--plugin", str(path)]
    hidden = subprocess.run(command, capture_output=True, text=True)
    assert (hidden.returncode, hidden.stderr) == (0, "")
    shown = subprocess.run([*command[:1], "-W", "always", *command[1:]], capture_output=True, text=True)
    assert "Warning: unclosed file" in shown.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_loads_no_plugin(own_folder: Path, arguments: list[str]) -> None:
    plugin = write(own_folder / "loud.py", "raise SystemExit('loaded')\n")
    result = subprocess.run(
        [sys.executable, "-m", "adaptkit", *arguments],
        capture_output=True,
        text=True,
        env={"ADAPTKIT_PLUGINS": str(plugin)},
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_completion_loads_no_plugin(own_folder: Path) -> None:
    plugin = write(own_folder / "loud.py", "raise SystemExit('loaded')\n")
    environment = {
        "ADAPTKIT_PLUGINS": str(plugin),
        "_ADAPTKIT_COMPLETE": "bash_complete",
        "COMP_WORDS": "adaptkit pl",
        "COMP_CWORD": "1",
    }
    result = subprocess.run([sys.executable, "-m", "adaptkit"], capture_output=True, text=True, env=environment)
    assert (result.stdout, result.stderr) == ("plain,plugins\n", "")


UNAVAILABLE = PLUGIN_FLAT.replace('name = "last-bias"', 'name = "last-bias"\n    unavailable = "it needs a GPU"')


def test_unavailable_strategy(cli: Cli, own_folder: Path) -> None:
    path = str(write(own_folder / "mine.py", UNAVAILABLE))
    assert "last-bias" not in cli("strategies", "--plugin", path).stdout
    assert "Cannot be used: it needs a GPU" in cli("strategies", "--all", "--plugin", path).stdout
    result = cli("run", "-s", "last-bias", *TINY, "--no-track", "--plugin", path)
    assert result.stderr == "Error: strategy last-bias cannot be used: it needs a GPU\n"
    assert result.exit_code == 2


@pytest.mark.slow
def test_check(cli: Cli) -> None:
    result = cli("plugins", "check", str(BITFIT))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["strategy", "bitfit", *MODELS]
    assert ["starts", "at", "the", "base", *["ok"] * len(MODELS)] in lines
    assert ["merges", "exactly", *["-"] * len(MODELS)] in lines
    assert f"not tried ({', '.join(MODELS)}): it has no merge()" in result.stdout


@pytest.mark.slow
def test_check_of_a_faulty_plugin(cli: Cli, own_folder: Path) -> None:
    faulty = PLUGIN_FLAT.replace("        return", "        model.head.bias.data += 1\n        return")
    path = write(own_folder / "mine.py", faulty)
    result = cli("plugins", "check", str(path))
    assert result.exit_code == 1
    # The average of two heads differs by another amount.
    one_head = [name for name in MODELS if name != "entangled"]
    failure = f"FAILED starts at the base ({', '.join(one_head)}): before training, logits differ"
    assert failure in result.stdout
    (document,) = json.loads(cli("plugins", "check", str(path), "--json").stdout)
    failed = [(check["check"], check["subject"]) for check in document["checks"] if check["word"] == "failed"]
    assert failed == [("starts at the base", name) for name in MODELS]
    # The same, by name.
    assert cli("plugins", "check", "last-bias", "--plugin", str(path)).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["lorra"], "Error: unknown name 'lorra'; did you mean 'lora'?"),
        (["lora", "-o", "rank=many"], "Error: lora.rank: must be a whole number, not 'many'"),
        (["lora", "-o", "rnk=2"], "Error: unknown option 'lora.rnk'; did you mean 'rank'?"),
        (["lora", "-o", "rank"], "Error: -o rank: write key=value"),
        (["none.py"], "Error: plugin {folder}/none.py: there is no such file"),
    ],
)
def test_check_with_bad_input(cli: Cli, own_folder: Path, arguments: list[str], line: str) -> None:
    result = cli("plugins", "check", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{line.format(folder=own_folder)}\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["strategy", "backbone", "dataset", "shift"])
def test_new_plugin_passes_its_checks(cli: Cli, own_folder: Path, kind: str) -> None:
    result = cli("plugins", "new", "my-own", "--kind", kind)
    assert (result.exit_code, result.stderr) == (0, "")
    check, install, example, test = (line.strip() for line in result.stdout.splitlines()[2:])
    assert check == "adaptkit plugins check adaptkit-my-own/adaptkit_my_own.py"
    assert install == "pip install -e './adaptkit-my-own[test]'"
    assert example.startswith("adaptkit run ") and test == "pytest adaptkit-my-own"
    folder = own_folder / "adaptkit-my-own"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "adaptkit_my_own.py",
        "pyproject.toml",
        "setup.cfg",
        "tests/test_adaptkit_my_own.py",
    ]
    for command in (["check"], ["format", "--check"]):
        linted = subprocess.run(["ruff", *command, "."], cwd=folder, capture_output=True, text=True)
        assert linted.returncode == 0, linted.stdout
    for name in ("adaptkit-my-own", "adaptkit-my-own/"):
        refused = cli("plugins", "check", name)
        assert refused.exit_code == 2
        advice = "check its .py file, or install it with pip and check its plugin by name"
        assert refused.stderr == f"Error: {name} is a folder; {advice}\n"
    checked = cli("plugins", "check", str(folder / "adaptkit_my_own.py"))
    assert checked.exit_code == 0, checked.stdout
    again = cli("plugins", "new", "my-own", "--kind", kind)
    assert again.exit_code == 2
    assert (
        again.stderr == "Error: adaptkit-my-own already exists; choose another name, or another folder with --output\n"
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("My Own", "'My Own' cannot be the name of a plugin; use lowercase letters and digits, with - between words"),
        ("lora", "strategy 'lora' is already provided by built-in lora; choose another name"),
    ],
)
def test_new_plugin_with_a_bad_name(cli: Cli, own_folder: Path, name: str, line: str) -> None:
    result = cli("plugins", "new", name)
    assert (result.exit_code, result.stderr) == (2, f"Error: {line}\n")
    assert list(own_folder.glob("*adaptkit-*")) == []


@pytest.mark.slow
def test_new_plugins_install(own_folder: Path) -> None:
    """Install in a new environment that shares the packages of this one, but does not change it."""
    run = runner(own_folder)
    kinds = ("strategy", "backbone", "dataset", "shift")
    for kind in kinds:
        run(sys.executable, "-m", "adaptkit", "plugins", "new", f"my-{kind}", "--kind", kind)
    environment = own_folder / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    site = Path(
        subprocess.run(
            [str(python), "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True
        ).stdout.strip()
    )
    mine = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({mine!r})\n")
    names = [f"adaptkit-my-{kind}" for kind in kinds]
    run(str(python), "-m", "pip", "install", "--quiet", *(f"./{name}" for name in names))
    listed = json.loads(run(str(python), "-m", "adaptkit", "plugins", "list", "--json"))
    for kind, name in zip(kinds, names, strict=True):
        assert {"name": f"my-{kind}", "kind": kind, "origin": f"{name} 0.1.0", "state": "ok"} in listed["offers"]
    run(str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *names)
    run(str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *names)
    assert "my-strategy" not in run(str(python), "-m", "adaptkit", "plugins", "list", "--json")
    shutil.rmtree(environment)


def runner(folder: Path) -> Callable[..., str]:
    """Return a function that runs a command in a folder and returns what it prints."""

    def run(*command: str) -> str:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run
