"""Search every strategy's space with the same number of trials, and go on for all where one's best lies on an edge."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import BadInput, RunFailed
from adaptkit.plugins.ranges import Choice, Dimension, Range
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Arm
from adaptkit.settings.resolve import LR
from adaptkit.tuning.spaces import Space
from adaptkit.tuning.study import Study, StudyTrial

#: what a grid gives the range that it fills at least, and every other range at most
FEWEST, MOST = 3, 3


def grid_points(space: Space, trials: int) -> list[dict[str, Any]]:
    """Return exactly so many points of a grid over the space: the last range takes what the others leave.

    Raises BadInput for a space of lists that has fewer points.
    """
    ranges = [key for key, dimension in space.dimensions.items() if isinstance(dimension, Range)]
    filled = LR if LR in ranges else ranges[-1] if ranges else None
    lists_first = sorted(space.dimensions.items(), key=lambda item: isinstance(item[1], Range))
    others = {key: dimension for key, dimension in lists_first if key != filled}
    points: list[dict[str, Any]] = [{}]
    room = trials // FEWEST if filled else trials
    for key, dimension in others.items():
        most = max(1, room // len(points))
        if isinstance(dimension, Choice):
            values: Sequence[Any] = dimension.values
            if len(values) > most:
                raise BadInput(
                    f"{space.strategy}: a grid over {space.text} needs more than {trials} trials; give a shorter list "
                    "or more --trials"
                )
        else:
            values = spread(dimension, min(most, MOST))
        points = [{**point, key: value} for point in points for value in values]
    last = space.dimensions[filled] if filled else None
    if filled and isinstance(last, Range):
        share, more = divmod(trials, len(points))
        points = [
            {**point, filled: value}
            for number, point in enumerate(points)
            for value in spread(last, share + (number < more))
        ]
    if len(points) < trials:
        raise BadInput(
            f"{space.strategy}: a grid over {space.text} has {len(points)} points; give --trials {len(points)}"
        )
    return points[:trials]


def spread(dimension: Range, count: int) -> list[float]:
    """Return so many values of a range, evenly spaced on its scale from end to end; a single one lies in the middle."""
    shares = [0.5] if count == 1 else [index / (count - 1) for index in range(count)]
    return list(dict.fromkeys(dimension.at(share) for share in shares))


def new_part(before: Dimension, after: Dimension, count: int) -> list[float]:
    """Return so many values, evenly spaced, of what a range has grown by; its end is the last of them."""
    if not isinstance(before, Range) or not isinstance(after, Range) or before == after:
        return []
    start, end = (before.high, after.high) if after.high > before.high else (before.low, after.low)
    ends = [after.position(start), after.position(end)]
    return [after.at(ends[0] + (ends[1] - ends[0]) * (index + 1) / count) for index in range(count)]


def first_points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Return so many points that cover each dimension evenly, in an order and combination that the seed decides."""
    order = random.Random(seed)
    columns: dict[str, list[Any]] = {}
    for key, dimension in space.dimensions.items():
        shares = [(index + 0.5) / count for index in range(count)]
        order.shuffle(shares)
        columns[key] = [_at(dimension, share) for share in shares]
    return [{key: column[index] for key, column in columns.items()} for index in range(count)]


def _at(dimension: Dimension, share: float) -> Any:
    if isinstance(dimension, Range):
        return dimension.at(share)
    return dimension.values[int(share * len(dimension.values))]


#: trials of each strategy that are asked before one of them is known: so many can run at once
ROUND = 4
#: the share of the trials that cover the space evenly before TPE is asked, and that follows when a range has grown
SHARE = 3


@dataclass(frozen=True)
class TrialRequest:
    """A trial that is to be run."""

    space: Space
    trial: StudyTrial


#: runs trials and yields each with its value, in any order
Perform = Callable[[Sequence[TrialRequest]], Iterable[tuple[TrialRequest, StudyTrial]]]


@dataclass(frozen=True)
class SearchResult:
    """What the search found of one strategy: `edges` are the keys of the best trial's values that lie on one."""

    space: Space
    trials: tuple[StudyTrial, ...]
    best: StudyTrial
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
    ) -> tuple[SearchResult, ...]:
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

    def _grown(self, found: SearchResult, wider: Space) -> list[dict[str, Any]]:
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
                    [
                        TrialRequest(space, trial)
                        for trial in studies[space.strategy].trials[:end]
                        if trial.value is None
                    ]
                    for space in spaces
                ]
            )
        )
        for asked, trial in perform(waiting) if waiting else ():
            studies[asked.space.strategy].tell(trial)


def _alternating(lists: Sequence[Sequence[TrialRequest]]) -> Iterator[TrialRequest]:
    for index in range(max(map(len, lists), default=0)):
        yield from (items[index] for items in lists if index < len(items))


def _searched(space: Space, trials: Sequence[StudyTrial]) -> SearchResult:
    good = [trial for trial in trials if trial.reason is None]
    if not good:
        raise RunFailed(f"{space.strategy}: every trial failed: {trials[0].reason}")
    # Few images give many equal accuracies; of rates that are all too small, the loss says which is the least so.
    best = min(good, key=lambda trial: (-(trial.value or 0.0), trial.loss, trial.number))
    return SearchResult(space, tuple(trials), best, space.edges(best.values))
