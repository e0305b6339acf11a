"""`adaptkit sweep` in one process: trials, reuse of finished trials, failures, and bad input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import Run
from support.experiments import FOREIGN, KEPT, TINY, TINY_SETTINGS, own_cache

import adaptkit
from adaptkit.cli import main

GRID = ("--grid", "lora.rank=2,4", "--grid", "lr=0.001,0.01")
LABELS = [
    "lora rank=2 lr=0.001",
    "lora rank=2 lr=0.01",
    "lora rank=4 lr=0.001",
    "lora rank=4 lr=0.01",
    "head lr=0.001",
    "head lr=0.01",
]

#: fails in training for one value of its option
FRAGILE = '''
from dataclasses import dataclass
from typing import ClassVar
from pathlib import Path

from adaptkit import hookimpl


@dataclass
class Fragile:
    """Train the head. Fail for some values."""

    name: ClassVar[str] = "fragile"
    value: int = 0

    def adapt(self, model):
        return model.head.parameters()

    def step_ended(self, model, step):
        if self.value == 1 and not Path("fixed").exists():
            raise RuntimeError("it broke")


@hookimpl
def adaptkit_strategies():
    return [Fragile]
'''


def children(folder: Path) -> dict[str, list[Run]]:
    """Return the runs of the store in a folder by kind, the earliest first."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("adaptkit")
    assert experiment is not None
    found: dict[str, list[Run]] = {}
    for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]):
        found.setdefault(run.data.tags["adaptkit.kind"], []).append(run)
    return found


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, shared: Path, empty_store: Path
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Run one sweep for all tests that start from its record."""
    folder = tmp_path_factory.mktemp("swept")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
            patch.delenv(name)
        patch.setenv("ADAPTKIT_CACHE", str(own_cache(shared)))
        patch.chdir(folder)
        arguments = ["sweep", "-s", "lora", "-s", "head", *GRID, *TINY, "--json", "--report", "report"]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    yield folder, json.loads(result.stdout)


@pytest.fixture
def again(swept: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to the folder of the sweep."""
    monkeypatch.chdir(swept[0])
    return swept[0]


def test_grid_of_each_strategy(swept: tuple[Path, dict[str, Any]]) -> None:
    trials = swept[1]["trials"]
    assert [trial["label"] for trial in trials] == LABELS
    assert {trial["status"] for trial in trials} == {"finished"}
    assert trials[0]["values"] == {"lora.rank": "2", "lr": "0.001"} and trials[4]["values"] == {"lr": "0.001"}


def test_parent_run_and_trials(swept: tuple[Path, dict[str, Any]]) -> None:
    folder, outcome = swept
    found = children(folder)
    (parent,) = found["sweep"]
    assert (parent.info.run_id, parent.info.status) == (outcome["parent_run_id"], "FINISHED")
    assert parent.info.run_name == "sweep lora, head: lora.rank (2), lr (2), seed 0"
    assert parent.data.params["grid.lora.rank"] == "2,4" and "lr" not in parent.data.params
    runs = {run.info.run_name: run for run in found["adaptation"]}
    assert sorted(runs) == sorted(f"{label} seed=0" for label in LABELS)
    for trial in outcome["trials"]:
        run = runs[f"{trial['label']} seed=0"]
        assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert trial["run_id"] == run.info.run_id
        assert trial["accuracy"] == run.data.metrics["final/shifted_accuracy"]
        assert float(run.data.params["lr"]) == float(trial["values"]["lr"])
        assert run.data.params["strategy"] == trial["strategy"]
    assert len({run.data.tags["adaptkit.trial_key"] for run in runs.values()}) == 6


def test_comparison(swept: tuple[Path, dict[str, Any]], again: Path, cli: Callable[..., Result]) -> None:
    compared = json.loads(cli("compare", swept[1]["parent_run_id"], "--json", "--no-track").stdout)
    assert swept[1]["comparison"] == compared
    assert len(compared["arms"]) == 6 and (again / "report" / "report.html").is_file()


@pytest.mark.slow
def test_finished_sweep_runs_nothing(
    swept: tuple[Path, dict[str, Any]], again: Path, cli: Callable[..., Result]
) -> None:
    result = cli("sweep", "-s", "lora", "-s", "head", *GRID, *TINY, "--json")
    outcome = json.loads(result.stdout)
    assert [trial["status"] for trial in outcome["trials"]] == ["found"] * 6
    assert [t["run_id"] for t in outcome["trials"]] == [t["run_id"] for t in swept[1]["trials"]]
    assert outcome["parent_run_id"] == swept[1]["parent_run_id"]
    assert len(children(again)["adaptation"]) == 6


def test_plan_shows_classes_and_metrics(again: Path, cli: Callable[..., Result]) -> None:
    few = (*TINY, "--set", "split.test=50")
    lines = cli("sweep", "-s", "lora", "-s", "head", *GRID, *few, "--print-trials").stdout.splitlines()
    (classes,) = (line for line in lines if line.startswith("Classes"))
    assert classes.startswith("Classes  10 with 5 images each in a training, ")
    assert classes in cli("run", "-s", "head", *few, "--dry-run").stdout.splitlines()
    assert "Metric   compared by accuracy" in lines
    assert any(line.startswith("Note: evaluation: ") and "fewer than 10 images" in line for line in lines)
    plan = json.loads(cli("sweep", "-s", "head", *TINY, "--print-trials", "--json").stdout)
    (experiment,) = plan["experiments"]
    assert experiment["metrics"] == ["accuracy"] and sum(experiment["evaluation_counts"]) == 100


@pytest.mark.slow
def test_warnings_of_trials(store: Path, cli: Callable[..., Result]) -> None:
    arguments = ("sweep", "-s", "head", "--grid", "lr=0.01,30", *TINY)
    good, bad = json.loads(cli(*arguments, "--json").stdout)["trials"]
    high = "the loss of the first epoch is"
    assert not any(line.startswith(high) for line in good["warnings"])
    (warning,) = [line for line in bad["warnings"] if line.startswith(high)]
    again = cli(*arguments)  # the trials are in the store
    assert f"Warning: head lr=30 seed=0: {warning}" in again.stdout.splitlines()
    assert json.loads(cli(*arguments, "--json").stdout)["trials"][1]["warnings"] == bad["warnings"]


@pytest.mark.slow
def test_sweep_compares_by_the_metrics_of_the_command(again: Path, cli: Callable[..., Result]) -> None:
    """Trials that an earlier sweep made by another metric are compared by the one of this command."""
    arguments = ("sweep", "-s", "lora", "-s", "head", *GRID, *TINY, "--metric", "nll", "--json")
    outcome = json.loads(cli(*arguments).stdout)
    assert {trial["status"] for trial in outcome["trials"]} == {"found"}
    assert outcome["comparison"]["metric"] == "final/shifted_nll"


@pytest.mark.slow
def test_trials_are_shared(again: Path, cli: Callable[..., Result]) -> None:
    before = {run.info.run_id for run in children(again)["adaptation"]}
    made = json.loads(cli("run", "-s", "lora", "-o", "rank=8", "--lr", "0.01", *TINY, "--json").stdout)["runs"][0]
    result = cli("sweep", "-s", "lora", "--grid", "rank=4,8", "--grid", "lr=0.001,0.01", *TINY, "--json")
    trials = {trial["label"]: trial for trial in json.loads(result.stdout)["trials"]}
    states = {label: trial["status"] for label, trial in trials.items()}
    assert states == {
        "lora rank=4 lr=0.001": "found",
        "lora rank=4 lr=0.01": "found",
        "lora rank=8 lr=0.001": "finished",
        "lora rank=8 lr=0.01": "found",
    }
    assert trials["lora rank=8 lr=0.01"]["run_id"] == made["run_id"]
    assert len(children(again)["adaptation"]) == len(before) + 2


@pytest.mark.slow
def test_irrelevant_settings_make_no_new_trial(
    swept: tuple[Path, dict[str, Any]], again: Path, cli: Callable[..., Result]
) -> None:
    same = ("--data-dir", "elsewhere", "--device", "cpu", "--set", "evaluate_shifted=end", "--grid", "lr=0.001")
    outcome = json.loads(cli("sweep", "-s", "head", *same, *TINY, "--json").stdout)
    assert [trial["status"] for trial in outcome["trials"]] == ["found"]


@pytest.mark.slow
def test_trial_equals_a_single_run(swept: tuple[Path, dict[str, Any]], store: Path, cli: Callable[..., Result]) -> None:
    made = json.loads(cli("run", "-s", "lora", "-o", "rank=2", "--lr", "0.01", *TINY, "--json").stdout)["runs"][0]
    folder, outcome = swept
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    kept = client.get_run(outcome["trials"][1]["run_id"]).data
    measured = ("time/", "memory/")
    assert {k: v for k, v in kept.metrics.items() if k.startswith("final/")} == {
        k: v for k, v in made["metrics"].items() if k.startswith("final/") and not k.startswith(measured)
    }
    own = MlflowClient(f"sqlite:///{store}").get_run(made["run_id"]).data
    assert own.tags["adaptkit.trial_key"] == kept.tags["adaptkit.trial_key"]
    assert own.params == kept.params


def test_print_trials(store: Path, cli: Callable[..., Result]) -> None:
    result = cli("sweep", "-s", "head", "--grid", "lr=1e-3..1e-1/3log", "--seeds", "0-1", *TINY, "--print-trials")
    lines = result.stdout.splitlines()
    assert (result.exit_code, [*lines[:2], *lines[3:5]]) == (
        0,
        [
            "Sweep    head; seeds 0, 1",
            "Grid     lr = 0.001, 0.01, 0.1",
            "Metric   compared by accuracy",
            "Trials   3 settings x 2 = 6",
        ],
    )
    rows = [line.split() for line in lines if line.strip() and line.split()[0].isdigit()]
    assert rows[:4] == [
        ["1", "head", "lr=0.001", "0", "left"],
        ["2", "head", "lr=0.01", "0", "left"],
        ["3", "head", "lr=0.1", "0", "left"],
        ["4", "head", "lr=0.001", "1", "left"],
    ]
    assert lines[-1].startswith("Estimated time: ")
    client = MlflowClient(f"sqlite:///{store}")
    assert client.get_experiment_by_name("adaptkit") is None


@pytest.mark.slow
def test_grid_in_a_config_file(store: Path, own_folder: Path, cli: Callable[..., Result]) -> None:
    settings = "".join(f"{key}: {value}\n" for key, value in TINY_SETTINGS.items())
    grid = "strategy: lora\nseed: 0-1\ngrid:\n  lora.rank: [2, 4]\n  lr: 1e-3..1e-1/3log\n"
    (own_folder / "sweep.yaml").write_text(settings + grid)
    plan = json.loads(cli("sweep", "--config", "sweep.yaml", "--grid", "lr=0.5", "--print-trials", "--json").stdout)
    assert plan["grid"] == {"lora.rank": [2, 4], "lr": ["0.5"]}
    assert [(t["label"], t["seed"]) for t in plan["trials"]] == [
        (f"lora rank={rank} lr=0.5", seed) for seed in (0, 1) for rank in (2, 4)
    ]


@pytest.mark.parametrize("grid", ["5", "[lr, 2]", ""])
def test_empty_grid(own_folder: Path, cli: Callable[..., Result], grid: str) -> None:
    (own_folder / "sweep.yaml").write_text(f"strategy: head\ngrid: {grid}\n")
    result = cli("sweep", "--config", "sweep.yaml")
    line = "Error: sweep.yaml: grid: write one line KEY: VALUES below it for each key\n"
    assert (result.exit_code, result.stderr) == (2, line)


@pytest.mark.slow
def test_retry_failed(store: Path, own_folder: Path, cli: Callable[..., Result]) -> None:
    (own_folder / "fragile.py").write_text(FRAGILE)
    command = ("sweep", "-s", "fragile", "--plugin", "fragile.py", "--grid", "value=0,1", *TINY)
    first = cli(*command)
    assert first.exit_code == 0
    assert (
        "\n[2/2] fragile value=1 seed=0  failed: strategy fragile fails in step_ended(): RuntimeError: it broke ("
        in first.stderr
    )
    assert "2 trials: 1 finished, 1 failed" in first.stdout
    (failed,) = [run for run in children(own_folder)["adaptation"] if run.info.status == "FAILED"]
    assert failed.data.tags["adaptkit.error"].startswith(
        "strategy fragile fails in step_ended(): RuntimeError: it broke ("
    )
    strict = cli(*command, "--strict", "--json")
    assert strict.exit_code == 1
    assert [trial["status"] for trial in json.loads(strict.stdout)["trials"]] == ["found", "failed"]
    assert "it broke" in strict.stderr and len(children(own_folder)["adaptation"]) == 2
    (own_folder / "fixed").touch()
    retried = json.loads(cli(*command, "--retry-failed", "--strict", "--json").stdout)
    assert [trial["status"] for trial in retried["trials"]] == ["found", "finished"]
    assert len(children(own_folder)["adaptation"]) == 3


@pytest.mark.slow
def test_all_trials_fail(store: Path, own_folder: Path, cli: Callable[..., Result]) -> None:
    (own_folder / "fragile.py").write_text(FRAGILE)
    result = cli("sweep", "-s", "fragile", "--plugin", "fragile.py", "--grid", "value=1", *TINY, "-q")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "Error: fragile value=1 seed=0: strategy fragile fails in step_ended(): RuntimeError: it broke ("
    )
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_max_trials(store: Path, cli: Callable[..., Result]) -> None:
    command = ("sweep", "-s", "head", "--grid", "lr=0.001,0.01,0.1", *TINY, "--json")
    first = json.loads(cli(*command, "--max-trials", "2").stdout)
    assert [trial["status"] for trial in first["trials"]] == ["finished", "finished", "left"]
    assert len(first["comparison"]["arms"]) == 2
    plan = cli(*command[:-1], "--print-trials").stdout
    assert "Trials   3 settings x 1 = 3 (2 finished before, 1 left)\n" in plan
    rows = [line.split() for line in plan.splitlines() if line.strip()[:1].isdigit()]
    assert rows[1:] == [["2", "head", "lr=0.01", "0", "finished", "before"], ["3", "head", "lr=0.1", "0", "left"]]
    second = json.loads(cli(*command, "--max-trials", "2").stdout)
    assert [trial["status"] for trial in second["trials"]] == ["found", "found", "finished"]
    assert len(second["comparison"]["arms"]) == 3


@pytest.mark.slow
def test_time_budget(store: Path, cli: Callable[..., Result]) -> None:
    command = ("sweep", "-s", "head", "--grid", "lr=0.001,0.01,0.1", *TINY, "--json")
    outcome = json.loads(cli(*command, "--time-budget", "0.001s").stdout)
    assert [trial["status"] for trial in outcome["trials"]] == ["finished", "left", "left"]


@pytest.mark.slow
def test_grid_of_data_and_base_settings(store: Path, cli: Callable[..., Result]) -> None:
    result = cli("sweep", "-s", "head", "--grid", "shots=2,5", "--grid", "base.epochs=1,2", *TINY, "--json")
    outcome = json.loads(result.stdout)
    assert [trial["label"] for trial in outcome["trials"]] == [
        f"head shots={shots} base.epochs={epochs}" for shots in (2, 5) for epochs in (1, 2)
    ]
    comparisons = outcome["comparison"]["comparisons"]
    assert len(comparisons) == 4
    client = MlflowClient(f"sqlite:///{store}")
    group = client.get_run(outcome["parent_run_id"])
    arms = [
        (arm["comparison"], f"mean/shifted_accuracy/{arm['slug']}", arm["mean"])
        for arm in outcome["comparison"]["arms"]
    ]
    for number, metric, mean in arms:
        assert (number, mean) in [(p.step, p.value) for p in client.get_metric_history(group.info.run_id, metric)]
    told = group.data.tags["mlflow.note.content"]
    assert [told.count(f"**Comparison {number}**") for number in (1, 2, 3, 4)] == [1] * 4
    assert set(group.data.tags["adaptkit.compared_runs"].split(",")) == {trial["run_id"] for trial in outcome["trials"]}
    assert len({trial["accuracy"] for trial in outcome["trials"]}) > 1


@pytest.mark.slow
def test_from_python(swept: tuple[Path, dict[str, Any]], again: Path) -> None:
    outcome = adaptkit.sweep(["lora", "head"], grid={"lora.rank": [2, 4], "lr": "0.001,0.01"}, settings=TINY_SETTINGS)
    assert [trial.run_id for trial in outcome.trials] == [trial["run_id"] for trial in swept[1]["trials"]]
    assert outcome.comparisons.to_dict() == swept[1]["comparison"]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (("--grid", "lr"), ["grid lr: write key=values, as in lora.rank=2,4,8"]),
        (("--grid", "lora.rnk=2"), ["grid lora.rnk: unknown key; did you mean 'lora.rank'?"]),
        (("--grid", "epoch=2"), ["grid epoch: unknown key; did you mean 'epochs'?"]),
        (("--grid", "rnak=1,2"), ["grid rnak: unknown key; did you mean 'lora.rank'?"]),
        (
            ("--grid", "xyz=2", "--set", "epoch=3"),
            ["unknown key 'epoch'; did you mean 'epochs'?", "grid xyz: unknown key"],
        ),
        (("--grid", "seed=1,2"), ["grid seed: use --seeds"]),
        (("--grid", "strategy=head"), ["grid strategy: name strategies with -s"]),
        (("--grid", "full.rank=2"), ["grid full.rank: strategy full is not run"]),
        (
            ("--grid", "lora.rank=0,2", "--grid", "lr=-1,1"),
            ["lr: must be greater than 0, not -1", "lora.rank: must be at least 1, not 0"],
        ),
        (("--grid", "lr=1e-3,0.001"), ["grid lr: 0.001 is named twice"]),
        (("--grid", "lora.rank=2,2.0"), ["grid lora.rank: 2.0 is named twice"]),
        (
            ("--grid", "lora.targets=Linear,linear", "--grid", "lora.rank=2,4", "--grid", "rank=8"),
            ["grid rank: is the same as lora.rank, which also has values; give one of them"],
        ),
        (
            ("--grid", "shots=2,5,9"),
            [
                "shots: 9 images of each class are more than half of the pool of 100; set at most --set shots=5, raise "
                "split.pool, or use every label with --protocol folds"
            ],
        ),
        (
            (
                "--grid",
                "shots=20,35,40",
                "--dataset",
                "none",
                "--weights",
                "none",
                "--target",
                "digits",
                "--set",
                "split.pool=2000",
            ),
            [
                "shots: 40 images of each class are more than half of the pool of 718; set at most --set shots=36, add "
                "images, or use every label with --protocol folds"
            ],
        ),
        (
            ("--grid", "lr=1e-4..1/1000log", "--grid", "lora.rank=1..20/20"),
            ["the grid has 20,000 settings of one strategy; one sweep runs at most 10,000"],
        ),
        (("--grid", "lr=-1e308..1e308/3"), ["grid lr: '-1e308..1e308/3' is too wide: its values overflow"]),
        (("--jobs", "0"), ["--jobs: must be at least 1, not 0"]),
        (("--jobs", "0", "--print-trials"), ["--jobs: must be at least 1, not 0"]),
        (("--time-budget", ""), ["--time-budget: '' is not a duration; write 90s, 30m, 2h or 1h30m"]),
        (("--engine", "rye"), ["unknown engine 'rye'; known: local"]),
        (("--max-trials", "0"), ["--max-trials: must be at least 1, not 0"]),
        (("--time-budget", "soon"), ["--time-budget: 'soon' is not a duration; write 90s, 30m, 2h or 1h30m"]),
    ],
)
def test_bad_input(store: Path, arguments: tuple[str, ...], lines: list[str], cli: Callable[..., Result]) -> None:
    result = cli("sweep", "-s", "lora", "-s", "head", *TINY, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sorted(result.stderr.splitlines()) == sorted(f"Error: {line}" for line in lines)


@pytest.mark.parametrize("command", ["run", "sweep", "tune"])
def test_torchrun_is_refused(
    store: Path, command: str, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = cli(command, "-s", "head", *TINY, "--seeds", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: adaptkit trains a run in one process: start it without torchrun; ")


def test_one_process_under_torchrun_runs(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli("run", "-s", "head", *TINY, "--no-track").exit_code == 0
