"""Search spaces: the learning rate of each strategy, and the options that it declares tunable."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import BadInput, suggestion
from adaptkit.plugins.components import is_fitted, make_checked, options_of, read_dimension, tunable
from adaptkit.plugins.ranges import DECADE, GRAMMAR, Choice, Dimension, Range, around, parse_dimension, shown_range
from adaptkit.settings.request import LR, WITHOUT_GRADIENTS, Arm


def parse_spaces(arms: Sequence[Arm], texts: Sequence[str], problems: list[str]) -> dict[str, dict[str, Dimension]]:
    """Read the texts of `--space`; return the dimensions by strategy and key, and add messages to `problems`."""
    dimensions: dict[str, dict[str, Dimension]] = {arm.strategy: {} for arm in arms}
    common: dict[str, Dimension] = {}
    seen: set[str] = set()
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        prefix, dot, option = key.rpartition(".")
        owners = {arm.strategy: type(arm.checked) for arm in arms}
        try:
            if not (equals and key and value):
                raise BadInput(f"--space {text}: write key=range, as in lr=1e-4..1e-1/log or lora.rank=2,4,8")
            if key in seen:
                raise BadInput(f"--space {key}: is given twice")
            seen.add(key)
            if key == LR:
                common[LR] = _rate_dimension(f"--space {key}", value)
            elif not dot:
                with_option = [name for name, cls in owners.items() if option in options_of(cls)]
                hint = f"; did you mean {with_option[0]}.{option}?" if with_option else suggestion(key, _keys(owners))
                raise BadInput(f"--space {key}: unknown key{hint}")
            elif prefix not in owners:
                raise BadInput(f"--space {key}: strategy {prefix} is not tuned{suggestion(prefix, owners)}")
            elif option in options_of(owners[prefix]):
                dimensions[prefix][option] = read_dimension(owners[prefix], option, text=value, label="--space ")
            elif option == LR and is_fitted(owners[prefix]):
                raise BadInput(f"--space {key}: strategy {prefix} {WITHOUT_GRADIENTS}")
            elif option == LR:
                dimensions[prefix][LR] = _rate_dimension(f"--space {key}", value)
            else:
                raise BadInput(f"--space {key}: unknown option{suggestion(key, _keys(owners))}")
        except BadInput as error:
            problems.extend(error.problems)
    with_rate = {arm.strategy for arm in arms if arm.lr is not None}
    return {name: {**(common if name in with_rate else {}), **own} for name, own in dimensions.items()}


def _keys(owners: Mapping[str, type[Any]]) -> list[str]:
    return [LR, *(f"{name}.{key}" for name, cls in owners.items() for key in (LR, *options_of(cls)))]


def _rate_dimension(title: str, text: str) -> Dimension:
    dimension = parse_dimension(title, text)
    try:
        if isinstance(dimension, Choice):
            dimension = Choice(tuple(float(value) for value in dimension.values))
    except ValueError:
        raise BadInput(f"{title}: a value of {text!r} is not a number; {GRAMMAR}") from None
    values = (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension.values
    for value in values:
        if not (value > 0 and math.isfinite(value)):
            bound = "finite" if value == math.inf else "greater than 0"
            raise BadInput(f"{title}: a learning rate must be {bound}, not {value:g}")
    return dimension


#: factor for extending ranges other than that of the learning rate
DOUBLE = 2.0
#: maximum number of extensions of a range
MOST_GROWTH = 3


@dataclass(frozen=True)
class Space:
    """The search dimensions of one strategy by key (`lr` and names of options), and the arm that they change.

    `first` holds the dimensions before any range was extended. `growth` counts the extensions by key. `stuck` holds the
    reason for each range that cannot be extended.
    """

    arm: Arm
    dimensions: Mapping[str, Dimension]
    first: Mapping[str, Dimension]
    growth: Mapping[str, int] = dataclasses.field(default_factory=dict)
    stuck: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def strategy(self) -> str:
        """Return the name of the strategy."""
        return self.arm.strategy

    @property
    def text(self) -> str:
        """Return the space for display."""
        return written(self.dimensions)

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the values of the arm. A value outside the space is replaced by the nearest value in the space."""
        values: dict[str, Any] = (
            {**self.arm.options, LR: self.arm.lr} if LR not in self.arm.options else dict(self.arm.options)
        )
        return {key: _nearest(dimension, values[key]) for key, dimension in self.dimensions.items()}

    def edges(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the keys whose value is at an end of its range or list, with the side: low or high."""
        sides = {key: dimension.side(values[key]) for key, dimension in self.dimensions.items()}
        return {key: side for key, side in sides.items() if side}

    def grown(self, edges: Mapping[str, str], fits: Callable[[Arm], bool]) -> Space:
        """Return the space with the ranges of these keys extended on these sides, if the option allows it."""
        dimensions, growth, stuck = dict(self.dimensions), dict(self.growth), dict(self.stuck)
        for key, side in edges.items():
            dimension = dimensions[key]
            if isinstance(dimension, Choice):
                stuck[key] = "a list is not extended"
            elif growth.get(key, 0) >= MOST_GROWTH:
                stuck[key] = f"extended {MOST_GROWTH} times"
            else:
                allowed = self._allowed(key, fits)
                wider = dimension.grown(side, DECADE if key == LR else DOUBLE, allowed)
                if wider is None:
                    stuck[key] = "the option does not allow further values"
                else:
                    dimensions[key], growth[key] = wider, growth.get(key, 0) + 1
        return dataclasses.replace(self, dimensions=dimensions, growth=growth, stuck=stuck)

    def _allowed(self, key: str, fits: Callable[[Arm], bool]) -> Callable[[float], bool]:
        def allowed(value: float) -> bool:
            try:
                return (key == LR and value > 0) or fits(changed(self.arm, {key: value}))
            except BadInput:
                return False

        return allowed


def make_spaces(
    arms: Sequence[Arm], texts: Sequence[str], given: Mapping[str, set[str]], fits: Callable[[Arm], bool]
) -> tuple[Space, ...]:
    """Return the space of each arm: the ranges in `texts` (`lora.rank=2,4,8`), and defaults for the other keys.

    `given` holds, for each strategy, the keys with a value from the user, which are not searched by default. Default
    values for which `fits` returns False are left out. Raises BadInput with all problems.
    """
    problems: list[str] = []
    requested = parse_spaces(arms, texts, problems)
    spaces = []
    for arm in arms:
        dimensions: dict[str, Dimension] = {}
        if arm.lr is not None and LR not in given[arm.strategy]:
            dimensions[LR] = around(arm.lr)
        for key, dimension in tunable(type(arm.checked)).items():
            if key not in given[arm.strategy]:
                dimensions[key] = _fitting(arm, key, dimension=dimension, fits=fits)
        dimensions |= requested[arm.strategy]
        fixed = {
            key: dimension.values[0]
            for key, dimension in dimensions.items()
            if isinstance(dimension, Choice) and len(dimension.values) == 1
        }
        searched = {key: dimension for key, dimension in dimensions.items() if key not in fixed}
        try:
            arm = changed(arm, fixed)
            _require_fitting(arm, requested[arm.strategy], fits)
        except BadInput as error:
            problems.extend(error.problems)
        name = arm.strategy
        if not searched and arm.lr is None:
            problems.append(f"{name}: has nothing to tune; it {WITHOUT_GRADIENTS}")
        elif not searched:
            problems.append(f"{name}: nothing is left to tune; name a range, as in --space {name}.lr=LOW..HIGH/log")
        spaces.append(Space(arm, searched, searched))
    if problems:
        raise BadInput(*dict.fromkeys(problems))
    return tuple(spaces)


def first_points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` points that cover each dimension evenly, in random combinations and order from the seed."""
    order = random.Random(seed)
    columns: dict[str, list[Any]] = {}
    for key, dimension in space.dimensions.items():
        positions = [(index + 0.5) / count for index in range(count)]
        order.shuffle(positions)
        columns[key] = [_at(dimension, position) for position in positions]
    return [{key: column[index] for key, column in columns.items()} for index in range(count)]


def _at(dimension: Dimension, position: float) -> Any:
    if isinstance(dimension, Range):
        return dimension.at(position)
    return dimension.values[int(position * len(dimension.values))]


def changed(arm: Arm, values: Mapping[str, Any]) -> Arm:
    """Return the arm with these options and the learning rate `lr`; raise BadInput for invalid values."""
    options = {key: value for key, value in values.items() if key in arm.options}
    instance, checked = make_checked(arm.strategy, type(arm.checked), {**arm.options, **options})
    if LR in arm.options or LR not in values:
        return dataclasses.replace(arm, checked=instance, options=checked)
    return dataclasses.replace(arm, checked=instance, options=checked, lr=float(values[LR]), has_default_lr=False)


def written(dimensions: Mapping[str, Dimension]) -> str:
    """Return dimensions for display: `lr 0.0005..0.05 (log), rank 2..32 (log)`."""
    return ", ".join(f"{key} {shown_range(dimension.text)}" for key, dimension in dimensions.items())


def _fitting(arm: Arm, key: str, *, dimension: Dimension, fits: Callable[[Arm], bool]) -> Dimension:
    """Return a declared list without the values that this model does not allow; a range is not changed."""
    if isinstance(dimension, Range):
        return dimension
    values = tuple(value for value in dimension.values if fits(changed(arm, {key: value})))
    return Choice(values or (arm.options[key],))


def _require_fitting(arm: Arm, dimensions: Mapping[str, Dimension], fits: Callable[[Arm], bool]) -> None:
    """Raise BadInput for requested values that this model does not allow."""
    for key, dimension in dimensions.items():
        ends = (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension.values
        for value in ends:
            if key != LR and not fits(changed(arm, {key: value})):
                raise BadInput(f"--space {arm.strategy}.{key}: this model cannot be adapted with {value}")


def _nearest(dimension: Dimension, value: Any) -> Any:
    """Return the value if it is in the dimension, otherwise the nearest value in it."""
    if isinstance(dimension, Range):
        return min(max(value, dimension.low), dimension.high)
    return value if value in dimension.values else dimension.values[len(dimension.values) // 2]
