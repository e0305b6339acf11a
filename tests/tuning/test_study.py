"""The search: equal budgets, extended ranges, metrics, and studies that continue after a crash."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adaptkit.comparison.metrics import measured_metric
from adaptkit.comparison.records import Metric
from adaptkit.errors import BadInput, RunFailed
from adaptkit.metrics.classification import Accuracy, NegativeLogLikelihood
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.settings.spaces import make_spaces
from adaptkit.tuning.search import Search, SearchResult, TrialRequest
from adaptkit.tuning.study import StudyTrial, open_studies, require_optuna


class Crash(Exception):
    """Stands for the death of the process."""


class Machine:
    """Simulate trials: the best learning rate is `best`, the best rank 16. Crash after `crash_after` trials.

    With the sign -1, lower scores are better.
    """

    def __init__(self, best: float, crash_after: int | None = None, order: int = 1, sign: int = 1) -> None:
        self.sign = sign
        self.best = best
        self.crash_after = crash_after
        self.order = order
        self.ran: list[tuple[str, int]] = []

    def perform(self, requests: Sequence[TrialRequest]) -> Iterator[tuple[TrialRequest, StudyTrial]]:
        for request in requests[:: self.order]:
            if self.crash_after is not None and len(self.ran) >= self.crash_after:
                raise Crash
            self.ran.append((request.space.strategy, request.trial.number))
            yield request, self.evaluated(request.trial)

    def evaluated(self, trial: StudyTrial) -> StudyTrial:
        lr, rank = trial.values["lr"], trial.values.get("rank", 16)
        if lr > 50 * self.best:
            return StudyTrial(trial.number, trial.values, reason="the loss is not finite")
        value = 1 - 0.1 * abs(math.log10(lr / self.best)) - 0.02 * abs(math.log2(rank / 16))
        return StudyTrial(trial.number, trial.values, score=self.sign * value, runs=(f"run-{trial.number}",))


ACCURACY = measured_metric(Accuracy(), key="accuracy", label="accuracy")
NLL = measured_metric(NegativeLogLikelihood(), key="nll", label="negative log-likelihood")


def search(
    texts: Sequence[str] = (),
    trials: int = 9,
    method: str = "tpe",
    names: Sequence[str] = ("lora", "head"),
    metric: Metric = ACCURACY,
) -> Search:
    arms = resolve([Layer({"strategy": list(names)})], load_plugins()).arms
    spaces = make_spaces(arms, texts=texts, given={name: set() for name in names}, fits=lambda arm: True)
    return Search(spaces, trials=trials, method=method, seed=0, metric=metric)


def run(path: Path, search: Search, machine: Machine, *, lines: list[str] | None = None) -> dict[str, SearchResult]:
    names = [space.strategy for space in search.spaces]
    with open_studies(path, "key", names, seed=0, higher_is_better=search.metric.higher_is_better) as studies:
        notice = (lines if lines is not None else []).append
        results = search.run(studies, perform=machine.perform, fits=lambda arm: True, notice=notice)
    return {result.space.strategy: result for result in results}


def trials_of(results: dict[str, SearchResult]) -> dict[str, list[tuple[int, dict[str, Any], float | None]]]:
    return {
        name: [(trial.number, dict(trial.values), trial.score) for trial in result.trials]
        for name, result in results.items()
    }


def test_equal_number_of_trials_beginning_with_defaults(tmp_path: Path) -> None:
    results = run(tmp_path / "optuna.db", search(), Machine(best=5e-3))
    assert {name: len(result.trials) for name, result in results.items()} == {"lora": 9, "head": 9}
    assert results["lora"].trials[0].values == {"lr": 5e-3, "rank": 8}
    assert results["head"].trials[0].values == {"lr": 1e-2}
    for result in results.values():
        assert result.edges == {}
        assert result.best.score == max(trial.score or 0 for trial in result.trials)


def test_search_by_a_loss(tmp_path: Path) -> None:
    texts, machine = ["lr=1e-4..10/log"], Machine(best=1e-3, sign=-1)
    least = run(tmp_path / "one.db", search(texts, names=["head"], metric=NLL), machine)
    scores = [trial.score for trial in least["head"].trials if trial.score is not None]
    assert least["head"].best.score == min(scores) < max(scores)
    assert any(trial.reason for trial in least["head"].trials)  # failed trials are never the best
    # The search proposes the same values as for the opposite score.
    most = run(tmp_path / "two.db", search(texts, names=["head"]), Machine(best=1e-3))
    assert [trial.values for trial in least["head"].trials] == [trial.values for trial in most["head"].trials]


def test_study_of_an_earlier_version(tmp_path: Path) -> None:
    """Earlier studies hold accuracies only; failed trials have the value 0 there."""
    searched = search(["lr=1e-4..10/log"], trials=3, names=["head"])
    run(tmp_path / "optuna.db", searched, Machine(best=1e-3))
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database, database:
        database.execute("DELETE FROM trial_user_attributes WHERE key = 'adaptkit.accuracy'")
        database.execute("UPDATE trial_values SET value = 0, value_type = 'FINITE' WHERE value_type != 'FINITE'")
    again = Machine(best=1e-3)
    trials = run(tmp_path / "optuna.db", searched, again)["head"].trials
    assert again.ran == []
    assert any(trial.reason for trial in trials)
    for trial in trials:
        assert (trial.score is None) == (trial.reason is not None)
        assert trial.accuracy == (trial.score or 0)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [2, 3, 9])
def test_defaults_are_tried_once(tmp_path: Path, trials: int) -> None:
    for result in run(tmp_path / "optuna.db", search(trials=trials), Machine(0.01)).values():
        values = [tuple(trial.values.items()) for trial in result.trials]
        assert values.count(values[0]) == 1


@pytest.mark.slow
def test_extended_range_adds_trials_to_every_strategy(tmp_path: Path) -> None:
    lines: list[str] = []
    machine = Machine(best=5e-3)
    results = run(tmp_path / "optuna.db", search(["head.lr=1e-6..1e-5/log"]), machine, lines=lines)
    grown = results["head"].space
    assert grown.growth["lr"] == 3
    assert grown.dimensions["lr"].text == "1e-06..0.01/log"
    assert {len(result.trials) for result in results.values()} == {9 + 3 * 3}
    assert results["head"].edges == {} and results["lora"].space.growth == {}
    assert lines[:2] == [
        "head: the best trial is on the edge of lr 1e-06..1e-05 (log); searching lr 1e-06..0.0001 (log)",
        "every strategy gets 3 more trials",
    ]
    assert sorted(machine.ran) == [(name, number) for name in ("head", "lora") for number in range(18)]


def test_best_value_remains_on_an_edge(tmp_path: Path) -> None:
    results = run(tmp_path / "optuna.db", search(["head.lr=1e-9..1e-8/log"], names=["head"]), Machine(best=1))
    assert results["head"].edges == {"lr": "high"}
    assert results["head"].space.stuck == {"lr": "extended 3 times"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "crash_after",
    [11, 25, *(pytest.param(after, marks=pytest.mark.slow) for after in (0, 3, 18, 35))],
)
def test_results_after_a_crash(tmp_path: Path, crash_after: int) -> None:
    searched = search(["head.lr=1e-6..1e-5/log"])
    undisturbed = run(tmp_path / "whole.db", searched, Machine(best=5e-3))
    first, second = Machine(5e-3, crash_after), Machine(5e-3)
    with pytest.raises(Crash):
        run(tmp_path / "crashed.db", searched, first)
    resumed = run(tmp_path / "crashed.db", searched, second)
    assert trials_of(resumed) == trials_of(undisturbed)
    assert {name: result.best.values for name, result in resumed.items()} == {
        name: result.best.values for name, result in undisturbed.items()
    }
    assert len(first.ran) + len(second.ran) == 2 * 18
    third = Machine(5e-3)
    assert trials_of(run(tmp_path / "crashed.db", searched, third)) == trials_of(undisturbed)
    assert third.ran == []


@pytest.mark.slow
def test_results_do_not_depend_on_the_order_of_trials(tmp_path: Path) -> None:
    forwards = run(tmp_path / "one.db", search(), Machine(5e-3))
    assert trials_of(run(tmp_path / "two.db", search(), Machine(5e-3, order=-1))) == trials_of(forwards)


@pytest.mark.slow
def test_failed_trials(tmp_path: Path) -> None:
    results = run(tmp_path / "one.db", search(["lr=1e-4..10/log"], names=["head"]), Machine(best=1e-3))
    failed = [trial for trial in results["head"].trials if trial.reason]
    assert failed and all(trial.score is None and trial.accuracy == 0 for trial in failed)
    with pytest.raises(RunFailed, match="head: every trial failed: the loss is not finite"):
        run(tmp_path / "two.db", search(["lr=1..10/log"], names=["head"]), Machine(best=1e-6))


def test_grid_search(tmp_path: Path) -> None:
    results = run(tmp_path / "one.db", search(method="grid", trials=5, names=["head"]), Machine(best=5e-3))
    assert [trial.values["lr"] for trial in results["head"].trials] == [1e-3, 0.00316, 1e-2, 0.0316, 0.1]


def test_file_that_is_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("a text that is long enough not to be taken for an empty database")
    with pytest.raises(BadInput, match=r"trials cannot be stored in .*optuna\.db"):
        run(tmp_path / "optuna.db", search(), Machine(1e-3))


def test_missing_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'adaptkit-vision\[tune\]'"):
        require_optuna()
