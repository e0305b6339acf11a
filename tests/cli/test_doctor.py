"""`adaptkit doctor`: problems with their fixes, and runs of dead processes."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import TINY
from support.servers import mlflow_ui

from adaptkit.tracking.address import Address
from adaptkit.tracking.server import clock_skew

Cli = Callable[..., Result]


def findings(cli: Cli, *arguments: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Return the exit code and the findings by name."""
    result = cli("doctor", "--json", *arguments)
    document = json.loads(result.stdout)
    found: dict[str, list[dict[str, Any]]] = {}
    for one in document["findings"]:
        found.setdefault(one["name"], []).append(one)
    assert document["wrong"] == sum(one["state"] == "wrong" for one in document["findings"])
    return result.exit_code, found


def running(store: Path, name: str, **tags: str) -> str:
    """Record a running run and return its id."""
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("adaptkit")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("adaptkit")
    own = {"adaptkit.kind": "adaptation", "adaptkit.host": socket.gethostname()}
    return str(client.create_run(experiment_id, run_name=name, tags=own | tags).info.run_id)


@pytest.fixture
def dead() -> str:
    """Return the id of a process that no longer exists."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


def test_healthy_installation(store: Path, cli: Cli) -> None:
    code, found = findings(cli)
    assert code == 0
    assert {one["state"] for name in found for one in found[name]} <= {"ok", "note"}
    (versions,) = found["versions"]
    assert all(f"{name} " in versions["text"] for name in ("adaptkit", "Python", "torch", "torchvision", "mlflow"))
    assert sys.executable in found["system"][0]["text"]
    assert found["cache"][0]["text"].startswith(f"{os.environ['ADAPTKIT_CACHE']}; ")
    assert found["store"][0]["text"] == f"{store} can be read and written; 2 experiments"
    assert found["runs"] == [{"name": "runs", "state": "ok", "text": "no unfinished runs", "mend": None}]
    lines = cli("doctor").stdout.splitlines()
    assert f"ok     store        {store} can be read and written; 2 experiments" in lines


def test_missing_store_is_a_note(own_folder: Path, cli: Cli) -> None:
    code, found = findings(cli)
    assert code == 0
    (only,) = found["store"]
    assert only["state"] == "note" and only["text"].endswith("does not exist yet; the first tracked run creates it")
    assert not (own_folder / "mlflow.db").exists()


def test_stale_runs_are_ended(store: Path, cli: Cli, dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = f"{time.time():.3f}"
    gone = running(store, "lora seed=0", **{"adaptkit.pid": dead, "adaptkit.process_seen": now})
    # The id now belongs to another process, which started later.
    reused = running(store, "lora seed=1", **{"adaptkit.pid": str(os.getpid()), "adaptkit.process_seen": "1000"})
    alive = running(store, "lora seed=2", **{"adaptkit.pid": str(os.getpid()), "adaptkit.process_seen": now})
    far = running(store, "lora seed=3", **{"adaptkit.host": "elsewhere", "adaptkit.pid": "1"})
    code, found = findings(cli)
    assert code == 1
    by_state = {one["state"]: one for one in found["runs"]}
    assert (
        by_state["ok"]["text"] == f"under way: lora seed=2 ({alive}, process {os.getpid()} on {socket.gethostname()})"
    )
    assert by_state["note"]["text"] == f"running elsewhere: lora seed=3 ({far}, process 1 on elsewhere)"
    assert by_state["wrong"]["text"].startswith("recorded as running, but the process has ended: lora seed=0 (")
    assert gone in by_state["wrong"]["text"] and reused in by_state["wrong"]["text"]
    assert by_state["wrong"]["mend"] == "adaptkit doctor --end-stale-runs"
    (store.parent / "elsewhere").mkdir()
    monkeypatch.chdir(store.parent / "elsewhere")
    there = f"--tracking-uri sqlite:///{store}"
    _, found = findings(cli, *there.split())
    (mend,) = [one["mend"] for one in found["runs"] if one["state"] == "wrong"]
    assert mend == f"adaptkit doctor --end-stale-runs {there}"
    monkeypatch.chdir(store.parent)

    code, found = findings(cli, "--end-stale-runs")
    assert code == 0 and "wrong" not in {one["state"] for one in found["runs"]}
    client = MlflowClient(f"sqlite:///{store}")
    statuses = [client.get_run(run_id).info.status for run_id in (gone, reused, alive, far)]
    assert statuses == ["KILLED", "KILLED", "RUNNING", "RUNNING"]
    assert client.get_run(gone).data.tags["adaptkit.error"] == "its process has ended"
    assert findings(cli)[0] == 0


def test_broken_plugin(own_folder: Path, cli: Cli) -> None:
    (own_folder / "broken.py").write_text("import nothing_of_this_name\n")
    code, found = findings(cli, "--plugin", "broken.py")
    assert code == 1
    (fault,) = [one for one in found["plugins"] if one["state"] == "wrong"]
    assert "broken.py" in fault["text"] and "nothing_of_this_name" in fault["text"]


def test_read_only_cache(own_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "file").write_text("")
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "file"))
    code, found = findings(cli)
    (only,) = found["cache"]
    assert (code, only["state"], only["mend"]) == (1, "wrong", "set ADAPTKIT_CACHE to another folder")
    assert only["text"] == f"cannot write to {own_folder / 'file'}: File exists"


def test_damaged_and_large_cache(own_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    assert cli("run", "-s", "head", *TINY, "--no-track", "-q").exit_code == 0
    code, found = findings(cli)
    assert (code, [one["state"] for one in found["cache"]]) == (0, ["ok"])
    (weights,) = (own_folder / "cache" / "bases").glob("*/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    code, found = findings(cli)
    assert (code, [one["state"] for one in found["cache"]]) == (1, ["ok", "wrong"])
    assert found["cache"][1]["text"] == f"{weights.parent}: its weights do not match its card"
    assert found["cache"][1]["mend"] == "adaptkit cache verify --remove"
    monkeypatch.setattr("adaptkit.api.doctor.MAX_CHECKED", 1000)
    code, found = findings(cli)
    assert (code, [one["state"] for one in found["cache"]]) == (0, ["ok", "note"])
    assert found["cache"][1]["text"].endswith(" GB were not checked; runs compute damaged entries again")
    assert cli("cache", "verify", "--remove").exit_code == 0


def test_store_of_a_newer_mlflow(store: Path, cli: Cli) -> None:
    with closing(sqlite3.connect(store)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()
    os.utime(store, (1, 1))  # not in use
    result = cli("doctor")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert "was made by a newer MLflow than the installed one" in line and "pip install --upgrade mlflow" in line


def test_no_passwords_in_the_output(own_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:geheim@127.0.0.1:1")
    for arguments in ((), ("--json",)):
        result = cli("doctor", *arguments)
        assert result.exit_code == 1 and "geheim" not in result.output and "somebody" not in result.output
        assert "cannot reach the MLflow server at http://127.0.0.1:1" in result.stdout


@contextmanager
def server_of(ahead: float) -> Iterator[str]:
    """Run a server whose clock is `ahead` seconds fast."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("ahead", [0, 3600, -90])
def test_server_clock(ahead: float) -> None:
    with server_of(ahead) as address:
        skew = clock_skew(Address(address))
    assert skew is not None and abs(skew - ahead) <= 1


@pytest.mark.slow
def test_server_time_and_runs(store: Path, own_folder: Path, cli: Cli, dead: str) -> None:
    gone = running(store, "lora seed=0", **{"adaptkit.pid": dead})
    with mlflow_ui(own_folder) as page:
        code, found = findings(cli, "--tracking-uri", page.address)
        assert code == 1 and gone in found["runs"][0]["text"]
        assert found["store"][0]["text"].startswith(f"{page.address} answers; ")
        assert found["clock"][0]["state"] == "ok"
        assert findings(cli, "--tracking-uri", page.address, "--end-stale-runs")[0] == 0
        assert findings(cli, "--tracking-uri", page.address)[1]["runs"][0]["text"] == "no unfinished runs"


def test_stale_run_of_another_machine(store: Path, cli: Cli) -> None:
    elsewhere = {"adaptkit.host": "elsewhere", "adaptkit.pid": "1"}
    client, now = MlflowClient(f"sqlite:///{store}"), int(time.time() * 1000)

    def record_run(name: str, minutes: float, seconds: float) -> str:
        """Record a run whose latest epoch was logged `minutes` ago and took `seconds`."""
        run_id = running(store, name, **elsewhere)
        for number, before in ((1, minutes + 60), (2, minutes)):
            at = now - int(before * 60_000)
            client.log_metric(run_id, "time/epoch_seconds", seconds, timestamp=at, step=number)
        return run_id

    client.create_experiment("adaptkit")
    experiment = client.get_experiment_by_name("adaptkit")
    assert experiment is not None
    tags = {"adaptkit.kind": "adaptation", **elsewhere}
    begun = client.create_run(experiment.experiment_id, now - 7_200_000, tags, "never trained").info.run_id
    # The start of a run counts as a heartbeat.
    recent, slow = record_run("recent", 5, 10), record_run("slow", 40, 600)
    with closing(sqlite3.connect(store)) as database:
        database.execute("UPDATE runs SET start_time = ? WHERE name != 'never trained'", (now - 86_400_000,))
        database.commit()
    silent = record_run("silent", 30, 10)
    with closing(sqlite3.connect(store)) as database:
        database.execute("UPDATE runs SET start_time = ? WHERE name = 'silent'", (now - 86_400_000,))
        database.commit()
    code, found = findings(cli)
    assert code == 0
    texts = {one["text"].partition(":")[0]: one for one in found["runs"]}
    assert set(texts) == {
        "running elsewhere",
        "running elsewhere, without a recent heartbeat",
    }
    named = texts["running elsewhere, without a recent heartbeat"]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(now / 1000 - 1800))
    assert f"silent ({silent}, process 1 on elsewhere; last heartbeat {when})" in named["text"]
    assert begun in named["text"] and recent not in named["text"] and slow not in named["text"]
    assert named["mend"] == "adaptkit doctor --end-stale-runs --older-than TIME ends them if they no longer run"
    # Without --older-than, runs of other machines are not ended.
    assert findings(cli, "--end-stale-runs")[0] == 0
    assert findings(cli, "--end-stale-runs", "--older-than", "1h")[0] == 0
    statuses = {run_id: client.get_run(run_id).info.status for run_id in (begun, silent, recent, slow)}
    assert statuses == {begun: "KILLED", silent: "RUNNING", recent: "RUNNING", slow: "RUNNING"}
    assert client.get_run(begun).data.tags["adaptkit.error"] == "it has not logged anything for a long time"
    refused = cli("doctor", "--older-than", "1h")
    assert (refused.exit_code, refused.stderr) == (
        2, "Error: --older-than: requires --end-stale-runs; add it\n"
    )  # fmt: skip
