"""`--from-tune`: the best values of a tuning run as defaults, and the learning rate of one strategy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from mlflow import MlflowClient
from support.experiments import TINY, TINY_SETTINGS

import adaptkit
from adaptkit.data.split_files import SplitPart
from adaptkit.errors import BadInput
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.tracking.store import open_store
from adaptkit.tuning.chosen import shares_images, tuned_layer

CHOSEN = [
    {"strategy": "lora", "options": {"rank": 4, "alpha": 16.0}, "lr": 0.02},
    {"strategy": "head", "options": {}, "lr": 0.03},
]


@pytest.fixture
def tuning(store: Path, own_folder: Path) -> str:
    """Return the id of a run with the record of a finished tuning run."""
    return make_tuning({"adaptkit.kind": "sweep", "adaptkit.tuning": "1"}, "FINISHED")


def make_tuning(tags: dict[str, str], status: str, content: Any = None) -> str:
    opened = open_store(None, "adaptkit")
    run_id = str(opened.client.create_run(opened.experiment_id, run_name="tune", tags=tags).info.run_id)
    Path("tuning.json").write_text(json.dumps(content or {"strategies": CHOSEN}))
    opened.client.log_artifact(run_id, "tuning.json")
    opened.client.set_terminated(run_id, status)
    return run_id


def arms(run_id: str, **given: Any) -> dict[str, tuple[float, dict[str, Any]]]:
    layers = [Layer(given)]
    request = resolve([*layers, tuned_layer(run_id, layers, None)], load_plugins())
    return {arm.strategy: (arm.lr, dict(arm.options)) for arm in request.arms}


def test_best_values_of_each_strategy(tuning: str) -> None:
    found = arms(tuning)
    assert list(found) == ["lora", "head"]
    assert (found["lora"][0], found["lora"][1]["rank"], found["head"][0]) == (0.02, 4, 0.03)
    assert list(arms(tuning, strategy=["head"])) == ["head"]
    assert list(arms(tuning, strategy="head, lora")) == ["head", "lora"]


def test_precedence(tuning: str) -> None:
    assert arms(tuning, preset="notebook")["head"][0] == 0.03
    assert {lr for lr, _ in arms(tuning, lr=0.5).values()} == {0.5}
    found = arms(tuning, **{"lora.rank": 2, "lora.lr": 0.7})
    assert (found["lora"][0], found["lora"][1]["rank"], found["head"][0]) == (0.7, 2, 0.03)
    assert arms(tuning, **{"strategy": ["lora"], "strategy.rank": 3})["lora"][1]["rank"] == 3


@pytest.mark.slow
def test_command_and_python(tuning: str, cli: Callable[..., Result]) -> None:
    result = cli("run", "-s", "head", "--from-tune", tuning, *TINY, "--json")
    assert result.exit_code == 0, result.stderr
    (run,) = json.loads(result.stdout)["runs"]
    assert run["lr"] == 0.03
    outcome = adaptkit.run("head", from_tune=tuning, settings=TINY_SETTINGS, track=False)
    assert outcome.runs[0].lr == 0.03
    assert outcome.runs[0].metrics["final/shifted_accuracy"] == run["metrics"]["final/shifted_accuracy"]


def test_unfinished_or_other_run(tuning: str, tracked_run: str, cli: Callable[..., Result]) -> None:
    unfinished = make_tuning({"adaptkit.kind": "sweep", "adaptkit.tuning": "1"}, "KILLED")
    plain = make_tuning({"adaptkit.kind": "sweep"}, "FINISHED")
    broken = make_tuning({"adaptkit.kind": "sweep", "adaptkit.tuning": "1"}, "FINISHED", {"other": 1})
    for run_id, line in (
        ("0" * 32, f"--from-tune: no run '{'0' * 32}'"),
        (tracked_run, "is not a tuning; use the run id that `adaptkit tune` prints"),
        (plain, "is not a tuning"),
        (unfinished, "has not finished; run the same `adaptkit tune` again to continue it"),
        (broken, "has no readable tuning.json"),
    ):
        result = cli("run", "-s", "head", "--from-tune", run_id)
        assert result.exit_code == 2
        (problem,) = result.stderr.splitlines()
        assert line in problem
    with pytest.raises(BadInput, match="has not tuned lra; did you mean 'lora'"):
        arms(tuning, strategy=["lra"])


@pytest.fixture
def tracked_run(store: Path) -> str:
    opened = open_store(None, "adaptkit")
    return str(opened.client.create_run(opened.experiment_id, tags={"adaptkit.kind": "adaptation"}).info.run_id)


@pytest.mark.parametrize(
    ("tuned", "evaluated", "overlap"),
    [
        (("mnist5k", (1, 2)), ("mnist5k", (2, 3)), True),
        (("mnist5k", (1, 2)), ("mnist5k", (3, 4)), False),
        (("mnist5k", (1, 2)), ("digits", (1, 2)), False),  # positions in other data sets
        (("table:a.csv?site=A", (1, 2)), ("table:a.csv?site=B", (3, 4)), True),  # selections may overlap
        (("folder:a", ("x/1.png",)), ("folder:./a", ("x/1.png",)), True),
        (("folder:a", ("x/1.png",)), ("folder:b", ("x/2.png",)), False),
    ],
)
def test_labels_that_the_tuning_saw(tuned: tuple[str, Any], evaluated: tuple[str, Any], overlap: bool) -> None:
    assert shares_images(SplitPart(*tuned), SplitPart(*evaluated)) is overlap


@pytest.mark.slow
def test_runs_record_whether_the_tuning_saw_their_labels(own_folder: Path) -> None:
    """Under `folds` the tuning sees all labels; under `draws` it does not see the test images."""
    settings = {key: value for key, value in TINY_SETTINGS.items() if key != "shots"} | {"epochs": 1}
    shared: dict[str, Any] = {"target": "digits", "settings": settings}
    folds = adaptkit.tune("head", trials=2, seeds=1, folds=2, **shared)
    draws = adaptkit.tune("head", trials=2, seeds=1, shots=5, **shared)
    client = MlflowClient(f"sqlite:///{own_folder / 'mlflow.db'}")

    def labels_of(run_id: str | None) -> str | None:
        tag: str | None = client.get_run(str(run_id)).data.tags.get("adaptkit.tuned_on")
        return tag

    assert labels_of(folds.runs[0].run_id) == "evaluated" and labels_of(draws.runs[0].run_id) == "other"
    again = adaptkit.run("head", from_tune=str(folds.parent_run_id), folds=2, **shared)
    assert labels_of(again.runs[0].run_id) == "evaluated"
    assert "which saw labels that are evaluated here: these runs give no better or worse" in again.plan.notices[-1]
    again = adaptkit.run("head", from_tune=str(draws.parent_run_id), shots=5, **shared)
    assert labels_of(again.runs[0].run_id) == "other"
    # Its config file repeats the run without the tuning.
    assert adaptkit.reproduce(str(again.runs[0].run_id)).verdict == "identical"


def rates(**given: Any) -> dict[str, float]:
    return {arm.strategy: arm.lr for arm in resolve([Layer(given)], load_plugins()).arms}


def test_learning_rate_of_one_strategy() -> None:
    assert rates(**{"strategy": ["lora", "head"], "lora.lr": "1e-2", "head.lr": "2e-2"}) == {"lora": 0.01, "head": 0.02}
    assert rates(**{"strategy": ["lora", "head"], "lora.lr": 0.01, "lr": 0.1}) == {"lora": 0.01, "head": 0.1}
    assert rates(**{"strategy": ["lora"], "strategy.lr": 0.3}) == {"lora": 0.3}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lora.lr": -1}, "lora.lr: must be greater than 0, not -1"),
        ({"lora.lr": "fast"}, "lora.lr: must be a number, not 'fast'"),
        ({"full.lr": 1}, "full.lr: strategy full is not selected"),
        ({"strategy.lr": 1}, "option lr: there are several strategies; write lora.lr"),
    ],
)
def test_bad_learning_rate(given: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as caught:
        rates(strategy=["lora", "head"], **given)
    assert caught.value.problems == (line,)


def test_strategy_with_an_option_lr(own_folder: Path) -> None:
    plugin = own_folder / "own.py"
    plugin.write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom adaptkit import hookimpl\n"
        "@dataclass\nclass Own:\n    name: ClassVar[str] = 'own'\n    lr: float = 0.5\n"
        "    def adapt(self, model):\n        return list(model.parameters())\n"
        "@hookimpl\ndef adaptkit_strategies():\n    return [Own]\n"
    )
    (arm,) = resolve([Layer({"strategy": ["own"], "own.lr": 0.25})], load_plugins([plugin])).arms
    assert arm.options == {"lr": 0.25}
