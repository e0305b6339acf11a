"""Slow, failing, locked, moved and full stores: training continues, and no event is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from support import processes
from support.experiments import TINY
from support.proxies import Proxy, misbehaving
from support.reliability import note
from support.servers import Page, mlflow_ui

from adaptkit.cli import main

pytestmark = pytest.mark.slow

#: changes the mode of the proxy at the moments in the environment variable STEPS
PLUGIN = """
import os, signal, sys, urllib.request

from adaptkit import hookimpl


def at(moment):
    for step in os.environ.get("STEPS", "").split():
        when, _, what = step.partition("=")
        if when != moment:
            continue
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        request = urllib.request.Request(f"{os.environ['PROXY']}/mode/{what}", data=b"")
        urllib.request.urlopen(request, timeout=10).close()


@hookimpl
def adaptkit_run_started(run, model):
    at(f"{run.kind}:0")


@hookimpl
def adaptkit_epoch_ended(run, epoch):
    at(f"{run.kind}:{epoch.number}")


@hookimpl
def adaptkit_run_ended(run, result, model):
    at(f"{run.kind}:end")
"""
EPOCHS = 4
ARGUMENTS = ("-s", "lora", "-s", "head", *TINY[:-1], str(EPOCHS))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("server")
    with mlflow_ui(folder) as page:
        yield page


@pytest.fixture
def proxy(server: Page, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    (own_folder / "moments.py").write_text(PLUGIN)
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    with misbehaving(server.address) as proxy:
        monkeypatch.setenv("PROXY", proxy.address)
        yield proxy


def run(*arguments: str, steps: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"} | os.environ | {"STEPS": steps}
    return processes.run("run", *arguments, environment=environment, timeout=400)


def record(uri: str, experiment: str) -> dict[str, dict[str, Any]]:
    """Return all data of an experiment's runs by name; for metrics of times, only the steps."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(names), "a run is there twice"
    told = {}
    for one in runs:
        keys = one.data.metrics
        histories = {key: client.get_metric_history(one.info.run_id, key) for key in keys}
        exact = {key: [(p.step, p.value) for p in points] for key, points in histories.items() if not timed(key)}
        tags = one.data.tags
        told[names[one.info.run_id]] = {
            "status": one.info.status,
            "metrics": exact,
            "timed": {key: [p.step for p in points] for key, points in histories.items() if timed(key)},
            "params": one.data.params,
            "inputs": sorted((one.dataset.name, one.dataset.digest) for one in one.inputs.dataset_inputs),
            "artifacts": sorted(files(client, one.info.run_id)),
            "others": {tag: names.get(tags.get(tag, "")) for tag in ("mlflow.parentRunId", "adaptkit.base_run_id")},
            "told": sorted(tag for tag in tags if not tag.startswith("mlflow.source.git")),
        }
    return told


def timed(key: str) -> bool:
    return key.startswith(("time/", "memory/"))


def files(client: MlflowClient, run_id: str, folder: str | None = None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from files(client, run_id, entry.path)
        else:
            yield entry.path


@pytest.fixture(scope="module")
def undisturbed(server: Page, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the data of an experiment without outages."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "moments.py").write_text(PLUGIN)
    named = ("--tracking-uri", server.address, "--experiment", "undisturbed", "--plugin", "moments.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTKIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        done = called("run", *ARGUMENTS, *named)
    assert done.exit_code == 0, done.stderr
    return record(server.address, "undisturbed")


def where(proxy: Proxy, experiment: str) -> tuple[str, ...]:
    address = proxy.address.replace("://", "://user:hush@")
    return ("--tracking-uri", address, "--experiment", experiment, "--plugin", "moments.py")


def called(*arguments: str) -> Result:
    """Call the command line in this process, which need not import everything first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        result = CliRunner().invoke(main, list(arguments), prog_name="adaptkit")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def disturbed(proxy: Proxy, experiment: str, steps: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPS", steps)
        return called("run", *ARGUMENTS, *where(proxy, experiment))


def sync(uri: str) -> dict[str, Any]:
    done = called("sync", "--tracking-uri", uri, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def journals() -> list[Path]:
    return sorted(Path(os.environ["XDG_STATE_HOME"], "adaptkit", "journals").glob("*"))


#: moments at which the server starts to fail until the end, with the mode of the failure
MOMENTS = [
    "base:0=refuse",
    "base:1=refuse",
    "base:end=refuse",
    "adaptation:0=refuse",
    "adaptation:2=refuse",
    "adaptation:end=refuse",
    "adaptation:1=error",
    "base:1=lose",
    "adaptation:2=lose",
    "adaptation:end=unread",
    "adaptation:end=forbid",
]


#: their names in the list of faults
FAULTS = {
    "refuse": "server-away",
    "error": "server-fails",
    "lose": "answers-lost",
    "unread": "unread",
    "forbid": "unread",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_unsent_events_are_kept_and_sent_once(
    proxy: Proxy, server: Page, undisturbed: dict[str, dict[str, Any]], moment: str
) -> None:
    experiment = re.sub(r"\W", "-", moment)
    done = disturbed(proxy, experiment, moment)
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: MLflow does not have all results: ")
    command = f"adaptkit sync --tracking-uri {proxy.address}"
    assert last.endswith(f"; the missing records are kept: `{command}` sends them; the results above are complete")
    assert "lora" in done.stdout and "head" in done.stdout
    assert "hush" not in done.stdout + done.stderr + "".join(p.read_text() for p in Path.cwd().rglob("*.json*"))
    assert journals()
    proxy.mode = "ok"
    sent = sync(proxy.address)["runs"]
    assert all(one["error"] is None and one["status"] in ("FINISHED", None) for one in sent), sent
    assert record(server.address, experiment) == undisturbed
    assert journals() == []
    assert sync(proxy.address)["runs"] == []
    note(FAULTS[moment.partition("=")[2]])


def test_server_that_rejects_everything(proxy: Proxy) -> None:
    done = disturbed(proxy, "denied", "adaptation:1=refuse adaptation:3=deny")
    last = done.stderr.splitlines()[-1]
    assert (done.exit_code, last) == (
        1,
        "Error: MLflow does not have all results: INVALID_PARAMETER_VALUE: the proxy takes nothing; "
        f"the missing records are kept: `adaptkit sync --tracking-uri {proxy.address}` explains what to do; "
        "the results above are complete",
    )
    note("server-denies")


@pytest.mark.parametrize(
    ("mode", "reason"), [("unread", r"API request to \S+ failed with exception .*"), ("forbid", "403 Client Error: .*")]
)
def test_unreachable_artifacts_are_not_missing(
    proxy: Proxy, undisturbed: dict[str, dict[str, Any]], mode: str, reason: str
) -> None:
    proxy.mode = mode
    found = called("compare", "--tracking-uri", proxy.address, "--experiment", "undisturbed")
    assert (found.exit_code, found.stdout) == (2, "")
    (line,) = found.stderr.splitlines()
    assert re.fullmatch(rf"Error: the tracking store {proxy.address} failed: {reason}", line), line
    note("unread")


def test_server_that_fails_most_requests(proxy: Proxy, server: Page, undisturbed: dict[str, dict[str, Any]]) -> None:
    disturbed(proxy, "flaky", "base:0=every-second")
    for _ in range(3):
        called("sync", "--tracking-uri", proxy.address)
    proxy.mode = "ok"
    sync(proxy.address)
    assert record(server.address, "flaky") == undisturbed
    assert proxy.counts["lose"] > 3 and proxy.counts["error"] > 3
    note("server-flaky", proxy.counts["lose"] + proxy.counts["error"])


def test_short_outage_needs_no_sync(proxy: Proxy, server: Page, undisturbed: dict[str, dict[str, Any]]) -> None:
    done = disturbed(proxy, "back", "adaptation:1=refuse adaptation:3=ok")
    assert (done.exit_code, [line for line in done.stderr.splitlines() if line.startswith("Error")]) == (0, [])
    assert record(server.address, "back") == undisturbed
    note("server-back")


def test_kill_during_outage(proxy: Proxy, server: Page, undisturbed: dict[str, dict[str, Any]]) -> None:
    done = run(*ARGUMENTS, *where(proxy, "killed"), steps="adaptation:1=refuse adaptation:3=kill")
    assert done.returncode == -signal.SIGKILL
    proxy.mode = "ok"
    listed = called("sync", "--dry-run")
    assert listed.exit_code == 0
    # The hook of the plugin is called before that of the tracker.
    assert re.search(r"^lora seed=0: \d+ records? for http://127.0.0.1:\d+, experiment killed$", listed.stdout, re.M)
    sync(proxy.address)
    found = record(server.address, "killed")
    assert {name: one["status"] for name, one in found.items()} == {
        "lora, head seed=0": "KILLED",
        "base small_cnn mnist5k": "FINISHED",
        "lora seed=0": "KILLED",
    }
    whole = undisturbed["lora seed=0"]["metrics"]
    epochs = {key: points[:2] for key, points in whole.items() if len(points) == EPOCHS}
    assert found["lora seed=0"]["metrics"] == epochs
    note("kill-away")


def test_concurrent_and_killed_syncs(proxy: Proxy, server: Page, undisturbed: dict[str, dict[str, Any]]) -> None:
    disturbed(proxy, "twice", "base:1=refuse")
    proxy.mode = "slow"
    command = ("sync", "--tracking-uri", proxy.address)
    for seconds in (1.0, 3.0, 5.0):
        killed = processes.start(*command)
        time.sleep(seconds)
        killed.kill()
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
    proxy.mode = "ok"
    both = [processes.start(*command) for _ in range(2)]
    for one in both:
        output, errors = one.communicate(timeout=120)
        assert (one.returncode, errors) == (0, ""), output
    assert record(server.address, "twice") == undisturbed
    note("kill-sync", 3)


def local(steps: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run(*ARGUMENTS, "--plugin", "moments.py", *more, steps=steps)


@pytest.fixture
def twin(store: Path, undisturbed: dict[str, dict[str, Any]], own_folder: Path) -> dict[str, dict[str, Any]]:
    """Return the data of a store without disturbance, for comparison with the store of the test."""
    (own_folder / "moments.py").write_text(PLUGIN)
    return undisturbed


def uri() -> str:
    return f"sqlite:///{Path.cwd() / 'mlflow.db'}"


LOCK = """
import subprocess, sys

from adaptkit import hookimpl

PROGRAM = '''
import sqlite3, sys
database = sqlite3.connect("mlflow.db", isolation_level=None, timeout=60)
database.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
'''


@hookimpl
def adaptkit_epoch_ended(run, epoch):
    global held  # the other process exits at the end of its input
    if run.kind == "adaptation" and epoch.number == 1 and run.params["strategy"] == "lora":
        held = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        held.stdout.readline()
"""


def test_long_database_lock(twin: dict[str, dict[str, Any]]) -> None:
    Path("moments.py").write_text(LOCK)
    done = local("")
    assert done.returncode == 1, done.stderr
    assert "database is locked" in done.stderr.splitlines()[-1] or "it is slow" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    sync(uri())
    assert record(uri(), "adaptkit") == twin
    note("locked")


def test_database_moved_away_and_back(twin: dict[str, dict[str, Any]]) -> None:
    Path("moments.py").write_text(
        "import os\nfrom adaptkit import hookimpl\n\n@hookimpl\ndef adaptkit_epoch_ended(run, epoch):\n"
        "    if run.kind == 'adaptation' and epoch.number == 2 and os.path.exists('mlflow.db'):\n"
        "        os.rename('mlflow.db', 'away.db')\n"
    )
    done = local("")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: MLflow does not have all results: ")
    for new in Path.cwd().glob("mlflow.db*"):
        new.unlink()
    os.rename("away.db", "mlflow.db")
    sync(uri())
    assert record(uri(), "adaptkit") == twin
    note("moved")


@pytest.fixture
def small_disk(own_folder: Path) -> Iterator[Path]:
    """Mount a small file system in memory; this requires root."""
    folder = own_folder / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


FILL = """
from adaptkit import hookimpl


@hookimpl
def adaptkit_epoch_ended(run, epoch):
    if run.kind == "adaptation" and epoch.number == 2:
        try:
            with open("disk/filler", "wb", 0) as stream:
                while True:
                    stream.write(bytes(512))
        except OSError:
            pass
"""


@pytest.mark.parametrize("what", ["store", "journal"])
def test_full_disk_keeps_results(
    twin: dict[str, dict[str, Any]], small_disk: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    Path("moments.py").write_text(FILL)
    if what == "store":
        shutil.move("mlflow.db", small_disk / "mlflow.db")
        done = local("", "--tracking-uri", f"sqlite:///{small_disk / 'mlflow.db'}")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith(
            "Error: MLflow does not have all results: database or disk is full; "
        )
        (small_disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
        sync(f"sqlite:///{small_disk / 'mlflow.db'}")
        assert record(f"sqlite:///{small_disk / 'mlflow.db'}", "adaptkit") == twin
    else:
        monkeypatch.setenv("ADAPTKIT_STATE", str(small_disk))
        done = local("")
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, done.stderr
        assert record(uri(), "adaptkit") == twin  # files can still be read without the database
    note(f"full-{what}")


def test_store_errors_are_one_line(cli: Callable[..., Result], store: Path, own_folder: Path) -> None:
    with closing(sqlite3.connect(store)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()
    result = cli("run", "-s", "head", *TINY)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("Error: ")
    assert journals() == []
    note("newer-store")
