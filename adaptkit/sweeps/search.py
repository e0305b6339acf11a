"""Search every strategy's space with the same number of trials, and go on for all where one's best lies on an edge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import RunFailed
from adaptkit.request import Arm
from adaptkit.seeds import derive_seed
from adaptkit.sweeps.points import first_points, grid_points, new_part
from adaptkit.sweeps.spaces import Space
from adaptkit.sweeps.study import Study, Trial

#: trials of each strategy that are asked before one of them is known: so many can run at once
ROUND = 4
#: the share of the trials that cover the space evenly before TPE is asked, and that follows when a range has grown
SHARE = 3


@dataclass(frozen=True)
class Asked:
    """A trial that is to be run."""

    space: Space
    trial: Trial


#: runs trials and yields each with its value, in any order
Perform = Callable[[Sequence[Asked]], Iterable[tuple[Asked, Trial]]]


@dataclass(frozen=True)
class Searched:
    """What the search found of one strategy: `edges` are the keys of the best trial's values that lie on one."""

    space: Space
    trials: tuple[Trial, ...]
    best: Trial
    edges: Mapping[str, str]


@dataclass(frozen=True)
class Search:
    """How all strategies are searched: so many trials each before any range grows, by `tpe` or `grid`."""

    spaces: tuple[Space, ...]
    trials: int
    method: str
    seed: int

    def __post_init__(self) -> None:
        """Raise BadInput for a grid that does not fit."""
        if self.method == "grid":
            for space in self.spaces:
                grid_points(space, self.trials)

    def run(
        self, studies: Mapping[str, Study], perform: Perform, fits: Callable[[Arm], bool], tell: Callable[[str], None]
    ) -> tuple[Searched, ...]:
        """Run all trials that are not known yet and return what was found; `tell` hears lines about ranges that grow.

        Raises RunFailed for a strategy of which every trial failed.
        """
        spaces = list(self.spaces)
        planned = {space.strategy: dict(enumerate(self._first(space))) for space in spaces}
        done, target = 0, self.trials
        while True:
            for start in range(done, target, ROUND):
                self._round(spaces, studies, planned, min(start + ROUND, target), perform)
            found = [_searched(space, studies[space.strategy].trials[:target]) for space in spaces]
            wider = [one.space.grown(one.edges, fits) for one in found]
            if not any(new.dimensions != old.dimensions for new, old in zip(wider, spaces, strict=True)):
                return tuple(dataclasses.replace(one, space=space) for one, space in zip(found, wider, strict=True))
            done, target = target, target + self.further
            for one, space in zip(found, wider, strict=True):
                if points := self._grown(one, space):
                    planned[space.strategy].update(enumerate(points, start=done))
                    tell(f"{space.strategy}: the best lies on the edge of {one.space.text}; searching {space.text}")
            tell(f"every strategy is given {self.further} further trials")
            spaces = wider

    @property
    def further(self) -> int:
        """Return how many trials every strategy is given when the range of any has grown."""
        return max(2, -(-self.trials // SHARE))

    def _first(self, space: Space) -> list[dict[str, Any]]:
        if self.method == "grid":
            return grid_points(space, self.trials)
        count = max(1, self.trials // SHARE)
        points = first_points(space, count, derive_seed(self.seed, f"{space.strategy} first"))
        # The middle of a range is often the default.
        return [space.defaults, *(point for point in points if point != space.defaults)]

    def _grown(self, found: Searched, wider: Space) -> list[dict[str, Any]]:
        """Return points in what has grown, for half of the further trials: the best so far, moved there."""
        half = -(-self.further // 2)
        return [
            {**found.best.values, key: value}
            for key, dimension in wider.dimensions.items()
            for value in new_part(found.space.dimensions[key], dimension, half)
        ][: self.further]

    def _round(
        self,
        spaces: Sequence[Space],
        studies: Mapping[str, Study],
        planned: Mapping[str, Mapping[int, dict[str, Any]]],
        end: int,
        perform: Perform,
    ) -> None:
        """Ask every strategy's trials up to this number, then run those that are not known."""
        # All are asked before one is told: a proposal never depends on which trial was the faster one.
        for space in spaces:
            study = studies[space.strategy]
            for number in range(len(study.trials), end):
                study.ask(space, planned[space.strategy].get(number))
        waiting = list(
            _alternating(
                [
                    [Asked(space, trial) for trial in studies[space.strategy].trials[:end] if trial.value is None]
                    for space in spaces
                ]
            )
        )
        for asked, trial in perform(waiting) if waiting else ():
            studies[asked.space.strategy].tell(trial)


def _alternating(lists: Sequence[Sequence[Asked]]) -> Iterator[Asked]:
    for index in range(max(map(len, lists), default=0)):
        yield from (items[index] for items in lists if index < len(items))


def _searched(space: Space, trials: Sequence[Trial]) -> Searched:
    good = [trial for trial in trials if trial.reason is None]
    if not good:
        raise RunFailed(f"{space.strategy}: every trial failed: {trials[0].reason}")
    # Few images give many equal accuracies; of rates that are all too small, the loss says which is the least so.
    best = min(good, key=lambda trial: (-(trial.value or 0.0), trial.loss, trial.number))
    return Searched(space, tuple(trials), best, space.edges(best.values))
