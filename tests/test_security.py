"""The promises of docs/security.md about code, secrets and paths."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from click.testing import Result
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import save_file
from support import processes
from support.commands import children, first_line, free_port, started
from support.experiments import TINY, Tracked
from support.servers import mlflow_ui
from support.terminal import on_a_terminal

from adaptkit.adapters.files import card_digest

Cli = Callable[..., Result]

ROOT = Path(__file__).parents[1]
SECRET = "hunter2-s3cret"

# ---- the code ------------------------------------------------------------------------------------------------------

#: calls that can execute their arguments, by the end of their name, with the allowed places and reasons
RUNS = ("eval", "exec", "compile", "__import__")
MODULES = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "runpy")
ALLOWED = {
    # Between processes of a sweep, through a pipe that no other process can open.
    "adaptkit/sweeps/engines/processes.py": {"pickle.loads"},
    # The work of a worker, from its engine.
    "adaptkit/sweeps/engines/worker.py": {"pickle.loads"},
    # Data from the line before: a check that the model of a plugin can be pickled.
    "adaptkit/testing/strategy_checks.py": {"pickle.loads"},
    "adaptkit/testing/backbone_checks.py": {"pickle.loads"},
}
#: pickling is harmless; reading pickles is not
HARMLESS = {"pickle.dumps", "pickle.Pickler"}


def sources() -> list[Path]:
    found = [*(ROOT / "adaptkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    return [path for path in found if "tests" not in path.relative_to(ROOT).parts]


def doubtful(code: str) -> set[str]:
    """Return the calls in a code that could execute their arguments, also through a shell."""
    found = set()
    tree = ast.parse(code)
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        name = names.get(name, name)
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        is_doubtful = (
            name in (*RUNS, "os.system", "os.popen", "tempfile.mktemp")
            or name.startswith(("os.exec", "os.spawn", "subprocess.getoutput", "subprocess.getstatusoutput"))
            or (name.split(".")[0] in MODULES and name not in HARMLESS)
            or name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
            or (name == "torch.load" and arguments.get("weights_only") != "True")
            or arguments.get("shell", "False") != "False"
            or arguments.get("allow_pickle", "False") != "False"
        )
        if is_doubtful:
            found.add(name)
    return found


def test_no_dangerous_calls() -> None:
    found = {str(path.relative_to(ROOT)): doubtful(path.read_text(encoding="utf-8")) for path in sources()}
    assert {path: calls for path, calls in found.items() if calls} == ALLOWED


def test_scan_finds_dangerous_calls() -> None:
    code = """
from pickle import loads
from subprocess import run
import marshal, os, pickle, subprocess, tempfile, torch, yaml
loads(b""), pickle.load(f), marshal.loads(b""), eval("1"), exec(""), os.system("x"), yaml.load("x"), torch.load("x")
run("x", shell=True), subprocess.Popen("x", shell=flag), tempfile.mktemp(), os.execv("x", [])
torch.load(f, weights_only=False), numpy.load(f, allow_pickle=True), numpy.load(f)
model.eval(), pickle.dumps(1), yaml.safe_load("x"), torch.load(f, weights_only=True), run(["x"]), pattern.compile("x")
"""
    assert doubtful(code) == {
        *("pickle.loads", "pickle.load", "marshal.loads", "eval", "exec", "os.system", "yaml.load", "torch.load"),
        *("subprocess.run", "subprocess.Popen", "tempfile.mktemp", "os.execv", "numpy.load"),
    }


# ---- modules in folders -------------------------------------------------------------------------------------------


def set_traps(folder: Path, ran: Path) -> None:
    """Create a file for every installed module, and for modules that tools run automatically."""
    packages = importlib.metadata.packages_distributions()
    names = {*sys.stdlib_module_names, *packages, "sitecustomize", "usercustomize", "conftest", "adaptkit_plugin"}
    for name in names:
        if name.isidentifier():
            (folder / f"{name}.py").write_text(
                f"open({str(ran)!r}, 'a').write({name!r} + chr(10))\nraise SystemExit(7)\n"
            )


def command() -> list[str]:
    """Return the path of the installed command."""
    found = shutil.which("adaptkit", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("the command adaptkit is not installed next to this Python")
    return [found]


@pytest.fixture
def trapped(own_folder: Path) -> Iterator[Path]:
    """Provide a folder full of traps; fail if one of them was executed."""
    folder, ran = own_folder / "here", own_folder / "ran"
    folder.mkdir()
    set_traps(folder, ran)
    yield folder
    assert not ran.exists(), ran.read_text()


def done(*arguments: str, folder: Path, **environment: str) -> str:
    """Run a command that must succeed; return its output."""
    result = subprocess.run(
        [*arguments], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_modules_in_current_folder(trapped: Path) -> None:
    assert "lora" in done(*command(), "strategies", folder=trapped)
    # With -m, Python searches the current folder; -P prevents that.
    assert "lora" in done(sys.executable, "-P", "-m", "adaptkit", "strategies", folder=trapped)


def test_traps_work(own_folder: Path) -> None:
    set_traps(own_folder, own_folder / "ran")
    subprocess.run([sys.executable, "-m", "json.tool"], capture_output=True, stdin=subprocess.DEVNULL)
    assert (own_folder / "ran").read_text() == "json\n"


def fill(folder: Path, names: tuple[str, ...] = ("a", "b"), count: int = 14) -> None:
    """Write images of noise to class folders."""
    generator = torch.Generator().manual_seed(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(0, 256, (12, 12, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number}.png")


SMALL = ("--set", "shots=1", "--set", "base.epochs=1", "--epochs", "1", "--image-size", "12")


@pytest.mark.slow
def test_modules_in_data_folder(trapped: Path, own_folder: Path) -> None:
    data = own_folder / "data"
    fill(data)
    set_traps(data, own_folder / "ran")
    source = ("--dataset", f"folder:{data}", *SMALL)
    done(*command(), "sweep", "-s", "head", "--grid", "lr=1e-3,1e-2", *source, "--jobs", "2", "-q", folder=trapped)
    done(*command(), "compare", "--output", "out", folder=trapped)
    done(*command(), "doctor", folder=trapped)


@pytest.mark.slow
def test_modules_in_folder_of_page(trapped: Path, tracked: Tracked) -> None:
    port = free_port()
    options = ("ui", "--port", str(port), "--tracking-uri", tracked.uri)
    process = subprocess.Popen(
        [*command(), *options], cwd=trapped, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert first_line(process).startswith("Look at the runs:")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


# ---- the page ------------------------------------------------------------------------------------------------------


def listening(pids: set[int]) -> set[str]:
    """Return the addresses, in hexadecimal, on which these processes listen, from /proc."""
    sockets = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(handle)
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:  # LISTEN
                found.add(fields[1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells by files who listens where")
def test_page_is_local(tracked: Tracked) -> None:
    port = free_port()
    with started("--port", str(port), "--tracking-uri", tracked.uri) as process:
        first_line(process)
        pids, left = set(), [process.pid]
        while left:
            pids.add(pid := left.pop())
            left += children(pid)
        found = listening(pids)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    local = int.from_bytes(bytes([127, 0, 0, 1]), sys.byteorder)
    assert found == {f"{local:08X}:{port:04X}"}


# ---- secrets -------------------------------------------------------------------------------------------------------


def holding(folder: Path, *secrets: str) -> list[str]:
    """Return the files below a folder whose names or contents contain one of these texts."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if any(secret in str(path) or secret.encode() in content for secret in secrets):
            found.append(str(path))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "environment", "apart"])
def test_secrets_of_missing_server(own_folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    login = f"http://someone:{SECRET}@127.0.0.1:1"
    address = {"option": ["--tracking-uri", login], "environment": [], "apart": []}[how]
    if how == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", login)
    elif how == "apart":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    told = ""
    for words in (["run", "-s", "head", *TINY, "--traceback"], ["doctor"]):
        result = processes.run(*words, *address)
        assert result.returncode in (1, 2)
        told += result.stdout + result.stderr
    assert "cannot reach the MLflow server at http://127.0.0.1:1" in told
    assert SECRET not in told
    assert holding(own_folder, SECRET) == []


@pytest.mark.parametrize(
    "address", ["sqlite://me:{}@host/runs", "//me:{}@host/x", "ftp://me:{}@host", "http:me:{}@://host", "mysql:{}@h"]
)
def test_secrets_of_invalid_address(cli: Cli, address: str) -> None:
    result = cli("compare", "--tracking-uri", address.format(SECRET))
    assert result.exit_code == 2 and result.stderr.startswith("Error: ")
    assert SECRET not in result.output


@pytest.mark.slow
def test_secrets_of_runs_on_server(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    monkeypatch.setenv("ADAPTKIT_STATE", str(own_folder / "state"))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", apart := "tok3n-apart")
    server, here = own_folder / "server", own_folder / "here"
    server.mkdir()
    here.mkdir()
    (here / "fails.py").write_text(
        "from adaptkit import hookimpl\nimport sys\n\nclass Fails:\n    name = 'fails'\n    def adapt(self, model):\n"
        "        if self.tries():\n            raise ValueError(f'I saw {sys.argv}')\n"
        "        return list(model.head.parameters())\n    def step_ended(self, model, step):\n"
        "        raise ValueError(f'I saw {sys.argv}')\n    def tries(self):\n        return False\n\n"
        "@hookimpl\ndef adaptkit_strategies():\n    return [Fails]\n"
    )
    with mlflow_ui(server) as page:
        login = page.address.replace("http://", f"http://someone:{SECRET}@")
        store = ["--tracking-uri", login]
        told = ""
        for words, code in (
            (["run", "-s", "head", "-s", "lora", *TINY, "--json"], 0),
            (["run", "-s", "fails", *TINY, "--plugin", "fails.py", "--traceback"], 1),
            (["sweep", "-s", "head", "--grid", "lr=1e-3,1e-2", *TINY, "--jobs", "2"], 0),
            (["compare", "--output", "out"], 0),
            (["doctor", "--json"], 0),
        ):
            result = processes.run(*words, *store, folder=here)
            assert result.returncode == code, result.stderr
            told += result.stdout + result.stderr
        names = list(page.runs())
        assert {"head seed=0", "lora seed=0", "fails seed=0"} <= set(names)
    sent = base64.b64encode(f"someone:{SECRET}".encode()).decode()
    for secret in (SECRET, apart, sent):
        assert secret not in told
    # the log of the server is next to its database
    assert len(list(server.rglob("report.html")) + list((here / "out").rglob("report.html"))) >= 1
    assert holding(own_folder, SECRET, apart, sent) == []


# ---- names ---------------------------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]<img src=x onerror=alert(1)>\u202e**x**"


def bare(printed: str) -> list[str]:
    """Return the control characters in a text."""
    return [sign for sign in ("\x1b]0;", "\x07", "\x1b[2J", "\u202e") if sign in printed]


@pytest.mark.slow
def test_names_in_store_are_escaped(store: Path, own_folder: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.create_experiment("adaptkit")
    tags = {"adaptkit.kind": "adaptation", "adaptkit.host": HOSTILE, "adaptkit.pid": "1", "adaptkit.arm": HOSTILE}
    for state in ("FINISHED", "RUNNING"):
        run = client.create_run(experiment, run_name=HOSTILE, tags=tags)
        client.log_param(run.info.run_id, "strategy", HOSTILE)
        if state == "FINISHED":
            client.set_terminated(run.info.run_id, state)
    shown = ""
    for words in (["compare"], ["compare", "--where", HOSTILE], ["doctor"], ["predict", run.info.run_id, "mlflow.db"]):
        code, printed = on_a_terminal(*words, width=200)
        assert code in (0, 1, 2) and "Traceback" not in printed
        assert "[red]" in printed and "\\x1b" in printed
        shown += printed
    assert bare(shown) == []


@pytest.mark.slow
def test_names_of_files_are_escaped(own_folder: Path) -> None:
    names = ("[red]<img src=x onerror=alert(1)>", "**b** `c` | d")
    fill(own_folder / "data", names)
    shutil.copy(own_folder / "data" / names[0] / "0.png", own_folder / f"x{HOSTILE.replace('/', '')}.png")
    (own_folder / f"y{HOSTILE.replace('/', '')}.png").write_bytes(b"no picture")
    code, printed = on_a_terminal("run", "-s", "head", "-s", "full", "--dataset", "folder:data", *SMALL, width=200)
    assert code == 0 and bare(printed) == []
    code, printed = on_a_terminal("compare", "--output", "out", width=200)
    assert code == 0, printed
    assert bare(printed) == []
    page = (own_folder / "out" / "report.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img src=x" not in (own_folder / "out" / "report.md").read_text()
    client = MlflowClient(tracking_uri=f"sqlite:///{own_folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("adaptkit")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`adaptkit.kind` = 'adaptation'")
    pictures = [str(path) for path in own_folder.glob("*.png")]
    for more in ([], ["--csv"], ["--json"]):
        code, printed = on_a_terminal("predict", found[0].info.run_id, *pictures, *more, width=200)
        assert code == 2 and "Traceback" not in printed
        assert "<img src=x" in printed and bare(printed) == []


# ---- paths ---------------------------------------------------------------------------------------------------------


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["merged", "peft", "torch-export", "onnx", "mlflow"])
def test_export_stays_in_folder(cli: Cli, tracked: Tracked, own_folder: Path, kind: str) -> None:
    """The names of the classes are paths, with a valid signature."""
    store = own_folder / "copy" / "deep"
    shutil.copytree(tracked.folder, store)
    with sqlite3.connect(store / "mlflow.db") as database:  # use the copied artifacts
        database.execute(
            "UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", (str(tracked.folder), str(store))
        )
    database.close()
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    run = next(one["run_id"] for one in tracked.outcome["runs"] if one["strategy"] == "lora")
    card = Path(client.get_run(run).info.artifact_uri) / "adapter" / "adapter.json"
    assert card.is_relative_to(own_folder)
    said = json.loads(card.read_text())
    said["classes"] = [f"../../../escaped-{name}" for name in said["classes"]]
    said["card_sha256"] = card_digest(said)
    card.write_text(json.dumps(said))
    client.set_tag(run, "adaptkit.adapter_sha256", hashlib.sha256(card.read_bytes()).hexdigest())
    before = listing(own_folder)
    shown = cli("export", run, "--to", kind, "-o", "out/model", "--tracking-uri", f"sqlite:///{store / 'mlflow.db'}")
    assert shown.exit_code == 0, shown.stderr
    new = listing(own_folder) - before
    assert "out/model/model.json" in new and "../../../escaped-0" in (own_folder / "out/model/model.json").read_text()
    assert {
        name for name in new if name != "out" and not name.startswith(("out/model", "copy/deep/mlflow.db"))
    } == set()
    assert not [name for name in new if "escaped" in name]


def test_peft_folder_with_paths_as_names(cli: Cli, tracked: Tracked, own_folder: Path) -> None:
    run = next(one["run_id"] for one in tracked.outcome["runs"] if one["strategy"] == "lora")
    folder = own_folder / "peft"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    name = "base_model.model.../../../escaped"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 3), f"{name}.lora_B.weight": torch.ones(3, 2)},
        folder / "adapter_model.safetensors",
    )
    before = listing(own_folder)
    shown = cli("import-peft", "peft", "--onto", run, "--tracking-uri", tracked.uri)
    assert shown.exit_code == 2 and "../../../escaped" in shown.stderr
    assert listing(own_folder) == before


class Hostile(BaseHTTPRequestHandler):
    """A tracking server that lists artifacts outside of the artifact folder."""

    files = (
        "adapter.safetensors",
        "adapter.json",
        "../../escaped",
        "/tmp/escaped-absolute",
        "..%2f..%2fescaped-quoted",
    )

    def do_GET(self) -> None:
        """Answer as MLflow's server, except for artifacts."""
        parts = urlsplit(self.path)
        if parts.path.endswith("runs/get"):
            info = {
                "run_id": "a" * 32,
                "run_uuid": "a" * 32,
                "experiment_id": "1",
                "status": "FINISHED",
                "run_name": "x",
            }
            info |= {
                "lifecycle_stage": "active",
                "artifact_uri": "mlflow-artifacts:/1/x/artifacts",
                "user_id": "",
                "start_time": 1,
            }
            self.answer({"run": {"info": info, "data": {"tags": [{"key": "adaptkit.kind", "value": "adaptation"}]}}})
        elif parts.path.endswith("mlflow-artifacts/artifacts"):
            asked = parse_qs(parts.query).get("path", [""])[0]
            self.asked.append(asked)
            # Every request lists a folder full of paths.
            self.answer({"files": [{"path": name, "is_dir": False, "file_size": 2} for name in self.files]})
        elif "mlflow-artifacts/artifacts/" in parts.path:
            self.asked.append(parts.path)
            self.answer({})
        else:
            self.answer({})

    asked: list[str] = []

    def answer(self, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def hostile_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_artifact_names_outside_folder(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = own_folder / "one" / "two"
    inner.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(inner))
    Hostile.asked.clear()
    Image.new("RGB", (4, 4)).save("x.png")
    with hostile_server() as address:
        shown = cli("predict", "a" * 32, "x.png", "--tracking-uri", address)
    assert shown.exit_code == 2 and shown.stderr.startswith("Error: ")
    assert any("adapter" in asked for asked in Hostile.asked)
    assert listing(own_folder) == {"one", "one/two", "x.png"}
    assert not Path("/tmp/escaped-absolute").exists()
