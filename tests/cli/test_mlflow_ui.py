"""`mlflow ui` in the same folder shows the runs (tested with its REST API)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import processes
from support.experiments import TINY, Tracked
from support.mlflow_records import ARTIFACTS
from support.servers import mlflow_ui

pytestmark = pytest.mark.slow


def test_params_metrics_and_artifacts(tracked: Tracked) -> None:
    with mlflow_ui(tracked.folder) as page:
        found = page.runs()
        assert sorted(found) == [
            "base small_cnn mnist5k", "head seed=0", "lora rank=4 seed=0", "lora rank=4, head seed=0",
        ]  # fmt: skip
        run = found["lora rank=4 seed=0"]
        run_id = run["info"]["run_id"]
        params = {param["key"]: param["value"] for param in run["data"]["params"]}
        assert (params["strategy"], params["strategy.rank"], params["shift"]) == ("lora", "4", "rotate=45,noise=0.3")
        (record,) = (run for run in tracked.outcome["runs"] if run["strategy"] == "lora")
        history = page.get("api/2.0/mlflow/metrics/get-history", run_id=run_id, metric_key="shifted/accuracy").json()[
            "metrics"
        ]
        assert [(point["step"], point["value"]) for point in history] == [
            (epoch["number"], epoch["shifted_accuracy"]) for epoch in record["epochs"]
        ]
        listed = page.get("api/2.0/mlflow/artifacts/list", run_id=run_id).json()["files"]
        assert sorted(entry["path"] for entry in listed) == sorted(
            {name if "/" not in name else "adapter" for name in ARTIFACTS}
        )
        for name in ARTIFACTS:
            served = page.get("get-artifact", run_id=run_id, path=name).content
            (kept,) = tracked.folder.glob(f"mlruns/*/{run_id}/artifacts/{name}")
            assert served == kept.read_bytes() and len(served) > 0


def test_page_opened_before_the_first_run(own_folder: Path) -> None:
    with mlflow_ui(own_folder) as page:
        done = processes.run("run", "-s", "head", *TINY, "-q", timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        run = page.runs()["head seed=0"]
        assert run["info"]["status"] == "FINISHED"
        served = page.get("get-artifact", run_id=run["info"]["run_id"], path="config.yaml").text
        assert "strategy: head\n" in served
