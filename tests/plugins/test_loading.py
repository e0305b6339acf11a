"""Loading plugins: files, installed packages, faults, event hooks and listings."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.experiments import BITFIT, TINY, TINY_SETTINGS
from support.plugin_files import PLUGIN, install, write

import adaptkit
from adaptkit.events import Epoch, RunStart
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.manager import PluginWarning

Cli = Callable[..., Result]


def installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_plugin_file(cli: Cli, own_folder: Path) -> None:
    path = write(own_folder / "mine.py", PLUGIN)
    result = cli("run", "-s", "last-bias", "-o", "scale=2", *TINY, "--no-track", "--json", "--plugin", str(path))
    (run,) = json.loads(result.stdout)["runs"]
    assert (run["metrics"]["params/trainable"], run["options"], run["lr"]) == (10, {"scale": 2.0}, 0.001)
    listed = json.loads(cli("strategies", "--json", "--plugin", str(path)).stdout)
    assert {
        "name": "last-bias",
        "summary": "Train the bias of the head.",
        "origin": str(path),
        "lr": 0.001,
        "options": [
            {"name": "scale", "type": "float", "required": False, "default": 1.0, "help": "does nothing"},
        ],
    } in listed


def test_installed_plugin(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_folder, "thirdparty_good", PLUGIN, monkeypatch=monkeypatch)
    assert load_plugins().find("strategy", "last-bias").origin == "thirdparty_good 1.2"
    assert cli("run", "-s", "last-bias", *TINY, "--no-track", "-q").exit_code == 0


def test_two_entry_points_of_one_distribution(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_folder, "thirdparty_pair", PLUGIN, monkeypatch=monkeypatch)
    write(own_folder / "thirdparty_other.py", PLUGIN.replace("last-bias", "first-bias"))
    (own_folder / "thirdparty_pair-1.2.dist-info" / "entry_points.txt").write_text(
        "[adaptkit]\na = thirdparty_pair\nb = thirdparty_other\n"
    )
    plugins = load_plugins()
    assert plugins.faults == ()
    assert plugins.find("strategy", "last-bias").origin == "thirdparty_pair 1.2"
    assert plugins.find("strategy", "first-bias").origin == "thirdparty_pair 1.2 (b)"


def test_bitfit_from_its_file(cli: Cli) -> None:
    arguments = ("run", "-s", "bitfit", *TINY, "--no-track", "--json", "--plugin", str(BITFIT))
    (run,) = json.loads(cli(*arguments).stdout)["runs"]
    assert (run["metrics"]["params/trainable"], run["metrics"]["params/total"]) == (234, 421_642)


@pytest.mark.slow
@pytest.mark.skipif(not installed("adaptkit-bitfit"), reason="plugins/bitfit is not installed")
def test_bitfit_installed() -> None:
    command = [sys.executable, "-m", "adaptkit", "run", "-s", "bitfit", *TINY, "--no-track", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    (run,) = json.loads(result.stdout)["runs"]
    assert (run["metrics"]["params/trainable"], run["metrics"]["params/total"]) == (234, 421_642)


def test_core_does_not_import_bitfit() -> None:
    sources = (Path(adaptkit.__file__).parent).rglob("*.py")
    assert not [path for path in sources if "bitfit" in path.read_text(encoding="utf-8").lower()]


def test_plugins_from_the_environment_not_the_current_folder(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(own_folder / "mine.py", PLUGIN)
    assert "last-bias" not in load_plugins().components["strategy"]
    monkeypatch.setenv("ADAPTKIT_PLUGINS", str(path))
    assert load_plugins().find("strategy", "last-bias").origin == str(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def broken(:\n", "syntax error in line 1: invalid syntax"),
        ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("x = 1\n", "it has no hooks (is @hookimpl missing?)"),
        (
            "from adaptkit import hookimpl\n@hookimpl\ndef adaptkit_strategys(): return []\n",
            "unknown hook adaptkit_strategys; did you mean 'adaptkit_strategies'?",
        ),
        (
            "from adaptkit import hookimpl\n@hookimpl\ndef adaptkit_epoch_ended(run, batch): ...\n",
            "PluginValidationError: Plugin '{path}' for hook 'adaptkit_epoch_ended' hookimpl definition: "
            "adaptkit_epoch_ended(run, batch) Argument(s) {{'batch'}} are declared in the hookimpl but can not be "
            "found in the hookspec",
        ),
        (
            "from adaptkit import hookimpl\nclass A: pass\n@hookimpl\ndef adaptkit_strategies(): return [A]\n",
            "adaptkit_strategies: A needs a class variable `name`, a string without '= , : .' and spaces",
        ),
        ("import sys; sys.exit()\n", "it called sys.exit while it was imported"),
        (
            "from adaptkit import hookimpl\nclass A:\n  name = 'a'\n  def apply(self, images, generator): ...\n"
            "@hookimpl\ndef adaptkit_shifts(): return [A]\n",
            "adaptkit_shifts: A must be a dataclass with one field, its amount",
        ),
        (
            "from adaptkit import hookimpl\nclass A:\n  name, lr = 'a', 'x'\n  def adapt(self, model): ...\n"
            "@hookimpl\ndef adaptkit_strategies(): return [A]\n",
            "adaptkit_strategies: A.lr must be a number above 0, not 'x'",
        ),
        (
            "from adaptkit import hookimpl\nclass A: name = 'a'\n@hookimpl\ndef adaptkit_strategies(): return [A]\n",
            "adaptkit_strategies: A has no method adapt() or fit() or phases()",
        ),
        (
            "from adaptkit import hookimpl\nclass A:\n  name = 'lora'\n  def adapt(self, model): ...\n"
            "@hookimpl\ndef adaptkit_strategies(): return [A]\n",
            "strategy 'lora' is already provided by built-in lora; remove or rename one",
        ),
    ],
)
def test_bad_plugin_file(cli: Cli, own_folder: Path, text: str, problem: str) -> None:
    path = write(own_folder / "bad.py", text)
    result = cli("run", "-s", "head", "--plugin", str(path))
    assert result.stderr == f"Error: plugin {path}: {problem.format(path=path)}\n"
    assert (result.exit_code, result.stdout) == (2, "")
    assert [entry.name for entry in own_folder.iterdir() if entry.suffix] == ["bad.py"]


def test_object_that_is_given_twice() -> None:
    class Plugin:
        @adaptkit.hookimpl
        def adaptkit_strategies(self) -> list[Any]:
            return []

    plugin = Plugin()
    assert [source.kind for source in load_plugins(objects=[plugin, plugin]).sources].count("object") == 1


def test_file_that_changed_within_a_second(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = own_folder / "late.py"
    for name in ("one", "two"):
        path.write_text(
            f"from adaptkit import hookimpl\nclass Named:\n    name = '{name}'\n    def adapt(self, model): pass\n"
            "@hookimpl\ndef adaptkit_strategies(): return [Named]\n"
        )
        os.utime(path, (1e9, 1e9))
        shown = cli("strategies", "--plugin", str(path), "--json")
        assert name in {strategy["name"] for strategy in json.loads(shown.stdout)}
    assert not (own_folder / "__pycache__").exists()


def test_missing_plugin_file(cli: Cli, own_folder: Path) -> None:
    result = cli("run", "-s", "head", "--plugin", "none.py")
    assert result.stderr == f"Error: plugin {own_folder}/none.py: there is no such file\n"
    assert result.exit_code == 2


def test_broken_installed_plugin(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_folder, "thirdparty_broken", "raise RuntimeError('no GPU')\n", monkeypatch=monkeypatch)
    hint = "fix it, or remove it with pip uninstall thirdparty_broken"
    fault = f"plugin thirdparty_broken 1.2: RuntimeError: no GPU; {hint}"
    listing = cli("strategies")
    assert (listing.exit_code, listing.stderr) == (0, f"Warning: {fault} (skipped)\n")
    plugins = cli("plugins")
    assert (plugins.exit_code, plugins.stderr) == (0, f"Warning: {fault}\n")
    needed = cli("run", "-s", "gpu-lora", *TINY, "--no-track")
    assert needed.exit_code == 2
    assert needed.stderr.splitlines()[-1] == f"Error: unknown strategy 'gpu-lora'; did you mean 'lora'? ({fault})"
    monkeypatch.setenv("ADAPTKIT_STRICT", "1")
    strict = cli("run", "-s", "head", *TINY, "--no-track")
    assert (strict.exit_code, strict.stderr) == (2, f"Error: {fault}\n")


def test_error_in_adapt(cli: Cli, own_folder: Path) -> None:
    path = write(own_folder / "mine.py", PLUGIN.replace("model.head.bias", "model.haed.bias"))
    result = cli("run", "-s", "last-bias", *TINY, "--plugin", str(path))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: strategy last-bias cannot be tried: AttributeError: 'SmallCNNModel' object has no")


@pytest.mark.slow
def test_config_of_a_run_names_its_plugin_files(store: Path, own_folder: Path) -> None:
    path = write(own_folder / "mine.py", PLUGIN)
    adaptkit.run("last-bias", settings=TINY_SETTINGS, plugins=[path])
    headers = {file.read_text().splitlines()[0] for file in own_folder.glob("mlruns/*/*/artifacts/config.yaml")}
    repeat = f"# adaptkit run --config config.yaml --plugin {path}"
    assert headers == {repeat, f"{repeat} --refresh-base -s NAME"}


def test_two_plugins_with_one_name(cli: Cli, own_folder: Path) -> None:
    one, two = write(own_folder / "one.py", PLUGIN), write(own_folder / "two.py", PLUGIN)
    result = cli("run", "-s", "head", "--plugin", str(one), "--plugin", str(two))
    assert result.exit_code == 2
    provided = "strategy 'last-bias' is already provided by"
    assert result.stderr == f"Error: plugin {two}: {provided} {one}; remove or rename one\n"


def test_error_in_an_event_hook(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        own_folder / "raising.py",
        """
        from adaptkit import hookimpl

        @hookimpl
        def adaptkit_run_started(run):
            if run.kind == "adaptation":
                raise ZeroDivisionError("one by zero")
        """,
    )
    message = (
        rf"plugin {path} failed in adaptkit_run_started: ZeroDivisionError: one by zero "
        rf"\({path}:7\); the run continues"
    )
    with pytest.warns(PluginWarning, match=message):
        outcome = adaptkit.run("head", settings=TINY_SETTINGS, track=False, plugins=[path])
    assert outcome.runs[0].status == "finished"
    monkeypatch.setenv("ADAPTKIT_STRICT", "1")
    with pytest.raises(ZeroDivisionError):
        adaptkit.run("head", settings=TINY_SETTINGS, track=False, plugins=[path])


@pytest.mark.slow
def test_order_of_events(store: Path) -> None:
    events: list[str] = []

    class Watcher:
        @adaptkit.hookimpl
        def adaptkit_run_started(self, run: RunStart) -> None:
            events.append(f"started {run.name} {tracked_as()}")

        @adaptkit.hookimpl
        def adaptkit_epoch_ended(self, run: RunStart, epoch: Epoch) -> None:
            events.append(f"epoch {epoch.number}")

        @adaptkit.hookimpl
        def adaptkit_run_ended(self, run: RunStart) -> None:
            events.append(f"ended {tracked_as()}")

        @adaptkit.hookimpl
        def adaptkit_run_failed(self, run: RunStart, error: BaseException) -> None:
            events.append(f"failed {tracked_as()} {type(error).__name__}")

    def tracked_as() -> str:
        import mlflow

        # The tracker is called first at the start and last at the end: the run is open for all other hooks.
        active = mlflow.active_run()
        return active.info.status if active else "nothing"

    adaptkit.run("head", settings=TINY_SETTINGS, plugins=[Watcher()], refresh_base=True)
    adaptkit.run("full", settings=TINY_SETTINGS | {"optimizer": "sgd"}, lr=1e30, plugins=[Watcher()])
    assert events == [
        "started base small_cnn mnist5k RUNNING",
        "epoch 1",
        "epoch 2",
        "ended RUNNING",
        "started head seed=0 RUNNING",
        "epoch 1",
        "epoch 2",
        "ended RUNNING",
        "started full seed=0 RUNNING",
        "failed RUNNING RunFailed",
    ]


@pytest.mark.parametrize("command", ["strategies", "datasets", "backbones", "shifts", "plugins"])
def test_listings_import_no_heavy_packages(cli: Cli, command: str) -> None:
    code = (
        "import sys\nfrom adaptkit.cli import main\n"
        f"try: main([{command!r}, '--json'])\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'mlflow', 'torchvision', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"
    assert json.loads(result.stdout)
    assert cli(command).exit_code == 0


def test_listings(cli: Cli) -> None:
    def names(command: str) -> list[str]:
        return [entry["name"] for entry in json.loads(cli(command, "--json").stdout)]

    assert {"full", "head", "lora", "scratch"} <= set(names("strategies"))
    assert names("datasets") == ["cifar10", "digits", "fashion-mnist", "folder", "kmnist", "mnist", "mnist5k", "table"]
    assert names("backbones") == ["small_cnn", "torchvision"]
    assert names("shifts") == ["blur", "contrast", "crop", "d4", "flip", "noise", "rotate"]
    assert "rank of the update" in cli("strategies", "lora").stdout


def test_backbone_data_set_and_shift_of_a_plugin(cli: Cli, own_folder: Path) -> None:
    path = write(
        own_folder / "everything.py",
        """
        from dataclasses import dataclass
        from adaptkit import hookimpl

        class Line:
            "One linear layer, without a property `head`."
            name = "line"

            def build(self, channels, size, classes):
                from torch import nn
                return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))

        class Bars:
            "Four positions of a bar."
            name = "bars"

            def load(self, data_dir):
                import torch
                from adaptkit.contracts import Corpus, Images
                labels = torch.arange(400) % 4
                pixels = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
                pixels[torch.arange(400), 0, 2 * labels] = 255
                return Corpus(Images(pixels, labels, ("a", "b", "c", "d")))

        @dataclass
        class Dim:
            "Darken."
            name = "dim"
            by: float = 0.0

            def apply(self, images, generator):
                return images * (1 - self.by)

        @hookimpl
        def adaptkit_backbones(): return [Line]

        @hookimpl
        def adaptkit_datasets(): return [Bars]

        @hookimpl
        def adaptkit_shifts(): return [Dim]
        """,
    )
    chosen = ("--backbone", "line", "--dataset", "bars", "--shift", "dim=0.5", "--plugin", str(path))
    result = cli("run", "-s", "head", "-s", "lora", *chosen, "--no-track", "--json", "--set", "base.lr=0.01")
    outcome = json.loads(result.stdout)
    assert (outcome["plan"]["shift"], outcome["plan"]["classes"]) == ("dim=0.5", ["a", "b", "c", "d"])
    assert outcome["base"]["test_accuracy"] == 1.0
    head, lora = outcome["runs"]
    assert (head["metrics"]["params/trainable"], head["metrics"]["params/total"]) == (260, 260)
    assert lora["metrics"]["params/trainable"] == 8 * (64 + 4)
    assert head["metrics"]["final/shifted_accuracy"] == 1.0


def test_step_ended_and_merge_are_called() -> None:
    calls: list[Any] = []

    class Scheduled:
        name = "scheduled"

        def adapt(self, model: Any) -> Any:
            return model.head.parameters()

        def step_ended(self, model: Any, step: int) -> None:
            calls.append((type(model).__name__, step))

        def merge(self, model: Any) -> None:
            calls.append("merge")

    class Plugin:
        @adaptkit.hookimpl
        def adaptkit_strategies(self) -> list[type]:
            return [Scheduled]

    adaptkit.run("scheduled", settings=TINY_SETTINGS, track=False, plugins=[Plugin()])
    # Before training, merging is tried on a few images. Then 50 images, batches of 32, two epochs.
    assert calls.pop(0) == "merge"
    assert calls == [("SmallCNNModel", 1), ("SmallCNNModel", 2), ("SmallCNNModel", 3), ("SmallCNNModel", 4), "merge"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            "class A:\n    name = 'a'\n    def __init__(self, width): ...\n    def adapt(self, model): ...\n",
            "a: A() failed: TypeError: A.__init__() missing 1 required positional argument: 'width'",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass A:\n    name = 'a'\n    width: int\n"
            "    def adapt(self, model): ...\n",
            "a.width: must be given",
        ),
        (
            "from dataclasses import dataclass\nclass Odd: ...\n@dataclass\nclass A:\n    name = 'a'\n"
            "    width: Odd = None\n    def adapt(self, model): ...\n",
            "a: the options of A cannot be checked: Unable to generate pydantic-core schema for",
        ),
    ],
    ids=["arguments", "required option", "unknown type"],
)
def test_strategy_that_cannot_be_created(cli: Cli, own_folder: Path, body: str, problem: str) -> None:
    path = own_folder / "mine.py"
    path.write_text(f"from adaptkit import hookimpl\n{body}@hookimpl\ndef adaptkit_strategies(): return [A]\n")
    result = cli("run", "-s", "a", "--plugin", str(path))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {problem}")


def test_option_of_several_types(cli: Cli, own_folder: Path) -> None:
    body = """
        from dataclasses import dataclass
        from typing import Literal
        from adaptkit import hookimpl

        @dataclass
        class A:
            name = "a"
            start: bool | Literal["pissa", "gaussian"] = True

            def adapt(self, model):
                return [model.head.bias]

        @hookimpl
        def adaptkit_strategies(): return [A]
        """
    path = write(own_folder / "mine.py", body)
    result = cli("run", "-s", "a", "-o", "start=piza", "--plugin", str(path))
    assert result.stderr == "Error: a.start: must be true or false or must be pissa or gaussian, not 'piza'\n"


def test_option_called_argument(cli: Cli, own_folder: Path) -> None:
    path = write(own_folder / "mine.py", PLUGIN.replace("scale:", "argument:"))
    options = ("-o", "argument=2", *TINY, "--no-track", "--json", "--plugin", str(path))
    (run,) = json.loads(cli("run", "-s", "last-bias", *options).stdout)["runs"]
    assert run["options"] == {"argument": 2.0}


def test_bad_input_from_a_strategy(cli: Cli, own_folder: Path) -> None:
    body = "from adaptkit import BadInput\n            raise BadInput('last layers have no bias here')"
    path = write(own_folder / "mine.py", PLUGIN.replace("return [model.head.bias]", body))
    result = cli("run", "-s", "last-bias", *TINY, "--plugin", str(path))
    line = "strategy last-bias: last layers have no bias here"
    assert (result.exit_code, result.stderr) == (2, f"Error: {line}\n")
