"""`adaptkit tune`: an equal budget, the best values, and the comparison of runs with new seeds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner, Result
from support.experiments import FOREIGN, KEPT, TINY, TINY_SETTINGS, own_cache
from support.processes import start

import adaptkit
from adaptkit.cli import main
from adaptkit.errors import BadInput

#: the range of head starts far too low and grows
COMMAND = (
    *("tune", "-s", "head", "-s", "lora", *TINY, "--trials", "3", "--seeds", "1"),
    *("--space", "head.lr=2e-4..2e-3/log", "--space", "lora.rank=4", "--space", "lora.lr=1e-3,5e-3"),
)


@dataclass(frozen=True)
class TunedFolder:
    """A folder with a finished tuning run, its JSON document, and its messages."""

    folder: Path
    outcome: dict[str, Any]
    messages: str

    @property
    def client(self) -> Any:
        return mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.folder / 'mlflow.db'}")

    def runs(self, kind: str) -> list[Any]:
        return runs_of(self.client, kind)


def runs_of(client: Any, kind: str) -> list[Any]:
    experiment = client.get_experiment_by_name("adaptkit").experiment_id
    condition = f"tags.`adaptkit.kind` = '{kind}'"
    return list(client.search_runs([experiment], condition, order_by=["attributes.start_time"]))


@pytest.fixture(scope="module")
def tuned(shared: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> TunedFolder:
    """Tune once for all tests that only read the result."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
            patch.delenv(name)
        patch.setenv("ADAPTKIT_CACHE", str(own_cache(shared)))
        patch.chdir(folder)
        result = CliRunner().invoke(main, [*COMMAND, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return TunedFolder(folder, json.loads(result.stdout), result.stderr)


def test_equal_number_of_trials(tuned: TunedFolder) -> None:
    head, lora = tuned.outcome["strategies"]
    assert head["first"] == {"lr": "0.0002..0.002/log"} != head["space"]
    given = tuned.outcome["budget"]["given"]
    assert given > tuned.outcome["budget"]["trials"] == 3
    assert len(head["trials"]) == len(lora["trials"]) == given
    counts = Counter(run.data.params["strategy"] for run in tuned.runs("tuning"))
    assert counts == {"head": given, "lora": given}
    assert {run.data.params["epochs"] for run in tuned.runs("tuning")} == {"2"}
    assert "every strategy gets 2 more trials" in tuned.messages


def test_best_trial_runs_on_all_images(tuned: TunedFolder) -> None:
    finals = tuned.runs("adaptation")
    assert len(finals) == 2
    for one in tuned.outcome["strategies"]:
        best = max(trial["accuracy"] for trial in one["trials"])
        assert one["accuracy"] == best == one["trials"][one["best_trial"] - 1]["accuracy"]
        assert one["chosen"] == one["trials"][one["best_trial"] - 1]["values"]
        (run,) = [run for run in finals if run.data.params["strategy"] == one["strategy"]]
        assert float(run.data.params["lr"]) == one["lr"] == one["chosen"]["lr"]
        assert run.data.params["seed"] == "1"
        line = run.data.tags["adaptkit.tuning"]
        assert line.startswith(f"{tuned.outcome['budget']['given']} trials of 2 epochs; searched lr ")
    assert [run["status"] for run in tuned.outcome["runs"]] == ["finished", "finished"]
    assert tuned.outcome["strategies"][1]["options"]["rank"] == 4


def test_tuning_runs_use_no_test_set(tuned: TunedFolder) -> None:
    run = tuned.runs("tuning")[0]
    names = set(run.data.metrics)
    assert {"validation/accuracy", "validation/loss", "train/loss"} <= names
    assert not [name for name in names if name.startswith(("test/", "shifted/", "final/"))]
    history = tuned.client.get_metric_history(run.info.run_id, "validation/accuracy")
    assert [point.step for point in history] == [1, 2]
    assert run.data.tags["mlflow.parentRunId"] == tuned.outcome["parent_run_id"]
    by_id = {run.info.run_id: run for run in tuned.runs("tuning")}
    for trial in tuned.outcome["strategies"][0]["trials"]:
        (run_id,) = trial["run_ids"]
        assert by_id[run_id].data.metrics["validation/accuracy"] == trial["accuracy"]
        assert float(by_id[run_id].data.params["lr"]) == trial["values"]["lr"]


@pytest.mark.slow
def test_trials_are_chosen_by_the_deciding_metric(cli: Callable[..., Result], store: Path) -> None:
    """The lowest loss wins; another metric starts another study."""
    command = ("tune", "-s", "head", *TINY, "--trials", "2", "--seeds", "1", "--space", "lr=0.001,0.01", "--json")
    result = cli(*command, "--metric", "nll,accuracy")
    assert result.exit_code == 0, result.stderr
    outcome = json.loads(result.stdout)
    (head,) = outcome["strategies"]
    scores = [trial["score"] for trial in head["trials"]]
    assert head["score"] == scores[head["best_trial"] - 1] == min(scores) < max(scores)
    assert outcome["budget"]["metric"]["key"] == "nll"
    assert outcome["comparison"]["metric"] == "final/shifted_nll"
    lines = result.stderr.splitlines()
    assert any(line.startswith("Tune ") and line.endswith("scored by negative log-likelihood") for line in lines)
    assert any(line.startswith("Classes  10 with 5 images each in a training") for line in lines)
    assert "Metric   compared by nll (also shown: accuracy)" in lines
    assert any("validation negative log-likelihood " in line and line.endswith(" nats") for line in lines)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}")
    runs = {run.info.run_id: run for run in runs_of(client, "tuning")}
    for trial in head["trials"]:
        (run_id,) = trial["run_ids"]
        assert runs[run_id].data.metrics["validation/nll"] == trial["score"]
        assert runs[run_id].data.metrics["validation/accuracy"] == trial["accuracy"]

    by_accuracy = json.loads(cli(*command).stdout)
    assert by_accuracy["parent_run_id"] != outcome["parent_run_id"]
    assert len(runs_of(client, "tuning")) == 4
    for trial in by_accuracy["strategies"][0]["trials"]:
        assert trial["score"] == trial["accuracy"]
    assert [run["status"] for run in by_accuracy["runs"]] == ["finished"]
    again = json.loads(cli(*command, "--metric", "nll,accuracy").stdout)
    assert [trial["score"] for trial in again["strategies"][0]["trials"]] == scores
    assert len(runs_of(client, "tuning")) == 4


def test_parent_run(tuned: TunedFolder) -> None:
    parent = tuned.client.get_run(tuned.outcome["parent_run_id"])
    assert (parent.data.tags["adaptkit.kind"], parent.data.tags["adaptkit.tuning"]) == ("sweep", "1")
    assert parent.info.status == "FINISHED"
    names = {entry.path for entry in tuned.client.list_artifacts(parent.info.run_id)}
    assert {"tuning.json", "comparison.json", "report.html", "tuning.png", "tuning.svg"} <= names
    assert (tuned.folder / "optuna.db").exists()


def test_comparison_ignores_trials(
    tuned: TunedFolder, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tuned.folder)
    result = cli("compare", "--no-track", "--json")
    found = json.loads(result.stdout)
    assert sorted(arm["strategy"] for arm in found["arms"]) == ["head", "lora"]
    assert sum(len(arm["runs"]) for arm in found["arms"]) == 2
    given = tuned.outcome["budget"]["given"]
    notes = [note for note in found["comparisons"][0]["notes"] if "was tuned on held-out labelled images" in note]
    assert len(notes) == 2
    assert all(f"{given} trials of 2 epochs: searched lr" in note and "chosen lr" in note for note in notes)
    assert tuned.outcome["comparison"]["comparisons"][0]["notes"] == found["comparisons"][0]["notes"]
    for command in ("predict", "export"):
        more = ["."] if command == "predict" else ["--to", "merged", "-o", "out"]
        refused = cli(command, tuned.runs("tuning")[0].info.run_id, *more)
        assert refused.exit_code == 2 and "tuning" in refused.stderr


@pytest.mark.slow
def test_same_command_again(tuned: TunedFolder, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tuned.folder)
    before = len(tuned.runs("tuning")), len(tuned.runs("adaptation"))
    result = cli(*COMMAND)
    assert result.exit_code == 0
    assert (len(tuned.runs("tuning")), len(tuned.runs("adaptation"))) == before
    assert (
        "head" in result.stdout and "trials of each strategy" in result.stdout and "extended from lr" in result.stdout
    )
    assert f"adaptkit run --from-tune {tuned.outcome['parent_run_id']}" in result.stderr


def test_run_from_tune(tuned: TunedFolder, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tuned.folder)
    parent = tuned.outcome["parent_run_id"]
    result = cli("run", "--from-tune", parent, *TINY, "--seeds", "1", "--no-track", "--json", "-q")
    runs = {run["strategy"]: run for run in json.loads(result.stdout)["runs"]}
    for one in tuned.outcome["strategies"]:
        assert (runs[one["strategy"]]["lr"], runs[one["strategy"]]["options"]) == (one["lr"], one["options"])
    finals = {run.data.params["strategy"]: run.data.metrics for run in tuned.runs("adaptation")}
    for name, run in runs.items():
        assert run["metrics"]["final/shifted_accuracy"] == finals[name]["final/shifted_accuracy"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--seeds", "0-4"), "seed 0 is a tuning seed: values that were chosen on its images must be"),
        (("--search", "grd"), "--search: unknown method 'grd'; did you mean 'grid'?"),
        (("--space", "head.lr=nan,1"), "--space head.lr: a learning rate must be greater than 0, not nan"),
        (("--space", "lr=1e-3,0.001"), "--space lr: 0.001 is named twice"),
        (("--space", "lr=1e-3,1e-2", "--space", "lr=1e-3..1e-2"), "--space lr: is given twice"),
        (("--trials", "1"), "--trials: must be at least 2, not 1"),
        (("--tuning-seeds", "x"), "--tuning-seeds: must be a seed, a range or a list"),
        (("--space", "lora.rnk=2,4"), "--space lora.rnk: unknown option; did you mean 'lora.rank'?"),
        (("--lr", "0.1", "-o", "lora.rank=4"), "head: nothing is left to tune"),
        (("--jobs", "0"), "--jobs: must be at least 1, not 0"),
        (("--search", "grid", "--space", "lora.rank=2,4,8", "--trials", "3"), "lora: a grid over lr"),
        (("--shots", "1"), "No such option"),
        (("--set", "shots=1"), "cannot hold back any of the 10 labelled images for validation"),
    ],
)
def test_bad_input(cli: Callable[..., Result], store: Path, arguments: tuple[str, ...], line: str) -> None:
    result = cli("tune", "-s", "head", "-s", "lora", *TINY, *arguments)
    assert result.exit_code == 2
    assert line in result.stderr.splitlines()[0]
    assert not Path("optuna.db").exists()


def test_fixed_options_are_not_tuned(own_folder: Path) -> None:
    from adaptkit.api.tune import check_tuning
    from adaptkit.plugins.loading import load_plugins
    from adaptkit.settings.resolve import Layer

    layers = [Layer({"strategy": ["lora", "head"], "lora.rank": 4, "preset": "notebook"}), Layer({"head.lr": 0.1})]
    asked = check_tuning(layers, load_plugins(), trials=4)
    assert asked.given == {"lora": {"rank"}, "head": {"lr"}}
    assert asked.request.settings.seed == (1, 2, 3, 4, 5)


@pytest.mark.slow
def test_two_processes_and_two_tuning_seeds(store: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"trials": 3, "tuning_seeds": "0,7", "seeds": "1", "settings": TINY_SETTINGS}
    one = adaptkit.tune("head", **given)
    assert all(len(trial.run_ids) == 2 for trial in one.strategies[0].trials)
    Path("second").mkdir()
    monkeypatch.chdir("second")
    second = shutil.copy(empty_store, "mlflow.db")
    two = adaptkit.tune("head", jobs=2, tracking_uri=f"sqlite:///{Path(second).resolve()}", **given)
    assert values(two.to_dict()) == values(one.to_dict())
    assert two.comparison is not None and one.comparison is not None
    with pytest.raises(BadInput, match="seed 7 is a tuning seed"):
        adaptkit.tune("head", tuning_seeds="7", seeds="7", settings=TINY_SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "jobs"), [(signal.SIGKILL, "1"), (signal.SIGINT, "1"), (signal.SIGINT, "2")])
def test_continue_after_interruption(
    cli: Callable[..., Result], store: Path, tuned: TunedFolder, ending: signal.Signals, jobs: str
) -> None:
    said = Path("said.txt")  # a file, so that a failure can show all output
    with said.open("w") as file:
        process = start(*COMMAND, "--jobs", jobs, stderr=file.fileno())
        while said.read_text().count(" trial ") < 5 and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.5)  # during the next run
        process.send_signal(ending)
        process.communicate()
    assert process.returncode == (130 if ending == signal.SIGINT else -signal.SIGKILL), said.read_text()
    again = cli(*COMMAND, "--json")  # whatever the number of jobs before
    assert again.exit_code == 0, again.stderr
    outcome = json.loads(again.stdout)
    assert values(outcome) == values(tuned.outcome)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}")
    statuses = Counter(run.info.status for run in runs_of(client, "tuning"))
    assert statuses["FINISHED"] in (2 * outcome["budget"]["given"], 2 * outcome["budget"]["given"] + 1)
    assert statuses["RUNNING"] == 0
    assert client.get_run(outcome["parent_run_id"]).info.status == "FINISHED"


def values(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return the trials and the best values of a tuning run, without ids."""
    return {
        one["strategy"]: (
            one["chosen"],
            one["space"],
            [(trial["values"], trial["accuracy"], trial["loss"]) for trial in one["trials"]],
        )
        for one in outcome["strategies"]
    }
