"""Divisions of labelled images: every label is predicted once, groups stay together, draws share no image."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from adaptkit.data.protocols import (
    Labels,
    Wanted,
    choose_protocol,
    disjoint_draw,
    divided_by,
    division_of,
    domain_numbers,
    fold_fits,
    fold_numbers,
    given_fit,
    most_shots,
)
from adaptkit.errors import BadInput


def labels(*counts: int, groups: tuple[str, ...] | None = None) -> Labels:
    numbers = torch.tensor([number for number, count in enumerate(counts) for _ in range(count)])
    return Labels(numbers, tuple(f"class {number}" for number in range(len(counts))), groups)


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("images", [2, 3, 10])
@pytest.mark.parametrize("classes", [2, 3, 20])
def test_exact_folds(folds: int, images: int, classes: int) -> None:
    of = labels(*[images] * classes)
    if folds > len(of):
        with pytest.raises(BadInput, match=f"{folds} folds of {len(of)} images; set at most --folds {len(of)}"):
            fold_numbers(of, folds, seed=0)
        return
    assigned = fold_numbers(of, folds, seed=0)
    sizes = torch.bincount(assigned, minlength=folds).tolist()
    assert sum(sizes) == len(of) and min(sizes) > 0
    for label in range(classes):
        shares = torch.bincount(assigned[of.numbers == label], minlength=folds).tolist()
        assert max(shares) - min(shares) <= 1  # each class has its share of each fold
    fits = fold_fits(of, assigned, shots=None, seed=0)
    evaluated = torch.cat([fit.evaluated for fit in fits if fit.evaluated is not None])
    assert sorted(evaluated.tolist()) == list(range(len(of)))
    for fit in fits:
        assert fit.evaluated is not None
        assert sorted([*fit.train.tolist(), *fit.evaluated.tolist()]) == list(range(len(of)))
    assert torch.equal(assigned, fold_numbers(of, folds, seed=0))
    if images == 10:
        assert not torch.equal(assigned, fold_numbers(of, folds, seed=1))


@pytest.mark.parametrize("counts", [(1, 10), (10, 1, 1)])
def test_class_with_one_image(counts: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="has one image; two are needed"):
        fold_numbers(labels(*counts), 2, seed=0)


def test_unequal_classes() -> None:
    of = labels(50, 2)
    assigned = fold_numbers(of, 5, seed=3)
    assert torch.bincount(assigned[:50]).tolist() == [10] * 5
    assert len(set(assigned[50:].tolist())) == 2


def test_groups_stay_together() -> None:
    # One group has half of the images.
    groups = tuple("large" if number % 2 else f"small {number // 10}" for number in range(200))
    of = labels(100, 100, groups=groups)
    assigned = fold_numbers(of, 5, seed=0)
    for group in set(groups):
        assert len({int(assigned[place]) for place, name in enumerate(groups) if name == group}) == 1
    fits = fold_fits(of, assigned, shots=None, seed=0)
    assert min(len(fit.train) for fit in fits) == 80
    with pytest.raises(BadInput, match="5 folds of 2 groups; set at most --folds 2"):
        fold_numbers(labels(10, 10, groups=tuple("ab" * 10)), 5, seed=0)
    with pytest.raises(BadInput, match="there must be at least two"):
        fold_numbers(labels(10, 10, groups=tuple("a" * 20)), 2, seed=0)


def test_group_that_is_a_class() -> None:
    of = labels(10, 10, groups=tuple("a" * 10 + "b" * 10))
    with pytest.raises(BadInput, match="only one class is left to train on"):
        fold_fits(of, fold_numbers(of, 2, seed=0), shots=None, seed=0)


def test_groups_in_several_domains() -> None:
    of = labels(4, 4, groups=tuple("abcdabcd"))
    north, south = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 0, 0, 1, 1])
    assert divided_by(of, north, "site") is None
    assert divided_by(of, south, "site") == (
        "folds: 1 group has images with several values of site (c); a fit does not train on images of the groups that "
        "it evaluates"
    )
    first, second = fold_fits(of, south, shots=None, seed=0)
    assert (first.train.tolist(), second.train.tolist()) == ([3, 7], [0, 1, 4, 5])


def test_shots_limit_each_fit() -> None:
    of = labels(20, 10)
    with pytest.raises(BadInput, match="shots: 17 images of each class, but a fit has at most 16"):
        fold_fits(of, fold_numbers(of, 5, seed=0), shots=17, seed=0)
    assigned = fold_numbers(of, 5, seed=0)
    few, many = (fold_fits(of, assigned, shots=shots, seed=0) for shots in (2, 5))
    for small, large in zip(few, many, strict=True):
        assert torch.bincount(of.numbers[small.train]).tolist() == [2, 2]
        assert set(small.train.tolist()) < set(large.train.tolist())
    assert torch.bincount(of.numbers[given_fit(of, shots=3, seed=0).train]).tolist() == [3, 3]
    assert given_fit(of, shots=None, seed=0).train.tolist() == list(range(30))


def test_domains() -> None:
    numbers, names = domain_numbers(["south", "north", "south"])
    assert (numbers.tolist(), names) == ([1, 0, 1], ("north", "south"))
    with pytest.raises(BadInput, match="every image has the value 'south'"):
        domain_numbers(["south", "south"])


def test_draws_share_no_image() -> None:
    of = labels(*[100] * 10)
    draws = [set(disjoint_draw(of.numbers, 20, "stratified", seed).tolist()) for seed in range(10)]
    assert all(len(draw) == 200 for draw in draws)
    for division in (draws[:5], draws[5:]):
        assert all(a.isdisjoint(b) for a, b in itertools.combinations(division, 2))
        assert len(set.union(*division)) == 1000
    assert draws[0] != draws[5]
    half = [set(disjoint_draw(of.numbers, 50, "stratified", seed).tolist()) for seed in (0, 1)]
    assert half[0].isdisjoint(half[1]) and most_shots(of.numbers, "stratified") == 50
    for drawn in (disjoint_draw(of.numbers, 20, "random", seed) for seed in (0, 1)):
        assert len(drawn) == 200
        assert not (torch.bincount(of.numbers[drawn], minlength=10) == 20).all()


def test_proportional_draws_have_the_shares_of_the_pool() -> None:
    of = labels(120, 60, 20)
    drawn = [disjoint_draw(of.numbers, 10, "proportional", seed) for seed in range(12)]
    assert [torch.bincount(of.numbers[part]).tolist() for part in drawn[:6]].count([18, 9, 3]) == 6
    for division in (drawn[:6], drawn[6:]):
        assert all(set(a.tolist()).isdisjoint(b.tolist()) for a, b in itertools.combinations(division, 2))
    assert [division_of(of.numbers, 10, "proportional", seed) for seed in (0, 5, 6)] == [0, 0, 1]
    assert set(drawn[0].tolist()) != set(drawn[6].tolist())
    assert most_shots(of.numbers, "proportional") == 33 and most_shots(of.numbers, "stratified") == 60
    half = [set(disjoint_draw(of.numbers, 33, "proportional", seed).tolist()) for seed in (0, 1)]
    assert half[0].isdisjoint(half[1]) and {len(part) for part in half} == {99}
    rare = labels(90, 4)
    parts = [disjoint_draw(rare.numbers, 10, "proportional", seed) for seed in range(4)]
    assert [torch.bincount(rare.numbers[part]).tolist() for part in parts] == [[19, 1]] * 4


def test_draws_of_unequal_classes() -> None:
    of = labels(40, 4, 1)
    drawn = [disjoint_draw(of.numbers, 10, "stratified", seed) for seed in range(4)]
    assert torch.bincount(of.numbers[drawn[0]], minlength=3).tolist() == [10, 1, 1]
    large = [set(part[of.numbers[part] == 0].tolist()) for part in drawn]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(large, 2))
    assert math.isclose(len(set.union(*large)), 40)


@pytest.mark.parametrize(
    ("wanted", "is_own", "has_test", "name"),
    [
        (Wanted(shots=50), False, False, "draws"),
        (Wanted(shots=50), False, True, "draws"),
        (Wanted(shots=50), True, True, "given"),
        (Wanted(shots=50), True, False, "folds"),
        (Wanted(folds=3, shots=50), False, False, "folds"),
        (Wanted(folds="by:site", shots=50), True, True, "folds"),
        (Wanted("draws", shots=50), True, True, "draws"),
    ],
)
def test_choice(wanted: Wanted, is_own: bool, has_test: bool, name: str) -> None:
    protocol = choose_protocol(wanted, target="x", is_own=is_own, has_test=has_test)
    assert protocol.name == name
    assert protocol.shots == (50 if name == "draws" else None)
    again = Wanted(protocol.name, folds=protocol.params["folds"], shots=protocol.shots, explicit=frozenset(["shots"]))
    assert choose_protocol(again, target="x", is_own=is_own, has_test=has_test) == protocol


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (Wanted("given"), "protocol given: x has no test part of its own"),
        (Wanted("draws", folds=3), "folds: the protocol is draws; leave folds out"),
        (Wanted("draws", explicit=frozenset(["shots"])), "protocol draws: set the number of labelled images"),
    ],
)
def test_requests_that_contradict(wanted: Wanted, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        choose_protocol(wanted, target="x", is_own=True, has_test=False)
