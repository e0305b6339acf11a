"""Search spaces: declared options, requests of users, extended ranges, grids and first points."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from adaptkit.errors import BadInput
from adaptkit.plugins.components import make_component, tunable
from adaptkit.plugins.loading import load_plugins
from adaptkit.plugins.ranges import Choice, Range
from adaptkit.settings.request import Arm
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.settings.spaces import Space, changed, make_spaces
from adaptkit.tuning.search import first_points, grid_points, new_part, spread


def arms(*strategies: str, **more: Any) -> tuple[Arm, ...]:
    return resolve([Layer({"strategy": list(strategies), **more})], load_plugins()).arms


def spaces(strategies: list[str], texts: list[str] | None = None, **given: set[str]) -> dict[str, Space]:
    set_by_user = {name: given.get(name, set()) for name in strategies}
    made = make_spaces(arms(*strategies), texts=texts or [], given=set_by_user, fits=lambda arm: True)
    return {space.strategy: space for space in made}


def strategy(tune: str) -> type:
    @dataclass
    class Tuned:
        name: ClassVar[str] = "tuned"
        size: Annotated[int, Field(ge=1, le=40)] = field(default=4, metadata={"help": "a size", "tune": tune})

        def adapt(self, model: Any) -> list[Any]:
            return []

    # A class in a function has annotations that are unresolved texts.
    Tuned.__annotations__["size"] = Annotated[int, Field(ge=1, le=40)]
    return Tuned


def test_declared_options() -> None:
    assert tunable(strategy("2..32/log")) == {"size": Range(2, 32, log=True, integer=True)}
    assert tunable(strategy("1,2,3")) == {"size": Choice((1, 2, 3))}
    assert make_component("strategy", strategy("2..32"), "here").name == "tuned"


@pytest.mark.parametrize(
    ("tune", "line"),
    [
        ("some", "tune tuned.size: must be a whole number, not 'some'"),
        ("0..8", "tune tuned.size: must be at least 1, not 0"),
        ("2..64/log", "tune tuned.size: must be at most 40, not 64"),
        ("2,50", "tune tuned.size: must be at most 40, not 50"),
        ("1.5..3", "tune tuned.size: the ends of '1.5..3' must be whole numbers"),
    ],
)
def test_wrong_declarations(tune: str, line: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_component("strategy", strategy(tune), "here")
    assert caught.value.problems == (line,)


def test_default_spaces_of_built_in_strategies() -> None:
    by_name = spaces(["full", "lora", "adapter", "partial"])
    assert by_name["full"].text == "lr 0.00015..0.015 (log)"
    assert by_name["lora"].text == "lr 0.0005..0.05 (log), rank 2..32 (log)"
    assert by_name["adapter"].dimensions["width"] == Range(2, 32, log=True, integer=True)
    assert by_name["partial"].dimensions["stages"] == Choice((1, 2, 3))
    assert by_name["lora"].defaults == {"lr": 0.005, "rank": 8}


def test_spaces_from_the_user() -> None:
    by_name = spaces(["full", "lora"], ["lr=1e-5..1e-3/log", "lora.rank=4", "lora.dora=true,false", "lora.lr=0.01,0.1"])
    assert by_name["full"].dimensions == {"lr": Range(1e-5, 1e-3, log=True)}
    assert by_name["lora"].dimensions == {"lr": Choice((0.01, 0.1)), "dora": Choice((True, False))}
    assert by_name["lora"].arm.options["rank"] == 4
    assert spaces(["lora"], lora={"rank"})["lora"].text == "lr 0.0005..0.05 (log)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rank=2,4", "--space rank: unknown key; did you mean lora.rank?"),
        ("lora.rnk=2,4", "--space lora.rnk: unknown option; did you mean 'lora.rank'?"),
        ("lra.rank=2", "--space lra.rank: strategy lra is not tuned; did you mean 'lora'?"),
        ("lora.rank=0..4", "--space lora.rank: must be at least 1, not 0"),
        ("lr=0.1,x", "--space lr: a value of '0.1,x' is not a number"),
        ("lr=-1..1", "--space lr: a learning rate must be greater than 0, not -1"),
        ("lr=1,inf", "--space lr: a learning rate must be finite, not inf"),
        ("lr", "--space lr: write key=range"),
    ],
)
def test_wrong_spaces_from_the_user(text: str, line: str) -> None:
    with pytest.raises(BadInput) as caught:
        spaces(["lora", "head"], [text])
    (problem,) = caught.value.problems
    assert problem.startswith(line)


def test_values_that_the_model_does_not_allow() -> None:
    def fits(arm: Arm) -> bool:
        return int(arm.options.get("stages", 1)) < 3

    (space,) = make_spaces(arms("partial"), texts=[], given={"partial": set()}, fits=fits)
    assert space.dimensions["stages"] == Choice((1, 2))
    with pytest.raises(BadInput, match="cannot be adapted with 5"):
        make_spaces(arms("partial"), texts=["partial.stages=1..5"], given={"partial": set()}, fits=fits)


def test_nothing_left_to_tune() -> None:
    with pytest.raises(BadInput, match="head: nothing is left to tune"):
        spaces(["head"], head={"lr"})


def test_ranges_are_extended_within_the_bounds_of_the_option() -> None:
    space = spaces(["lora"], ["lora.rank=2..32/log"])["lora"]
    wider = space.grown({"lr": "high", "rank": "low"}, lambda arm: True)
    assert wider.text == "lr 0.0005..0.5 (log), rank 1..32 (log)"
    assert wider.first == space.dimensions
    again = wider.grown({"rank": "low"}, lambda arm: True)
    assert again.dimensions == wider.dimensions
    assert again.stuck == {"rank": "the option does not allow further values"}
    most = space.grown({"rank": "high"}, lambda arm: int(arm.options["rank"]) <= 40)
    assert most.dimensions["rank"] == Range(2, 40, log=True, integer=True)


def test_ranges_are_extended_three_times_and_lists_never() -> None:
    space = spaces(["lora"], ["lora.rank=2,4,8"])["lora"]
    for _ in range(4):
        space = space.grown({"lr": "low", "rank": "high"}, lambda arm: True)
    assert space.dimensions["lr"] == Range(5e-7, 0.05, log=True)
    assert space.stuck == {"rank": "a list is not extended", "lr": "extended 3 times"}


@pytest.mark.parametrize("trials", [3, 7, 12, 20])
def test_grid_has_one_point_for_each_trial(trials: int) -> None:
    for space in spaces(["full", "lora"], ["lora.dora=true,false"] if trials > 6 else []).values():
        points = grid_points(space, trials)
        assert len(points) == trials
        assert len({tuple(point.items()) for point in points}) == trials
        rates = [point["lr"] for point in points]
        assert (min(rates), max(rates)) == (space.dimensions["lr"].low, space.dimensions["lr"].high)


def test_grid_of_lists_has_a_fixed_number_of_points() -> None:
    space = spaces(["lora"], ["lora.lr=0.1,0.2", "lora.rank=2,4"])["lora"]
    assert len(grid_points(space, 4)) == 4
    with pytest.raises(BadInput, match="has 4 points; give --trials 4"):
        grid_points(space, 5)
    with pytest.raises(BadInput, match="needs more than 3 trials"):
        grid_points(space, 3)


def test_first_points_cover_every_dimension() -> None:
    space = spaces(["lora"])["lora"]
    points = first_points(space, 4, seed=1)
    assert points == first_points(space, 4, seed=1) != first_points(space, 4, seed=2)
    assert sorted(int(4 * space.dimensions["lr"].position(point["lr"])) for point in points) == [0, 1, 2, 3]
    assert spread(Range(1e-4, 1e-2, log=True), 3) == [1e-4, 1e-3, 1e-2]
    assert new_part(Range(1e-4, 1e-2, log=True), Range(1e-4, 1, log=True), 2) == [0.1, 1]
    assert new_part(Range(1e-2, 1, log=True), Range(1e-4, 1, log=True), 2) == [1e-3, 1e-4]


def test_changed_values_are_checked() -> None:
    (arm,) = arms("lora")
    other = changed(arm, {"rank": 4, "lr": 0.1})
    assert (other.options["rank"], other.lr, other.label) == (4, 0.1, "lora rank=4")
    with pytest.raises(BadInput, match=r"lora\.rank: must be at least 1"):
        changed(arm, {"rank": 0})
