"""How labelled target images are used: the protocol, and the division into training and evaluation of each fit.

- `folds`: repeated stratified K-fold. Every label trains in all fits but one of a repeat and is predicted in that one.
- `given`: the test part of the target is evaluated, and all other labels train.
- `draws`: a few-shot study. Each seed trains on a draw from a pool, and one fixed test set is evaluated.

`overlapping` are the draws of adaptkit 0.1, which were independent and could share images. It is kept so that runs of
that version can be reproduced.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from adaptkit.data.split import FOLDS, GIVEN, draw, stratified
from adaptkit.errors import BadInput, listed, suggestion
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import OVERLAPPING

DRAWS = "draws"
#: sampling in which a draw has the same share of each class as the pool
PROPORTIONAL = "proportional"
#: number of folds if the user does not set it
DEFAULT_FOLDS = 5
#: start of the value of `folds` that holds out one value of a column at a time
BY = "by:"


@dataclass(frozen=True)
class Wanted:
    """The wishes of the user; None is a default. `explicit` are the keys of settings that the user has set."""

    protocol: str | None = None
    folds: int | str | None = None
    shots: int | None = None
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Protocol:
    """A chosen protocol: the number of folds, or the column whose values are held out, and the limit of images."""

    name: str
    folds: int | None = None
    by: str | None = None
    shots: int | None = None

    @property
    def params(self) -> dict[str, int | str | None]:
        """Return the settings that choose this protocol again."""
        return {"protocol": self.name, "folds": f"{BY}{self.by}" if self.by else self.folds, "shots": self.shots}


def choose_protocol(wanted: Wanted, *, target: str, is_own: bool, has_test: bool) -> Protocol:
    """Return the protocol for a target; `is_own` are the user's own images, `has_test` if they have a test part.

    Without a request, own images use `given` if they have a test part, otherwise `folds`; other data sets use `draws`.
    The number of shots limits `folds` and `given` only if the user has set it. Raises BadInput for requests that
    contradict each other or the data.
    """
    default = (GIVEN if has_test else FOLDS) if is_own else DRAWS
    name = wanted.protocol or (FOLDS if wanted.folds is not None else default)
    if name != FOLDS and wanted.folds is not None:
        raise BadInput(f"folds: the protocol is {name}; leave folds out, or set --protocol folds")
    if name == GIVEN and not has_test:
        raise BadInput(f"protocol given: {target} has no test part of its own; use folds or draws")
    limit = wanted.shots if name in (DRAWS, OVERLAPPING) or "shots" in wanted.explicit else None
    if name in (DRAWS, OVERLAPPING) and limit is None:
        raise BadInput(f"protocol {name}: set the number of labelled images of each class with --set shots=N")
    if name != FOLDS:
        return Protocol(name, shots=limit)
    if isinstance(wanted.folds, str):
        return Protocol(name, by=wanted.folds.removeprefix(BY), shots=limit)
    return Protocol(name, folds=wanted.folds or DEFAULT_FOLDS, shots=limit)


@dataclass(frozen=True)
class Fit:
    """One training: the positions of its images among the pool, and of the images that it evaluates among the test set.

    `evaluated` is None for all test images.
    """

    train: Tensor
    evaluated: Tensor | None = None


@dataclass(frozen=True)
class Labels:
    """The labelled images of a pool: class numbers, int64 `[n]`, class names, and the group of each image if known."""

    numbers: Tensor
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, positions: Tensor) -> Labels:
        """Return the labels of the images at these positions."""
        groups = None if self.groups is None else tuple(self.groups[position] for position in positions.tolist())
        return Labels(self.numbers[positions], self.classes, groups)


def class_counts(numbers: Tensor, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the number of images of each class."""
    return tuple(torch.bincount(numbers.cpu(), minlength=len(classes)).tolist())


def fold_numbers(labels: Labels, folds: int, seed: int) -> Tensor:
    """Return the number of the fold, from 0, in which each image is evaluated, int64 `[n]`.

    Each class has its share of each fold; images of a group are in one fold. Raises BadInput if that is not possible.
    """
    counts = class_counts(labels.numbers, labels.classes)
    if single := [name for name, count in zip(labels.classes, counts, strict=True) if count == 1]:
        which = "class" if len(single) == 1 else "each of the classes"
        raise BadInput(f"folds: {which} {listed([repr(name) for name in single])} has one image; two are needed")
    if len(labels) < 2:
        left = "no labelled target image is left" if not len(labels) else "only one labelled target image is left"
        raise BadInput(f"folds: {left}; are all others also in the source?")
    if folds > len(labels):
        raise BadInput(f"folds: {folds} folds of {len(labels)} images; set at most --folds {len(labels)}")
    groups = None if labels.groups is None else sorted(set(labels.groups))
    if groups is not None and folds > len(groups):
        way_out = f"set at most --folds {len(groups)}" if len(groups) > 1 else "there must be at least two"
        raise BadInput(f"folds: {folds} folds of {len(groups)} groups; {way_out}")
    state = derive_seed(seed, "folds") % 2**32
    numbers = labels.numbers.numpy()
    if groups is None and folds > max(counts):
        return _in_turn(numbers, folds, state)
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    kinds = {True: StratifiedKFold, False: GroupKFold if folds > max(counts) else StratifiedGroupKFold}
    splitter = kinds[groups is None](folds, shuffle=True, random_state=state)
    assigned = torch.full((len(labels),), -1, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # a notice says so
        for number, (_, held_out) in enumerate(splitter.split(numbers, numbers, labels.groups)):
            assigned[torch.from_numpy(held_out)] = number
    return assigned


def _in_turn(numbers: numpy.ndarray, folds: int, state: int) -> Tensor:
    """Return fold numbers for classes that are all smaller than the number of folds: one image after the other."""
    order = numpy.random.default_rng(state).permutation(len(numbers))
    order = order[numpy.argsort(numbers[order], kind="stable")]
    assigned = torch.empty(len(numbers), dtype=torch.int64)
    assigned[torch.from_numpy(order)] = torch.arange(len(numbers)) % folds
    return assigned


def domain_numbers(values: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return a number for the value of each image, and the values in the order of the numbers; at least two values."""
    names = tuple(sorted(set(values)))
    if len(names) < 2:
        raise BadInput(f"folds: every image has the value {names[0]!r}; at least two values are needed")
    position = {name: number for number, name in enumerate(names)}
    return torch.tensor([position[value] for value in values], dtype=torch.int64), names


def fold_fits(labels: Labels, assigned: Tensor, *, shots: int | None, seed: int) -> tuple[Fit, ...]:
    """Return a fit for each fold: it evaluates the images of the fold, and trains on all others.

    Images of a group that also has images in the fold are left out of the training: this happens if the folds are the
    values of a column. With `shots`, it trains on at most this number of images of each class; those of a smaller
    number are among those of a larger one. Raises BadInput for a fold without images, a fit without two classes, or
    more shots than any class of a fit has.
    """
    fits = []
    groups = None if labels.groups is None else numpy.array(labels.groups)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(seed, "draw")))
    for number in range(int(assigned.max()) + 1):
        evaluated = (assigned == number).nonzero().flatten()
        train = order[assigned[order] != number]
        if groups is not None:
            train = train[~torch.from_numpy(numpy.isin(groups[train.numpy()], groups[evaluated.numpy()]))]
        most = int(labels.numbers[train].bincount().max()) if len(train) else 0
        if shots is not None and shots > most > 0:
            raise BadInput(f"shots: {shots:,} images of each class, but a fit has at most {most:,}; set at most that")
        if shots is not None:
            train = _first_of_each_class(train, labels.numbers, shots)
        if not len(evaluated) or len(labels.numbers[train].unique()) < 2:
            raise BadInput(
                f"folds: without fold {number + 1}, only one class is left to train on; use fewer folds or other groups"
            )
        fits.append(Fit(train.sort().values, evaluated))
    return tuple(fits)


def given_fit(labels: Labels, *, shots: int | None, seed: int) -> Fit:
    """Return the fit that trains on all images, or with `shots` on at most this number of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(seed, "draw")))
    return Fit((order if shots is None else _first_of_each_class(order, labels.numbers, shots)).sort().values)


def _first_of_each_class(indices: Tensor, numbers: Tensor, shots: int) -> Tensor:
    kept = [indices[numbers[indices] == label][:shots] for label in numbers[indices].unique().tolist()]
    return torch.cat(kept)


def disjoint_draw(numbers: Tensor, shots: int, sampling: str, seed: int) -> Tensor:
    """Return the positions of the images of one draw: `shots` of each class, or fewer of a class with too few images.

    The pool is divided into as many disjoint parts as it has room for, at least two; seed `s` takes part `s mod m` of
    division `s div m`. With `random` sampling, the same total number is drawn from all classes together. With
    `proportional` sampling, each class has its share of it, and one image at least if there are enough.
    """
    parts = _parts(numbers, shots, sampling)
    division, part = divmod(seed, parts)
    generator = torch.Generator().manual_seed(derive_seed(division, "draws"))
    if sampling == PROPORTIONAL:
        size = min(shots * len(numbers.unique()), len(numbers) // parts)
        return stratified(numbers, [size] * parts, generator)[part]
    if sampling == "random":
        shots, numbers = shots * len(numbers.unique()), torch.zeros_like(numbers)
    classes = numbers.unique()
    order = torch.randperm(len(numbers), generator=generator)
    drawn = []
    for label in classes.tolist():
        members = order[numbers[order] == label]
        each = max(1, len(members) // parts)
        start = part * each % len(members)
        drawn.append(members[start : start + min(shots, each)])
    joined = torch.cat(drawn)
    return joined[torch.randperm(len(joined), generator=torch.Generator().manual_seed(derive_seed(seed, "draw")))]


def division_of(numbers: Tensor, shots: int, sampling: str, seed: int) -> int:
    """Return the number of the division of the pool that the draw of a seed is a part of."""
    return seed // _parts(numbers, shots, sampling)


def _parts(numbers: Tensor, shots: int, sampling: str) -> int:
    """Return the number of disjoint draws that a pool is divided into."""
    counts = numbers.unique(return_counts=True)[1]
    if sampling == "stratified":
        return max(2, int(counts.max()) // shots)
    return max(2, len(numbers) // (shots * len(counts)))


def most_shots(numbers: Tensor, sampling: str) -> int:
    """Return the largest number of shots that two disjoint draws can have."""
    counts = numbers.unique(return_counts=True)[1]
    most = len(numbers) // len(counts) if sampling == PROPORTIONAL else int(counts.max())
    return max(1, most // 2)


def overlapping_draw(numbers: Tensor, shots: int, sampling: str, seed: int) -> Tensor:
    """Return the positions of the images of one draw of adaptkit 0.1, which may share images with other draws."""
    return draw(numbers, shots, sampling, generator=torch.Generator().manual_seed(derive_seed(seed, "draw")))


def divided_by(labels: Labels, assigned: Tensor, column: str) -> str | None:
    """Return a notice about groups that have images with several values of the column that is held out, or None."""
    values: dict[str, set[int]] = {}
    for group, number in zip(labels.groups or (), assigned.tolist(), strict=False):
        values.setdefault(group, set()).add(number)
    divided = sorted(group for group, numbers in values.items() if len(numbers) > 1)
    if not divided:
        return None
    have = "1 group has" if len(divided) == 1 else f"{len(divided)} groups have"
    return (
        f"folds: {have} images with several values of {column} ({listed(divided)}); a fit does not train on images of "
        "the groups that it evaluates"
    )


#: share of the training images that a tuning holds back
HELD_BACK = 0.2


def hold_back(labels: Labels, seed: int) -> tuple[Tensor, Tensor]:
    """Divide labelled images into training (four fifths of each class) and validation; return the positions of both.

    At least one image of each class is held back, except of classes with a single image. Images of a group stay
    together; a single group is not divided, and nothing is held back.
    """
    seed = derive_seed(seed, "validation")
    held = torch.zeros(len(labels), dtype=torch.bool)
    if labels.groups is None:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        for label in set(labels.numbers.tolist()):
            members = order[labels.numbers[order] == label]
            count = max(1, math.floor(HELD_BACK * len(members) + 0.5)) if len(members) > 1 else 0
            held[members[:count]] = True
    elif (parts := min(round(1 / HELD_BACK), len(set(labels.groups)))) > 1:
        from sklearn.model_selection import StratifiedGroupKFold

        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed % 2**32)
        numbers = labels.numbers.numpy()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            _, first = next(iter(splitter.split(numbers, numbers, labels.groups)))
        held[torch.from_numpy(first)] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def inner_division(labels: Labels, seed: int) -> tuple[Tensor, Tensor]:
    """Return the division of a fit's training images for the trials of its tuning, as `hold_back` does.

    Raises BadInput if no image can be held back, or if only one class would be left to train on.
    """
    training, held = hold_back(labels, derive_seed(seed, "tuning"))
    if not len(held):
        raise BadInput(f"tuning: none of the {len(labels)} training images of a fit can be held back; use more images")
    if len(labels.numbers[training].unique()) < 2:
        raise BadInput("tuning: the trials of a fit would train on one class only; use more images or smaller groups")
    return training, held


def small_classes(labels: Labels, folds: int) -> str | None:
    """Return a notice about classes with fewer images than folds, or None."""
    counts = class_counts(labels.numbers, labels.classes)
    few = [f"{name!r} ({count})" for name, count in zip(labels.classes, counts, strict=True) if count < folds]
    if not few:
        return None
    return f"folds: {listed(few)}: fewer images than the {folds} folds, so some folds evaluate none of them"


def column_values(columns: Mapping[str, tuple[str, ...]], name: str, title: str) -> tuple[str, ...]:
    """Return the values of a column; raise BadInput, with the nearest name, if the data set does not have it."""
    if name not in columns:
        hint = suggestion(name, columns) if columns else "; this data set has no columns"
        raise BadInput(f"{title}: there is no column {name!r}{hint}")
    return columns[name]
