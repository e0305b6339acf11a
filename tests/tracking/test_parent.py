"""Parent runs and comparison runs in MLflow."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import TINY, TINY_SETTINGS
from support.fabrication import fabricate
from support.mlflow_records import Raising, artifact, client, listed, runs

import adaptkit
from adaptkit.comparison.grouping import make_slugs
from adaptkit.errors import Interrupted

Cli = Callable[..., Result]

REPORT = ["comparison.json", "report.html", "report.md"]


@pytest.fixture
def uri(store: Path) -> str:
    return f"sqlite:///{store}"


def kinds(kind: str) -> list[Any]:
    return [run for run in runs().values() if run.data.tags.get("adaptkit.kind") == kind]


@pytest.mark.slow
def test_comparison_run(cli: Cli, uri: str, tmp_path: Path) -> None:
    ids = [fabricate(uri, "good (v1)", seed, range(count)) for seed, count in enumerate((10, 14, 11))]
    ids += [fabricate(uri, "poor", seed, range(count)) for seed, count in enumerate((30, 37, 30))]
    result = cli("compare", "--output", "report", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    (run,) = kinds("comparison")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "compare good (v1), poor")
    assert result.stderr.splitlines() == [
        "Report:    report/report.html",
        "In MLflow: `adaptkit ui`, then http://127.0.0.1:5000/#/experiments/"
        f"{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/report.html",
    ]
    for arm, slug in zip(found["arms"], ("good _v1_", "poor"), strict=True):
        assert arm["slug"] == slug
        for key in ("mean", "low", "high"):
            assert run.data.metrics[f"{key}/shifted_accuracy/{slug}"] == arm[key]
    assert len(run.data.metrics) == 6
    files = listed(None, run)
    assert files == sorted([*(path.name for path in Path("report").iterdir()), "arms.csv"])
    assert {*REPORT, "accuracy_over_training.png", "accuracy_parameters.svg"} <= set(files)
    for name in REPORT:
        assert artifact(None, run, name, tmp_path).read_bytes() == (Path("report") / name).read_bytes()
    assert json.loads((Path("report") / "comparison.json").read_text()) == found
    with artifact(None, run, "arms.csv", tmp_path).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["slug"], row["arm"], row["seeds"]) for row in rows] == [
        ("good _v1_", "good (v1)", "3"), ("poor", "poor", "3")
    ]  # fmt: skip
    assert run.data.tags["adaptkit.compared_runs"].split(",") == ids
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("- In target accuracy, good (v1) is better than poor by 10.3 points ")
    assert f"- poor: [seed 0](#/experiments/{run.info.experiment_id}/runs/{ids[3]})" in note
    # The comparison run itself is not compared.
    assert len(json.loads(cli("compare", "--no-track", "--json").stdout)["arms"]) == 2


@pytest.mark.slow
def test_separate_comparisons_are_separate_runs(cli: Cli, uri: str) -> None:
    for strategy, wrong in (("one", 20), ("other", 50)):
        for seed in (0, 1):
            fabricate(uri, strategy, seed, range(wrong + seed))
            fabricate(uri, strategy, seed, range(wrong + 2 * seed), tags={"adaptkit.base_fingerprint": "c" * 64})
    adaptkit.compare()
    experiment = client().get_experiment_by_name("adaptkit")
    assert experiment is not None
    found = client().search_runs([experiment.experiment_id], "tags.`adaptkit.kind` = 'comparison'")
    assert sorted(run.data.tags["adaptkit.base_fingerprint"][0] for run in found) == ["b", "c"]


def test_slugs() -> None:
    assert make_slugs(["lora rank=4", "lora rank:4", "lora rank(4", "Lora_rank_4", "é"]) == [
        "lora rank_4", "lora rank:4", "lora rank_4_2", "Lora_rank_4", "_",
    ]  # fmt: skip


@pytest.mark.slow
def test_parent_run_of_several_runs(cli: Cli, store: Path, tmp_path: Path) -> None:
    result = cli("run", "-s", "lora", "-s", "head", "--seeds", "0-1", *TINY, "--json")
    outcome = json.loads(result.stdout)
    (parent,) = kinds("comparison")
    assert (parent.info.run_id, parent.info.status) == (outcome["parent_run_id"], "FINISHED")
    assert parent.info.run_name == "lora, head seeds=0-1"
    params = parent.data.params
    assert (params["dataset"], params["epochs"]) == ("mnist5k", "2") and not {"seed", "strategy"} & set(params)
    children = [run for run in runs().values() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in children) == [
        "head seed=0", "head seed=1", "lora seed=0", "lora seed=1",
    ]  # fmt: skip
    assert kinds("base")[0].data.tags.get("mlflow.parentRunId") is None
    assert listed(None, parent) == ["arms.csv", "comparison.json"]
    kept = json.loads(artifact(None, parent, "comparison.json", tmp_path).read_text())
    assert kept == outcome["comparison"]
    means = {arm["name"]: arm["mean"] for arm in kept["arms"]}
    assert parent.data.metrics["mean/shifted_accuracy/lora"] == means["lora"]


@pytest.mark.slow
def test_report_is_written_and_logged(cli: Cli, store: Path, own_folder: Path) -> None:
    result = cli("run", "-s", "lora", "-s", "head", *TINY, "-q", "--report", "report")
    assert result.exit_code == 0
    (parent,) = kinds("comparison")
    assert listed(None, parent) == sorted([*(path.name for path in Path("report").iterdir()), "arms.csv"])
    (own_folder / "file").write_text("")
    refused = cli("run", "-s", "lora", "-s", "head", *TINY, "--report", "file")
    assert (refused.exit_code, refused.stderr) == (2, "Error: cannot write a report to file: File exists\n")
    untracked = cli("run", "-s", "head", *TINY, "-q", "--no-track", "--report", "alone")
    assert untracked.exit_code == 0 and {path.name for path in Path("alone").iterdir()} >= set(REPORT)


@pytest.mark.slow
def test_single_run_has_no_parent(cli: Cli, store: Path) -> None:
    outcome = json.loads(cli("run", "-s", "head", *TINY, "--json").stdout)
    assert (kinds("comparison"), outcome["parent_run_id"]) == ([], None)
    assert outcome["comparison"]["pairs"] == []


@pytest.mark.slow
@pytest.mark.parametrize(("error", "status"), [(Interrupted(15), "KILLED"), (RuntimeError("out of luck"), "FAILED")])
def test_status_of_interrupted_parent(
    store: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    monkeypatch.setenv("ADAPTKIT_STRICT", "1")
    with pytest.raises(type(error)):
        adaptkit.run(["head", "lora"], settings=TINY_SETTINGS, plugins=[Raising(error)])
    (parent,) = kinds("comparison")
    assert parent.info.status == status and parent.info.end_time is not None


@pytest.mark.slow
def test_parent_with_failed_runs(cli: Cli, store: Path) -> None:
    wild = ["--set", "optimizer=sgd", "--lr", "1e30"]
    assert cli("run", "-s", "full", "--seeds", "0-1", *wild, *TINY, "-q").exit_code == 1
    (parent,) = kinds("comparison")
    assert parent.info.status == "FAILED"
    result = cli("run", "-s", "full", "-s", "head", *wild, *TINY)
    assert result.exit_code == 1
    assert "Note: 1 failed run left out: full seed=0 (" in result.stdout


@pytest.mark.skipif(os.name != "posix", reason="permissions of files")
def test_compare_read_only_store(cli: Cli, uri: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for strategy, wrong in (("one", 20), ("other", 50)):
        for seed in (0, 1):
            fabricate(uri, strategy, seed, range(wrong + seed))
    # As root, permission bits have no effect.
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: False if str(path) == str(store) else may(path, mode))
    assert cli("compare", "--no-track").exit_code == 0
    result = cli("compare")
    assert result.exit_code == 2
    assert "one is better than other" in result.stdout  # the results are printed all the same
    assert result.stderr == f"Error: the tracking store {store} is not writable\n"
    assert MlflowClient(tracking_uri=uri).search_runs(["1", "2"], "tags.`adaptkit.kind` = 'comparison'") == []
