"""Read the grid of a sweep (`lr=1e-4..1e-2/5log`) and expand it into cells: strategies with one value for each key."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import BadInput, suggestion
from adaptkit.plugins.components import is_fitted, options_of
from adaptkit.plugins.manager import Plugins, PluginWarning
from adaptkit.plugins.ranges import MOST_POINTS, Range, parse_list, require_distinct, with_points
from adaptkit.settings.request import OF_GRADIENTS, Arm, Request
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.settings.settings import setting_keys


def parse_grid(texts: Sequence[str] | Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the values of each key of a grid, in order; raise BadInput with one message for each invalid part."""
    pairs = texts.items() if isinstance(texts, Mapping) else [_pair(text) for text in texts]
    grid: dict[str, tuple[Any, ...]] = {}
    problems: list[str] = []
    for key, value in pairs:
        try:
            if not key or value in ("", None):
                raise BadInput(f"grid {key or value}: write key=values, as in lora.rank=2,4,8")
            if key in grid:
                raise BadInput(f"grid {key}: is given twice")
            grid[key] = parse_values(key, value)
        except BadInput as error:
            problems.extend(error.problems)
    if problems:
        raise BadInput(*problems)
    return grid


def collect_grid(
    texts: Sequence[str] | Mapping[str, Any], layers: Sequence[Layer], problems: list[str]
) -> tuple[dict[str, tuple[Any, ...]], list[Layer]]:
    """Return the grid, and the layers of settings without the grid.

    `texts` take precedence over the section `grid` of config files. Error messages are added to `problems`.
    """
    configured: dict[str, Any] = {}
    rest = []
    for layer in reversed(layers):
        configured |= {
            key.removeprefix("grid."): value for key, value in layer.values.items() if key.startswith("grid.")
        }
        if "grid" in layer.values:
            where = f"{layer.label}: " if layer.label else ""
            problems.append(f"{where}grid: write one line KEY: VALUES below it for each key")
        plain = {key: value for key, value in layer.values.items() if key != "grid" and not key.startswith("grid.")}
        rest.append(Layer(plain, layer.label))
    grid: dict[str, tuple[Any, ...]] = {}
    for source in (configured, texts):
        try:
            grid |= parse_grid(source)
        except BadInput as error:
            problems.extend(error.problems)
    return grid, rest[::-1]


def parse_values(key: str, value: object) -> tuple[Any, ...]:
    """Return the values of one key from a list, a text such as `2,4,8` or `1e-4..1e-2/5log`, or a single value."""
    title = f"grid {key}"
    values: tuple[Any, ...]
    if isinstance(value, str):
        values = parse_list(title, value)
    elif isinstance(value, Sequence):
        values = tuple(value)
        require_distinct(title, values)
    else:
        values = (value,)
    for item in values:
        if isinstance(item, Range):
            raise BadInput(f"{title}: the range {item.text} needs a number of values, as in {with_points(item)}")
    if not values:
        raise BadInput(f"{title}: has no values")
    if len(values) > MOST_POINTS:
        raise BadInput(f"{title}: must have at most {MOST_POINTS} values, got {len(values)}")
    return values


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.strip(), value.strip()


#: settings that a grid cannot vary, and what to do instead
NOT_ON_A_GRID = {
    "seed": "use --seeds",
    "strategy": "name strategies with -s",
    "experiment": "a sweep has one experiment",
    "device": "it does not change results",
    "data_dir": "it does not change results",
    "preset": "vary its settings instead",
}

#: settings that decide whether the base is trained
OF_THE_BASE = ("dataset", "target", "backbone", "weights", "backbone.weights")

#: the largest number of cells of one strategy
MOST_CELLS = 10_000


@dataclass(frozen=True)
class GridCell:
    """One strategy with one combination of values of the grid, which runs once for each seed.

    `values` holds the values from the grid by key; `label` shows them. The request has one arm and all seeds.
    """

    request: Request
    values: Mapping[str, Any]
    label: str

    @property
    def arm(self) -> Arm:
        """Return the cell's strategy with its options and learning rate."""
        return self.request.arms[0]

    @property
    def stage_key(self) -> str:
        """Return a key that is equal for cells with the same base, images and views."""
        return json.dumps(self.request.stage_params(), sort_keys=True, default=str)


def expand(
    layers: Sequence[Layer], grid: Mapping[str, Sequence[Any]], plugins: Plugins, found_before: Sequence[str] = ()
) -> tuple[GridCell, ...]:
    """Return all cells of a grid over layers of settings; raise BadInput with all problems."""
    problems: list[str] = []
    try:
        strategies = list(resolve([_first_base(grid), *layers], plugins, found_before).settings.strategy)
    except BadInput as error:
        problems.extend(error.problems)
        strategies = _known_strategies(layers, plugins)
    axes = _axes(grid, strategies, plugins=plugins, problems=problems)
    problems += _without_effect(axes, strategies, plugins)
    if problems:
        raise BadInput(*problems)
    _require_few(axes, strategies)
    cells: list[GridCell] = []
    for strategy in strategies:
        own_axes = {key: values for key, values in axes.items() if _owner(key, strategies) in (None, strategy)}
        lower = [Layer(_without_others(layer.values, strategy, strategies), layer.label) for layer in layers]
        for point in itertools.product(*own_axes.values()):
            values = dict(zip(own_axes, point, strict=True))
            top = Layer({"strategy": [strategy], **values})
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", PluginWarning)  # already shown by the first call, above
                    request = resolve([top, *lower], plugins)
            except BadInput as error:
                problems.extend(error.problems)
            else:
                cells.append(GridCell(request, values, _label(request.arms[0], values)))
    if problems:
        raise BadInput(*dict.fromkeys(problems))
    _require_distinct(cells)
    return tuple(cells)


def _without_effect(axes: Mapping[str, Sequence[Any]], strategies: Sequence[str], plugins: Plugins) -> list[str]:
    """Return a problem for each setting of gradient descent that a strategy without it does not use."""
    fitted = [name for name in strategies if is_fitted(plugins.components["strategy"][name].cls)]
    if not fitted:
        return []
    names = " and ".join(fitted)
    return [
        f"grid {key}: has no effect on {names}, which use{'s' * (len(fitted) == 1)} no gradient descent; leave out "
        f"{' '.join(f'-s {name}' for name in fitted)}"
        for key in axes
        if key in OF_GRADIENTS
    ]


def _first_base(grid: Mapping[str, Sequence[Any]]) -> Layer:
    """Return the first value of each key of the grid that decides about the base."""
    return Layer({key: grid[key][0] for key in OF_THE_BASE if key in grid})


def _require_few(axes: Mapping[str, Sequence[Any]], strategies: Sequence[str]) -> None:
    """Raise BadInput for a grid that is too large for memory."""
    sizes = [
        math.prod(len(values) for key, values in axes.items() if _owner(key, strategies) in (None, strategy))
        for strategy in strategies
    ]
    most = max(sizes, default=0)
    if most > MOST_CELLS:
        raise BadInput(f"the grid has {most:,} settings of one strategy; one sweep runs at most {MOST_CELLS:,}")


def _require_distinct(cells: Sequence[GridCell]) -> None:
    """Raise BadInput for two cells with equal settings, such as `rank=2` and `rank=02`."""
    first: dict[str, GridCell] = {}
    problems = []
    for cell in cells:
        seed = cell.request.settings.seed[0]
        key = json.dumps(cell.request.run_params(cell.arm, seed), sort_keys=True, default=str)
        if key in first:
            problems.append(f"two settings of the grid are the same: {first[key].label} and {cell.label}")
        first.setdefault(key, cell)
    if problems:
        raise BadInput(*problems)


def _known_strategies(layers: Sequence[Layer], plugins: Plugins) -> list[str]:
    """Return the requested strategies that exist, so that the grid can be checked even if other settings are wrong."""
    requested = next((layer.values["strategy"] for layer in layers if "strategy" in layer.values), ())
    names = requested.split(",") if isinstance(requested, str) else requested
    return [name for name in names if name in plugins.components["strategy"]]


def _axes(
    grid: Mapping[str, Sequence[Any]], strategies: Sequence[str], *, plugins: Plugins, problems: list[str]
) -> dict[str, Sequence[Any]]:
    """Return the grid with each option key prefixed by its strategy; add a problem for keys that cannot vary."""
    axes: dict[str, Sequence[Any]] = {}
    settings = setting_keys()
    for key, values in grid.items():
        prefix, _, rest = key.partition(".")
        options = {name: options_of(plugins.components["strategy"][name]) for name in strategies}
        owners = [name for name in strategies if (rest or key) in options[name]]
        is_option = prefix in strategies and rest in options[prefix]
        if key in NOT_ON_A_GRID:
            problems.append(f"grid {key}: {NOT_ON_A_GRID[key]}")
        elif key in settings or key in ("shift", "weights") or (rest and prefix in ("shift", "backbone")) or is_option:
            axes[key] = values
        elif prefix in plugins.components["strategy"] and rest and prefix not in strategies:
            problems.append(f"grid {key}: strategy {prefix} is not run")
        elif (not rest or prefix == "strategy") and len(owners) == 1:
            full = f"{owners[0]}.{rest or key}"
            if full in grid:
                problems.append(f"grid {key}: is the same as {full}, which also has values; give one of them")
            axes[full] = values
        elif (not rest or prefix == "strategy") and owners:
            written = " or ".join(f"{name}.{rest or key}" for name in owners)
            problems.append(f"grid {key}: several strategies have this option; write {written}")
        else:
            dotted = {option: f"{name}.{option}" for name in strategies for option in options[name]}
            near = dotted | {name: name for name in (*dotted.values(), *settings)}
            hint = suggestion(key, near)
            meant = [f"; did you mean {near[name]!r}?" for name in near if hint == f"; did you mean {name!r}?"]
            problems.append(f"grid {key}: unknown key{''.join(meant)}")
    return axes


def _owner(key: str, strategies: Sequence[str]) -> str | None:
    """Return the strategy that has this option; None for a setting of all strategies."""
    prefix, dot, _ = key.partition(".")
    return prefix if dot and prefix in strategies else None


def _without_others(values: Mapping[str, Any], strategy: str, strategies: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if _owner(key, strategies) in (None, strategy)}


def _label(arm: Arm, values: Mapping[str, Any]) -> str:
    """Return the label of a cell: the strategy, options that differ from their defaults, and values from the grid."""
    varied = {key.removeprefix(f"{arm.strategy}."): value for key, value in values.items()}
    others = [word for word in arm.label.split(" ")[1:] if word.partition("=")[0] not in varied]
    return " ".join([arm.strategy, *others, *(f"{key}={shown(value)}" for key, value in varied.items())])


def shown(value: Any) -> str:
    """Return a value of a grid as text: numbers in at most six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def stages_of(cells: Sequence[GridCell]) -> Iterator[tuple[Request, list[GridCell]]]:
    """Group cells with the same base, images and views; yield a request with all arms of a group, and its cells."""
    by_key: dict[str, list[GridCell]] = {}
    for cell in cells:
        by_key.setdefault(cell.stage_key, []).append(cell)
    for members in by_key.values():
        yield members[0].request.with_arms([cell.arm for cell in members]), members
