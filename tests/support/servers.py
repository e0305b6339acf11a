"""Start real `mlflow ui` processes for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests


class Page:
    """A running `mlflow ui` with access to its REST API."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process = process
        self.address = address

    def ask(self, where: str, /, **arguments: Any) -> dict[str, Any]:
        """Send a POST request to the REST API; return the response."""
        answer = requests.post(f"{self.address}/api/2.0/mlflow/{where}", json=arguments, timeout=30)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def get(self, where: str, /, **arguments: Any) -> requests.Response:
        """Send a GET request; return the response."""
        answer = requests.get(f"{self.address}/{where}", params=arguments, timeout=30)
        answer.raise_for_status()
        return answer

    def runs(self, experiment: str = "adaptkit") -> dict[str, dict[str, Any]]:
        """Return the runs of an experiment by name."""
        found = self.get("api/2.0/mlflow/experiments/get-by-name", experiment_name=experiment).json()
        ids = [found["experiment"]["experiment_id"]]
        return {run["info"]["run_name"]: run for run in self.ask("runs/search", experiment_ids=ids)["runs"]}


@contextmanager
def mlflow_ui(folder: Path, wait: bool = True) -> Iterator[Page]:
    """Run `mlflow ui` without options in a folder, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    log = (folder / f"ui-{port}.log").open("wb")
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    page = Page(process, f"http://127.0.0.1:{port}")
    try:
        if wait:
            wait_until_up(page)
        yield page
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def wait_until_up(page: Page, seconds: float = 90) -> None:
    """Wait until the server answers; fail after a time limit or if its process exits."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert page.process.poll() is None, "mlflow ui ended"
        try:
            if requests.get(f"{page.address}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise AssertionError("mlflow ui did not start")
