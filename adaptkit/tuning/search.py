"""Search the space of each strategy with the same number of trials; extend a range if its best value is at an end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.comparison.records import Metric
from adaptkit.errors import BadInput, RunFailed
from adaptkit.experiment.trial_scores import preference
from adaptkit.plugins.ranges import Choice, Dimension, Range
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import LR, Arm
from adaptkit.settings.spaces import Space, first_points
from adaptkit.tuning.study import Study, StudyTrial

#: minimum number of values of the range that fills a grid, and maximum number of values of every other range
FEWEST, MOST = 3, 3


def grid_points(space: Space, trials: int) -> list[dict[str, Any]]:
    """Return exactly `trials` points of a grid over the space.

    The learning rate, or the last range, gets as many values as needed to fill the grid. Raises BadInput if lists have
    too many or too few combinations.
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
        quotient, remainder = divmod(trials, len(points))
        points = [
            {**point, filled: value}
            for number, point in enumerate(points)
            for value in spread(last, quotient + (number < remainder))
        ]
    if len(points) < trials:
        raise BadInput(
            f"{space.strategy}: a grid over {space.text} has {len(points)} points; give --trials {len(points)}"
        )
    return points[:trials]


def spread(dimension: Range, count: int) -> list[float]:
    """Return `count` evenly spaced values on the scale of the range; a single value is in the middle."""
    positions = [0.5] if count == 1 else [index / (count - 1) for index in range(count)]
    return list(dict.fromkeys(dimension.at(position) for position in positions))


def new_part(before: Dimension, after: Dimension, count: int) -> list[float]:
    """Return `count` evenly spaced values in the extension of a range; the last one is its end."""
    if not isinstance(before, Range) or not isinstance(after, Range) or before == after:
        return []
    start, end = (before.high, after.high) if after.high > before.high else (before.low, after.low)
    ends = [after.position(start), after.position(end)]
    return [after.at(ends[0] + (ends[1] - ends[0]) * (index + 1) / count) for index in range(count)]


#: number of trials of each strategy that are proposed together, so that they can run in parallel
ROUND = 4
#: The first 1/SHARE of the trials cover the space evenly before TPE proposes values. An extension adds 1/SHARE more.
SHARE = 3


@dataclass(frozen=True)
class TrialRequest:
    """A trial to run, and its search space."""

    space: Space
    trial: StudyTrial


#: function that runs trials and yields each with its value, in any order
Perform = Callable[[Sequence[TrialRequest]], Iterable[tuple[TrialRequest, StudyTrial]]]


@dataclass(frozen=True)
class SearchResult:
    """The trials of one strategy and the best trial. `edges` maps keys of values at an end to `low` or `high`."""

    space: Space
    trials: tuple[StudyTrial, ...]
    best: StudyTrial
    edges: Mapping[str, str]


@dataclass(frozen=True)
class Search:
    """Search all strategies with the same number of `trials` each, by the method `tpe` or `grid`.

    The best trial is the one with the best score by `metric`.
    """

    spaces: tuple[Space, ...]
    trials: int
    method: str
    seed: int
    metric: Metric

    def __post_init__(self) -> None:
        """Raise BadInput if a grid does not fit the number of trials."""
        if self.method == "grid":
            for space in self.spaces:
                grid_points(space, self.trials)

    def run(
        self,
        studies: Mapping[str, Study],
        *,
        perform: Perform,
        fits: Callable[[Arm], bool],
        notice: Callable[[str], None],
    ) -> tuple[SearchResult, ...]:
        """Run all trials that the studies do not contain yet, and return the results.

        `notice` receives a message when a range is extended. Raises RunFailed if every trial of a strategy failed.
        """
        spaces = list(self.spaces)
        planned = {space.strategy: dict(enumerate(self._first(space))) for space in spaces}
        done, target = 0, self.trials
        while True:
            for start in range(done, target, ROUND):
                self._round(spaces, studies, planned=planned, end=min(start + ROUND, target), perform=perform)
            results = [_result(space, studies[space.strategy].trials[:target], self.metric) for space in spaces]
            wider = [result.space.grown(result.edges, fits) for result in results]
            if not any(new.dimensions != old.dimensions for new, old in zip(wider, spaces, strict=True)):
                return tuple(
                    dataclasses.replace(result, space=space) for result, space in zip(results, wider, strict=True)
                )
            done, target = target, target + self.further
            for result, space in zip(results, wider, strict=True):
                if points := self._new_points(result, space):
                    planned[space.strategy].update(enumerate(points, start=done))
                    searched = result.space.text
                    notice(f"{space.strategy}: the best trial is on the edge of {searched}; searching {space.text}")
            notice(f"every strategy gets {self.further} more trials")
            spaces = wider

    @property
    def further(self) -> int:
        """Return the number of additional trials of every strategy after a range was extended."""
        return max(2, -(-self.trials // SHARE))

    def _first(self, space: Space) -> list[dict[str, Any]]:
        if self.method == "grid":
            return grid_points(space, self.trials)
        count = max(1, self.trials // SHARE)
        points = first_points(space, count, derive_seed(self.seed, f"{space.strategy} first"))
        # The defaults come first; they are often the middle of a range.
        return [space.defaults, *(point for point in points if point != space.defaults)]

    def _new_points(self, result: SearchResult, wider: Space) -> list[dict[str, Any]]:
        """Return points for half of the additional trials: the best point, moved into the extensions of the ranges."""
        half = -(-self.further // 2)
        return [
            {**result.best.values, key: value}
            for key, dimension in wider.dimensions.items()
            for value in new_part(result.space.dimensions[key], dimension, half)
        ][: self.further]

    def _round(
        self,
        spaces: Sequence[Space],
        studies: Mapping[str, Study],
        *,
        planned: Mapping[str, Mapping[int, dict[str, Any]]],
        end: int,
        perform: Perform,
    ) -> None:
        """Propose the trials of each strategy up to this number, then run the trials without a value."""
        # All trials are proposed before any result is added, so that proposals do not depend on timing.
        for space in spaces:
            study = studies[space.strategy]
            for number in range(len(study.trials), end):
                study.ask(space, planned[space.strategy].get(number))
        waiting = list(
            _alternating(
                [
                    [TrialRequest(space, trial) for trial in studies[space.strategy].trials[:end] if not trial.has_run]
                    for space in spaces
                ]
            )
        )
        for request, trial in perform(waiting) if waiting else ():
            studies[request.space.strategy].tell(trial)


def _alternating(lists: Sequence[Sequence[TrialRequest]]) -> Iterator[TrialRequest]:
    for index in range(max(map(len, lists), default=0)):
        yield from (items[index] for items in lists if index < len(items))


def _result(space: Space, trials: Sequence[StudyTrial], metric: Metric) -> SearchResult:
    good = [trial for trial in trials if trial.reason is None]
    if not good:
        raise RunFailed(f"{space.strategy}: every trial failed: {trials[0].reason}")
    best = min(good, key=lambda trial: (*preference(metric, trial.score, trial.loss), trial.number))
    return SearchResult(space, trials=tuple(trials), best=best, edges=space.edges(best.values))
