"""The experiment of a command: `--experiment`, MLflow's environment variables, or the default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import TINY

Cli = Callable[..., Result]


@pytest.fixture
def client(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = f"sqlite:///{own_folder / 'm.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(tracking_uri=uri)


def run(cli: Cli, *more: str) -> str:
    result = cli("run", "-s", "head", *TINY, "--epochs", "1", "--json", "-q", *more)
    assert result.exit_code == 0, result.stderr
    return str(json.loads(result.stdout)["experiment"])


@pytest.mark.slow
def test_environment_variables(cli: Cli, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "galaxies")
    assert run(cli) == "galaxies"
    assert run(cli, "--experiment", "stars") == "stars"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    stars = client.get_experiment_by_name("stars")
    assert stars is not None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", stars.experiment_id)
    assert run(cli) == "stars"
    assert run(cli, "--experiment", "galaxies") == "galaxies"
    assert client.get_experiment_by_name("adaptkit") is None
    runs = client.search_runs([stars.experiment_id], "tags.`adaptkit.kind` = 'adaptation'")
    assert {one.info.status for one in runs} == {"FINISHED"} and len(runs) == 2
    # `compare` reads the same experiment.
    result = cli("compare", "--no-track", "--where", "seed = '9'")
    assert result.stderr == "Error: no run of experiment 'stars' matches --where \"seed = '9'\"\n"


def test_wrong_environment_variables(cli: Cli, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.create_experiment("galaxies")
    stars = client.create_experiment("stars")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "galaxy")
    result = cli("compare")
    assert result.exit_code == 2 and result.stderr.startswith(
        "Error: MLFLOW_EXPERIMENT_NAME: no experiment 'galaxy' in"
    )
    assert result.stderr.endswith("; did you mean 'galaxies'?\n")
    commands = (
        ("run", "-s", "head", *TINY, "-q"),
        ("sweep", "-s", "head", "--grid", "lr=0.1,0.2", *TINY),
        ("compare",),
    )
    for number, line in (
        (stars, "MLFLOW_EXPERIMENT_NAME is 'galaxy', and MLFLOW_EXPERIMENT_ID is the id of 'stars'; unset one"),
        ("77", "MLFLOW_EXPERIMENT_ID: there is no experiment '77' in "),
        ("stars", "MLFLOW_EXPERIMENT_ID: there is no experiment 'stars' in "),
    ):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        for command in commands:
            result = cli(*command)
            assert result.exit_code == 2 and result.stderr.startswith(f"Error: {line}"), (command, result.stderr)
            assert result.stderr.count("\n") == 1
