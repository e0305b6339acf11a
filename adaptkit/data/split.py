"""Decide which images go where. Indices come in random order, so that the first images of a part are a mixed lot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Generator, Tensor

#: how a data set is shared out when the sizes asked for do not fit
SHARES = {"source": 50, "pool": 20, "test": 30}


def sizes_for(total: int, *, source: int = 0, pool: int = 0, test: int = 0) -> tuple[int, int, int]:
    """Return how many of `total` images become source, pool and test.

    Give what is asked for if it fits, else 50 : 20 : 30 among the parts asked for, but no more than asked for.
    """
    asked = {"source": source, "pool": pool, "test": test}
    if sum(asked.values()) <= total:
        return source, pool, test
    whole = sum(share for part, share in SHARES.items() if asked[part])
    source, pool, test = (min(asked[part], total * share // whole) for part, share in SHARES.items())
    return source, pool, test


def random_split(total: int, sizes: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
    """Return disjoint random parts of `range(total)` of these sizes."""
    _require(total, sizes)
    order = torch.randperm(total, generator=generator)
    return _cut(order, sizes)


def stratified(labels: Tensor, sizes: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
    """Return disjoint parts of the images of these sizes, each with every class's share as equal as can be.

    A class's count in a part is within one image of its exact share; but where sizes permit, no class is left out.
    """
    _require(len(labels), sizes)
    order = torch.randperm(len(labels), generator=generator)
    members = _by_class(labels, order)
    table = _shares([len(indices) for indices in members], [*sizes, len(labels) - sum(sizes)])
    pieces = [_cut(indices, [row[column] for row in table]) for column, indices in enumerate(members)]
    parts = [torch.cat([piece[part] for piece in pieces]) if pieces else order for part in range(len(sizes))]
    return tuple(part[torch.randperm(len(part), generator=generator)] for part in parts)


def draw(labels: Tensor, shots: int, sampling: str, generator: Generator) -> Tensor:
    """Return the few-shot draw from a pool with these labels: at most half of the pool.

    `stratified` draws `shots` of each class, or equally fewer where half of the pool is less; a class that has not
    as many gives what it has. `random` draws as many images in all, whatever their classes. With the same generator
    state a draw of fewer shots is part of the draw of more.
    """
    order = torch.randperm(len(labels), generator=generator)
    members = _by_class(labels, order)
    half = len(labels) // 2
    if sampling == "random" or not members:
        return order[: min(shots * len(members), half)]
    each = min(shots, half // len(members))
    drawn = torch.cat([indices[:each] for indices in members])
    return drawn[torch.randperm(len(drawn), generator=generator)]


def _by_class(labels: Tensor, order: Tensor) -> tuple[Tensor, ...]:
    """Return the images of each class that occurs, by rising label, each class in the given order."""
    ordered = labels[order]
    counts: list[int] = ordered.unique(return_counts=True)[1].tolist()
    return order[ordered.argsort(stable=True)].split(counts) if counts else ()


def _cut(indices: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Return consecutive pieces of these sizes."""
    return tuple(indices[stop - size : stop] for stop, size in zip(accumulate(sizes), sizes, strict=True))


def _shares(counts: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Return how many images of each class (columns) go to each part (rows; the last one is what is left over)."""
    total = max(sum(counts), 1)
    table = [[size * count // total for count in counts] for size in sizes]
    left = [count - sum(column) for count, column in zip(counts, zip(*table, strict=True), strict=True)]
    for row, size in zip(table, sizes, strict=True):
        # Largest remainder; but a class that has most images left to place comes first, or they would not fit later.
        wanted = sorted(range(len(counts)), key=lambda c: (-left[c], -(size * counts[c] % total), c))
        for column in wanted[: size - sum(row)]:
            row[column] += 1
            left[column] -= 1
    for row in table[:-1]:
        if sum(row) >= len(counts):
            _include_all(row, table)
    return table


def _include_all(row: list[int], table: list[list[int]]) -> None:
    """Swap an image of every class that this part lacks for one of its commonest, with the part that can spare it."""
    for column in (c for c, count in enumerate(row) if count == 0):
        spare = table[-1] if table[-1][column] else max(table, key=lambda other: other[column])
        common = max(range(len(row)), key=lambda c: row[c])
        if row[common] > 1 and (spare[column] > 1 or spare is table[-1]):
            row[column], spare[column] = 1, spare[column] - 1
            row[common], spare[common] = row[common] - 1, spare[common] + 1


def _require(total: int, sizes: Sequence[int]) -> None:
    if sum(sizes) > total or any(size < 0 for size in sizes):
        raise ValueError(f"cannot take parts of {list(sizes)} from {total} images")
