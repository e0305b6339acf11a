"""The search: equal budgets, ranges that grow, and studies that a crash does not change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from adaptkit.errors import BadInput, RunFailed
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.tuning.search import Search, SearchResult, TrialRequest
from adaptkit.tuning.spaces import make_spaces
from adaptkit.tuning.study import StudyTrial, open_studies, require_optuna


class Crash(Exception):
    """What ends a process in these tests."""


class Machine:
    """Run trials in no time: the best learning rate is `best`, the best rank 16. It may crash after some."""

    def __init__(self, best: float, crash_after: int | None = None, order: int = 1) -> None:
        self.best = best
        self.crash_after = crash_after
        self.order = order
        self.ran: list[tuple[str, int]] = []

    def perform(self, asked: Sequence[TrialRequest]) -> Iterator[tuple[TrialRequest, StudyTrial]]:
        for one in asked[:: self.order]:
            if self.crash_after is not None and len(self.ran) >= self.crash_after:
                raise Crash
            self.ran.append((one.space.strategy, one.trial.number))
            yield one, self.done(one.trial)

    def done(self, trial: StudyTrial) -> StudyTrial:
        lr, rank = trial.values["lr"], trial.values.get("rank", 16)
        if lr > 50 * self.best:
            return StudyTrial(trial.number, trial.values, 0.0, "the loss is not finite")
        value = 1 - 0.1 * abs(math.log10(lr / self.best)) - 0.02 * abs(math.log2(rank / 16))
        return StudyTrial(trial.number, trial.values, value, None, (f"run-{trial.number}",))


def search(
    texts: Sequence[str] = (), trials: int = 9, method: str = "tpe", names: Sequence[str] = ("lora", "head")
) -> Search:
    arms = resolve([Layer({"strategy": list(names)})], load_plugins()).arms
    found = make_spaces(arms, texts, {name: set() for name in names}, lambda arm: True)
    return Search(found, trials, method, seed=0)


def run(path: Path, wanted: Search, machine: Machine, lines: list[str] | None = None) -> dict[str, SearchResult]:
    names = [space.strategy for space in wanted.spaces]
    with open_studies(path, "key", names, seed=0) as studies:
        found = wanted.run(studies, machine.perform, lambda arm: True, (lines if lines is not None else []).append)
    return {one.space.strategy: one for one in found}


def told(found: dict[str, SearchResult]) -> dict[str, list[tuple[int, dict[str, Any], float | None]]]:
    return {
        name: [(trial.number, dict(trial.values), trial.value) for trial in one.trials] for name, one in found.items()
    }


def test_every_strategy_has_the_same_number_of_trials_and_begins_with_its_defaults(tmp_path: Path) -> None:
    found = run(tmp_path / "optuna.db", search(), Machine(best=5e-3))
    assert {name: len(one.trials) for name, one in found.items()} == {"lora": 9, "head": 9}
    assert found["lora"].trials[0].values == {"lr": 5e-3, "rank": 8}
    assert found["head"].trials[0].values == {"lr": 5e-3}
    for one in found.values():
        assert one.edges == {}
        assert one.best.value == max(trial.value or 0 for trial in one.trials)


@pytest.mark.parametrize("trials", [2, 3, 9])
def test_the_defaults_are_tried_once(tmp_path: Path, trials: int) -> None:
    for one in run(tmp_path / "optuna.db", search(trials=trials), Machine(0.01)).values():
        values = [tuple(trial.values.items()) for trial in one.trials]
        assert values.count(values[0]) == 1


def test_a_range_grows_and_every_strategy_is_given_as_many_trials(tmp_path: Path) -> None:
    lines: list[str] = []
    machine = Machine(best=5e-3)
    found = run(tmp_path / "optuna.db", search(["head.lr=1e-6..1e-5/log"]), machine, lines)
    grown = found["head"].space
    assert grown.growth["lr"] == 3
    assert grown.dimensions["lr"].text == "1e-06..0.01/log"
    assert {len(one.trials) for one in found.values()} == {9 + 3 * 3}
    assert found["head"].edges == {} and found["lora"].space.growth == {}
    assert lines[:2] == [
        "head: the best lies on the edge of lr 1e-06..1e-05 (log); searching lr 1e-06..0.0001 (log)",
        "every strategy is given 3 further trials",
    ]
    assert sorted(machine.ran) == [(name, number) for name in ("head", "lora") for number in range(18)]


def test_what_still_lies_on_an_edge_is_said(tmp_path: Path) -> None:
    found = run(tmp_path / "optuna.db", search(["head.lr=1e-9..1e-8/log"], names=["head"]), Machine(best=1))
    assert found["head"].edges == {"lr": "high"}
    assert found["head"].space.stuck == {"lr": "grown 3 times"}


@pytest.mark.parametrize(
    "crash_after",
    [11, 25, *(pytest.param(after, marks=pytest.mark.slow) for after in (0, 3, 18, 35))],
)
def test_a_crash_changes_nothing(tmp_path: Path, crash_after: int) -> None:
    wanted = search(["head.lr=1e-6..1e-5/log"])
    undisturbed = run(tmp_path / "whole.db", wanted, Machine(best=5e-3))
    first, second = Machine(5e-3, crash_after), Machine(5e-3)
    with pytest.raises(Crash):
        run(tmp_path / "crashed.db", wanted, first)
    resumed = run(tmp_path / "crashed.db", wanted, second)
    assert told(resumed) == told(undisturbed)
    assert {name: one.best.values for name, one in resumed.items()} == {
        name: one.best.values for name, one in undisturbed.items()
    }
    assert len(first.ran) + len(second.ran) == 2 * 18
    third = Machine(5e-3)
    assert told(run(tmp_path / "crashed.db", wanted, third)) == told(undisturbed)
    assert third.ran == []


def test_the_order_in_which_trials_end_changes_nothing(tmp_path: Path) -> None:
    forwards = run(tmp_path / "one.db", search(), Machine(5e-3))
    assert told(run(tmp_path / "two.db", search(), Machine(5e-3, order=-1))) == told(forwards)


def test_trials_that_fail_count_as_nothing_and_a_strategy_of_failures_stops(tmp_path: Path) -> None:
    found = run(tmp_path / "one.db", search(["lr=1e-4..10/log"], names=["head"]), Machine(best=1e-3))
    failed = [trial for trial in found["head"].trials if trial.reason]
    assert failed and all(trial.value == 0.0 for trial in failed)
    with pytest.raises(RunFailed, match="head: every trial failed: the loss is not finite"):
        run(tmp_path / "two.db", search(["lr=1..10/log"], names=["head"]), Machine(best=1e-6))


def test_a_grid_is_searched_point_by_point(tmp_path: Path) -> None:
    found = run(tmp_path / "one.db", search(method="grid", trials=5, names=["head"]), Machine(best=5e-3))
    assert [trial.values["lr"] for trial in found["head"].trials] == [5e-4, 0.00158, 5e-3, 0.0158, 0.05]


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("something else, and long enough to be no empty database")
    with pytest.raises(BadInput, match=r"the trials cannot be kept in .*optuna\.db"):
        run(tmp_path / "optuna.db", search(), Machine(1e-3))


def test_without_optuna_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'adaptkit-vision\[tune\]'"):
        require_optuna()
