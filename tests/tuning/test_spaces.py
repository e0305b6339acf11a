"""What is searched: ranges and lists, what strategies declare, what users ask for, how ranges grow."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from adaptkit.errors import BadInput
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.offers import make_offer, tunable
from adaptkit.plugins.ranges import Choice, Range, parse_dimension
from adaptkit.settings.request import Arm
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.tuning.search import first_points, grid_points, new_part, spread
from adaptkit.tuning.spaces import Space, changed, make_spaces


def arms(*strategies: str, **more: Any) -> tuple[Arm, ...]:
    return resolve([Layer({"strategy": list(strategies), **more})], load_plugins()).arms


def spaces(strategies: list[str], texts: list[str] | None = None, **given: set[str]) -> dict[str, Space]:
    found = make_spaces(
        arms(*strategies), texts or [], {name: given.get(name, set()) for name in strategies}, lambda arm: True
    )
    return {space.strategy: space for space in found}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4..1e-1/log", Range(1e-4, 0.1, log=True)),
        ("0..0.5", Range(0, 0.5)),
        ("-1..1", Range(-1, 1)),
        ("2, 4,8", Choice(("2", "4", "8"))),
        ("8", Choice(("8",))),
    ],
)
def test_a_text_says_what_is_searched(text: str, expected: Range | Choice) -> None:
    assert parse_dimension("lr", text) == expected
    assert parse_dimension("lr", expected.text) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0..1/log", "x: '0..1/log' must begin above 0 on a log scale"),
        ("2..1", "x: '2..1' must rise from a number to a greater one"),
        ("a..b", "x: 'a..b' is no range"),
        ("1..", "x: '1..' is no range"),
        ("1..2/ln", "x: '1..2/ln' must end with /log"),
        ("2,,3", "x: '2,,3' has an empty value"),
        ("2,2", "x: '2,2' names a value twice"),
        ("1..inf", "x: '1..inf' must rise"),
    ],
)
def test_a_text_that_says_nothing_is_one_line(text: str, line: str) -> None:
    with pytest.raises(BadInput, match=re.escape(line)):
        parse_dimension("x", text)


def strategy(tune: str) -> type:
    @dataclass
    class Tuned:
        name: ClassVar[str] = "tuned"
        size: Annotated[int, Field(ge=1, le=40)] = field(default=4, metadata={"help": "a size", "tune": tune})

        def adapt(self, model: Any) -> list[Any]:
            return []

    # Defined in a function: its annotations are texts that nothing else could look up.
    Tuned.__annotations__["size"] = Annotated[int, Field(ge=1, le=40)]
    return Tuned


def test_a_strategy_declares_what_is_searched() -> None:
    assert tunable(strategy("2..32/log")) == {"size": Range(2, 32, log=True, integer=True)}
    assert tunable(strategy("1,2,3")) == {"size": Choice((1, 2, 3))}
    assert make_offer("strategy", strategy("2..32"), "here").name == "tuned"


@pytest.mark.parametrize(
    ("tune", "line"),
    [
        ("some", "tune tuned.size: must be a whole number, not 'some'"),
        ("0..8", "tune tuned.size: must be at least 1, not 0"),
        ("2..64/log", "tune tuned.size: must be at most 40, not 64"),
        ("2,50", "tune tuned.size: must be at most 40, not 50"),
        ("1.5..3", "tune tuned.size: '1.5..3' must go from one whole number to another"),
    ],
)
def test_a_declaration_that_the_option_refuses_is_one_line(tune: str, line: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_offer("strategy", strategy(tune), "here")
    assert caught.value.problems == (line,)


def test_built_in_strategies_are_searched_in_their_learning_rate_and_what_they_declare() -> None:
    found = spaces(["full", "lora", "adapter", "partial"])
    assert found["full"].text == "lr 0.0001..0.01 (log)"
    assert found["lora"].text == "lr 0.0005..0.05 (log), rank 2..32 (log)"
    assert found["adapter"].dimensions["width"] == Range(2, 32, log=True, integer=True)
    assert found["partial"].dimensions["stages"] == Choice((1, 2, 3))
    assert found["lora"].defaults == {"lr": 0.005, "rank": 8}


def test_users_say_what_is_searched_of_all_of_one_and_not_at_all() -> None:
    found = spaces(["full", "lora"], ["lr=1e-5..1e-3/log", "lora.rank=4", "lora.dora=true,false", "lora.lr=0.01,0.1"])
    assert found["full"].dimensions == {"lr": Range(1e-5, 1e-3, log=True)}
    assert found["lora"].dimensions == {"lr": Choice((0.01, 0.1)), "dora": Choice((True, False))}
    assert found["lora"].arm.options["rank"] == 4
    assert spaces(["lora"], lora={"rank"})["lora"].text == "lr 0.0005..0.05 (log)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rank=2,4", "--space rank: unknown key; did you mean lora.rank?"),
        ("lora.rnk=2,4", "--space lora.rnk: unknown option; did you mean 'lora.rank'?"),
        ("lra.rank=2", "--space lra.rank: strategy lra is not tuned; did you mean 'lora'?"),
        ("lora.rank=0..4", "--space lora.rank: must be at least 1, not 0"),
        ("lr=0.1,x", "--space lr: '0.1,x' holds what is no number"),
        ("lr=-1..1", "--space lr: a learning rate must be greater than 0, not -1"),
        ("lr=1,inf", "--space lr: a learning rate must be finite, not inf"),
        ("lr", "--space lr: write key=range"),
    ],
)
def test_what_cannot_be_searched_is_one_line(text: str, line: str) -> None:
    with pytest.raises(BadInput) as caught:
        spaces(["lora", "head"], [text])
    (problem,) = caught.value.problems
    assert problem.startswith(line)


def test_what_the_model_refuses_is_left_out_of_a_default_and_refused_of_a_user() -> None:
    def fits(arm: Arm) -> bool:
        return int(arm.options.get("stages", 1)) < 3

    (space,) = make_spaces(arms("partial"), [], {"partial": set()}, fits)
    assert space.dimensions["stages"] == Choice((1, 2))
    with pytest.raises(BadInput, match="cannot be adapted with 5"):
        make_spaces(arms("partial"), ["partial.stages=1..5"], {"partial": set()}, fits)


def test_with_nothing_to_search_there_is_nothing_to_tune() -> None:
    with pytest.raises(BadInput, match="head: nothing is left to be tuned"):
        spaces(["head"], head={"lr"})


@pytest.mark.parametrize(
    ("dimension", "value", "side"),
    [
        (Range(1e-4, 1e-2, log=True), 1.5e-4, "low"),
        (Range(1e-4, 1e-2, log=True), 1.7e-4, ""),
        (Range(1e-4, 1e-2, log=True), 1e-2, "high"),
        (Range(0, 1), 0.05, "low"),
        (Range(0, 1), 0.5, ""),
        (Choice((2, 4, 8)), 8, "high"),
        (Choice((2, 4, 8)), 4, ""),
        (Choice((2, 4)), 4, ""),
        (Choice((True, False)), True, ""),
        (Choice(("a", "b", "c")), "c", ""),
    ],
)
def test_the_outer_tenth_of_a_range_and_the_ends_of_a_list_are_edges(dimension: Any, value: Any, side: str) -> None:
    assert dimension.side(value) == side


def test_ranges_grow_within_what_the_option_allows() -> None:
    space = spaces(["lora"], ["lora.rank=2..32/log"])["lora"]
    wider = space.grown({"lr": "high", "rank": "low"}, lambda arm: True)
    assert wider.text == "lr 0.0005..0.5 (log), rank 1..32 (log)"
    assert wider.first == space.dimensions
    again = wider.grown({"rank": "low"}, lambda arm: True)
    assert again.dimensions == wider.dimensions
    assert again.stuck == {"rank": "the option allows no further value"}
    most = space.grown({"rank": "high"}, lambda arm: int(arm.options["rank"]) <= 40)
    assert most.dimensions["rank"] == Range(2, 40, log=True, integer=True)


def test_ranges_grow_three_times_and_lists_never() -> None:
    space = spaces(["lora"], ["lora.rank=2,4,8"])["lora"]
    for _ in range(4):
        space = space.grown({"lr": "low", "rank": "high"}, lambda arm: True)
    assert space.dimensions["lr"] == Range(5e-7, 0.05, log=True)
    assert space.stuck == {"rank": "a list does not grow", "lr": "grown 3 times"}


@pytest.mark.parametrize("trials", [3, 7, 12, 20])
def test_a_grid_has_as_many_points_as_there_are_trials(trials: int) -> None:
    for space in spaces(["full", "lora"], ["lora.dora=true,false"] if trials > 6 else []).values():
        points = grid_points(space, trials)
        assert len(points) == trials
        assert len({tuple(point.items()) for point in points}) == trials
        rates = [point["lr"] for point in points]
        assert (min(rates), max(rates)) == (space.dimensions["lr"].low, space.dimensions["lr"].high)


def test_a_grid_of_lists_says_how_many_points_it_has() -> None:
    space = spaces(["lora"], ["lora.lr=0.1,0.2", "lora.rank=2,4"])["lora"]
    assert len(grid_points(space, 4)) == 4
    with pytest.raises(BadInput, match="has 4 points; give --trials 4"):
        grid_points(space, 5)
    with pytest.raises(BadInput, match="needs more than 3 trials"):
        grid_points(space, 3)


def test_the_first_points_cover_every_dimension() -> None:
    space = spaces(["lora"])["lora"]
    points = first_points(space, 4, seed=1)
    assert points == first_points(space, 4, seed=1) != first_points(space, 4, seed=2)
    assert sorted(int(4 * space.dimensions["lr"].position(point["lr"])) for point in points) == [0, 1, 2, 3]
    assert spread(Range(1e-4, 1e-2, log=True), 3) == [1e-4, 1e-3, 1e-2]
    assert new_part(Range(1e-4, 1e-2, log=True), Range(1e-4, 1, log=True), 2) == [0.1, 1]
    assert new_part(Range(1e-2, 1, log=True), Range(1e-4, 1, log=True), 2) == [1e-3, 1e-4]


def test_changed_arms_are_checked() -> None:
    (arm,) = arms("lora")
    other = changed(arm, {"rank": 4, "lr": 0.1})
    assert (other.options["rank"], other.lr, other.label) == (4, 0.1, "lora rank=4")
    with pytest.raises(BadInput, match=r"lora\.rank: must be at least 1"):
        changed(arm, {"rank": 0})
