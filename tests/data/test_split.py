"""Division of images into parts, and few-shot draws."""

from __future__ import annotations

import random

import pytest
import torch

from adaptkit.data.split import draw, random_split, sizes_for, stratified


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def labels_of(counts, seed=0):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=seeded(seed))]


def counts_in(labels, part, classes=None):
    return torch.bincount(labels[part], minlength=classes or int(labels.max()) + 1).tolist()


@pytest.mark.parametrize(
    ("total", "asked", "given"),
    [
        (5000, {"source": 2500, "pool": 1000, "test": 1500}, (2500, 1000, 1500)),  # mnist5k, just fits
        (4999, {"source": 2500, "pool": 1000, "test": 1500}, (2499, 999, 1499)),
        (1797, {"source": 2500, "pool": 1000, "test": 1500}, (898, 359, 539)),  # digits
        (1797, {"source": 1000, "pool": 400, "test": 400}, (898, 359, 400)),
        (60_000, {"source": 20_000, "pool": 40_000}, (20_000, 40_000, 0)),  # MNIST's training images
        (60_000, {"source": 60_000, "pool": 60_000}, (42_857, 17_142, 0)),  # 5/7 and 2/7
        (60_000, {"source": 2500, "pool": 1000}, (2500, 1000, 0)),
        (1797, {"pool": 1000, "test": 1500}, (0, 718, 1078)),  # a target: 40 % and 60 %
        (5000, {"pool": 1000, "test": 1500}, (0, 1000, 1500)),
        (3000, {"pool": 1000, "test": 2500}, (0, 1000, 1800)),
        (0, {"source": 1, "pool": 1, "test": 1}, (0, 0, 0)),
    ],
)
def test_sizes(total, asked, given):
    assert sizes_for(total, **asked) == given


def test_stratified_parts_of_equal_classes():
    labels = labels_of([500] * 10)
    parts = stratified(labels, [2500, 1000, 1500], seeded())
    assert [counts_in(labels, part) for part in parts] == [[250] * 10, [100] * 10, [150] * 10]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(5000))


def test_stratified_rounding():
    labels = labels_of([50, 30, 20])
    (part,) = stratified(labels, [9], seeded())  # shares 4.5, 2.7, 1.8
    assert counts_in(labels, part) == [4, 3, 2]


def test_stratified_counts_are_within_one_of_the_exact_share():
    chance = random.Random(0)
    for trial in range(200):
        counts = [chance.randint(12, 90) for _ in range(chance.randint(2, 12))]
        labels, total = labels_of(counts, trial), sum(counts)
        sizes = [total * share // 100 for share in chance.choice([(50, 20, 30), (40, 60), (10,), (33, 33, 34)])]
        parts = stratified(labels, sizes, seeded(trial))
        assert [len(part) for part in parts] == sizes
        assert len(set(torch.cat(parts).tolist())) == sum(sizes)
        for part, size in zip(parts, sizes, strict=True):
            for count, present in zip(counts, counts_in(labels, part, len(counts)), strict=True):
                assert abs(present - size * count / total) <= 1, (counts, sizes)
                assert present >= 1 or size < len(counts)


def test_stratified_parts_have_every_class_if_possible():
    labels = labels_of([97, 3])
    parts = stratified(labels, [10, 10, 10], seeded())
    assert [counts_in(labels, part) for part in parts] == [[9, 1]] * 3
    labels = labels_of([96, 4])
    parts = stratified(labels, [80, 10, 10], seeded())
    assert [counts_in(labels, part) for part in parts] == [[78, 2], [9, 1], [9, 1]]
    labels = labels_of([30, 30, 1])  # one image cannot be in two parts
    parts = stratified(labels, [30, 31], seeded())
    assert sorted(counts_in(labels, part, 3)[2] for part in parts) == [0, 1]
    assert [len(part) for part in parts] == [30, 31]


def test_stratified_repeats_with_the_seed():
    labels = labels_of([50, 70])
    first, again, other = (stratified(labels, [40, 20], seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert set(first[0].tolist()) != set(other[0].tolist())


def test_stratified_parts_begin_with_several_classes():
    labels = torch.arange(10).repeat_interleave(100)
    (part,) = stratified(labels, [500], seeded())
    assert len(set(labels[part[:16]].tolist())) > 4


def test_random_split():
    parts = random_split(100, [50, 20, 25], seeded())
    assert [len(part) for part in parts] == [50, 20, 25]
    assert len(set(torch.cat(parts).tolist())) == 95
    assert all(torch.equal(a, b) for a, b in zip(parts, random_split(100, [50, 20, 25], seeded()), strict=True))
    assert not torch.equal(parts[0], random_split(100, [50, 20, 25], seeded(1))[0])


@pytest.mark.parametrize("sizes", [[60, 50], [-1, 5]])
def test_impossible_sizes(sizes):
    for split in (lambda: random_split(100, sizes, seeded()), lambda: stratified(labels_of([100]), sizes, seeded())):
        with pytest.raises(ValueError, match="cannot take parts"):
            split()


@pytest.mark.parametrize(
    ("pool", "shots", "expected"),
    [
        ([100] * 10, 50, [50] * 10),
        ([100] * 10, 20, [20] * 10),
        ([100] * 10, 80, [50] * 10),  # at most half of the pool
        ([36, 36, 35, 37], 30, [18] * 4),
        ([90, 5, 5], 20, [16, 5, 5]),  # half of 100 is 16 each; a small class gives all its images
        ([90, 5, 5], 3, [3, 3, 3]),
        ([2, 2], 50, [1, 1]),
    ],
)
def test_stratified_draw(pool, shots, expected):
    labels = labels_of(pool)
    drawn = draw(labels, shots, "stratified", generator=seeded())
    assert counts_in(labels, drawn) == expected
    assert len(set(drawn.tolist())) == sum(expected) <= len(labels) // 2


@pytest.mark.parametrize(("shots", "expected"), [(5, 15), (10, 30), (50, 50), (500, 50)])
def test_random_draw(shots, expected):
    labels = labels_of([70, 20, 10])
    drawn = draw(labels, shots, "random", generator=seeded())
    assert len(drawn) == len(set(drawn.tolist())) == expected


def test_notebook_draw():
    labels = labels_of([4000] * 10)
    assert len(draw(labels, 200, "random", generator=seeded())) == 2000


@pytest.mark.parametrize("sampling", ["stratified", "random"])
def test_draws_repeat_and_nest(sampling):
    labels = labels_of([100] * 10)
    drawn = draw(labels, 40, sampling, generator=seeded())
    assert torch.equal(drawn, draw(labels, 40, sampling, generator=seeded()))
    assert set(drawn.tolist()) != set(draw(labels, 40, sampling, generator=seeded(1)).tolist())
    assert set(draw(labels, 10, sampling, generator=seeded()).tolist()) < set(drawn.tolist())
