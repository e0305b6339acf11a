"""Read a grid: which values of which settings and options a sweep tries, as in `lr=1e-4..1e-2/5log`."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import BadInput, suggestion
from adaptkit.plugins.manager import Plugins, PluginWarning
from adaptkit.plugins.offers import options_of
from adaptkit.settings.request import Arm, Request
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.settings.settings import setting_keys

#: more points of one axis than anybody waits for
MOST_POINTS = 1000
GRAMMAR = "write a list as 2,4,8, or 1e-4..1e-2/5log for 5 values, evenly spaced on a log scale (without log: evenly)"


def parse_grid(texts: Sequence[str] | Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the values of each key of a grid, in order; raise BadInput with a line for each part that is none."""
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
    """Return the grid that is given, over those that config files hold under `grid`, and the layers without them.

    What cannot be read is noted among the problems.
    """
    below: dict[str, Any] = {}
    rest = []
    for layer in reversed(layers):
        below |= {key[5:]: value for key, value in layer.values.items() if key.startswith("grid.")}
        if "grid" in layer.values:
            where = f"{layer.label}: " if layer.label else ""
            problems.append(f"{where}grid: write a line KEY: VALUES below it for each")
        plain = {key: value for key, value in layer.values.items() if key != "grid" and not key.startswith("grid.")}
        rest.append(Layer(plain, layer.label))
    grid: dict[str, tuple[Any, ...]] = {}
    for given in (below, texts):
        try:
            grid |= parse_grid(given)
        except BadInput as error:
            problems.extend(error.problems)
    return grid, rest[::-1]


def parse_values(key: str, value: object) -> tuple[Any, ...]:
    """Return the values that a list, or a text such as `2,4,8` or `1e-4..1e-2/5log`, stands for."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        values = tuple(value)
    elif isinstance(value, str):
        values = tuple(point for part in value.split(",") for point in _points(key, part.strip()))
    else:
        values = (value,)
    if not values:
        raise BadInput(f"grid {key}: has no values")
    if len(values) > MOST_POINTS:
        raise BadInput(f"grid {key}: has more than {MOST_POINTS} values")
    plain = [_number(point) for point in values]
    repeated = [point for index, point in enumerate(values) if plain[index] in plain[:index]]
    if repeated:
        raise BadInput(f"grid {key}: {repeated[0]} is named twice")
    return values


def _number(point: Any) -> Any:
    """Return the number that a text is, however it is written; anything else as it is."""
    try:
        return float(point) if isinstance(point, str) else point
    except ValueError:
        return point


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.strip(), value.strip()


def _points(key: str, part: str) -> list[Any]:
    """Return the points of one part of a list: itself, or those of a range."""
    if not part:
        raise BadInput(f"grid {key}: a value is empty; {GRAMMAR}")
    if ".." not in part:
        return [part]
    ends, slash, steps = part.partition("/")
    is_log = steps.endswith("log")
    first, _, last = ends.partition("..")
    try:
        low, high = float(first), float(last)
        count = int(steps.removesuffix("log")) if slash else 0
    except ValueError:
        raise BadInput(f"grid {key}: {part!r} is no range; {GRAMMAR}") from None
    if not 2 <= count <= MOST_POINTS:
        raise BadInput(f"grid {key}: {part!r} needs a number of values from 2 to {MOST_POINTS}; {GRAMMAR}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInput(f"grid {key}: {part!r} must rise from a number to a greater one")
    if is_log and low <= 0:
        raise BadInput(f"grid {key}: {part!r} must begin above 0 on a log scale")
    points = [_rounded(low, high, index / (count - 1), is_log) for index in range(count)]
    if not all(map(math.isfinite, points)):
        raise BadInput(f"grid {key}: {part!r} is too wide to be divided")
    return points


def _rounded(low: float, high: float, share: float, is_log: bool) -> float:
    """Return the point at a share of the way, in as many digits as people write: 0.000316228, not 17 of them."""
    exact = low * (high / low) ** share if is_log else low + share * (high - low)
    return float(f"{exact:.6g}")


#: settings that no grid may vary, and what to use instead
NOT_ON_A_GRID = {
    "seed": "use --seeds",
    "strategy": "name strategies with -s",
    "experiment": "a sweep has one",
    "device": "it decides no result",
    "data_dir": "it decides no result",
    "preset": "name its settings instead",
}

#: settings of one strategy
MOST_CELLS = 10_000


@dataclass(frozen=True)
class GridCell:
    """One strategy with one combination of the grid's values: what the seeds replicate.

    `values` are those that the grid gave it, by key; `label` shows them. The request has one arm and every seed.
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
        """Return what cells on the same base, images and views have in common."""
        return json.dumps(self.request.stage_params(), sort_keys=True, default=str)


def expand(
    layers: Sequence[Layer], grid: Mapping[str, Sequence[Any]], plugins: Plugins, found_before: Sequence[str] = ()
) -> tuple[GridCell, ...]:
    """Return every cell of a grid over layers of settings; raise BadInput with all that is wrong with them."""
    problems: list[str] = []
    try:
        strategies = list(resolve(layers, plugins, found_before).settings.strategy)
    except BadInput as error:
        problems.extend(error.problems)
        strategies = _named(layers, plugins)
    axes = _axes(grid, strategies, plugins, problems)
    if problems:
        raise BadInput(*problems)
    _require_few(axes, strategies)
    cells: list[GridCell] = []
    for strategy in strategies:
        own = {key: values for key, values in axes.items() if _owner(key, strategies) in (None, strategy)}
        below = [Layer(_without_others(layer.values, strategy, strategies), layer.label) for layer in layers]
        for point in itertools.product(*own.values()):
            values = dict(zip(own, point, strict=True))
            top = Layer({"strategy": [strategy], **values})
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", PluginWarning)  # told once, above
                    request = resolve([top, *below], plugins)
            except BadInput as error:
                problems.extend(error.problems)
            else:
                cells.append(GridCell(request, values, _label(request.arms[0], values)))
    if problems:
        raise BadInput(*dict.fromkeys(problems))
    _require_distinct(cells)
    return tuple(cells)


def _require_few(axes: Mapping[str, Sequence[Any]], strategies: Sequence[str]) -> None:
    """Raise BadInput for a grid that nobody waits for: making its cells would take all memory."""
    sizes = [
        math.prod(len(values) for key, values in axes.items() if _owner(key, strategies) in (None, strategy))
        for strategy in strategies
    ]
    most = max(sizes, default=0)
    if most > MOST_CELLS:
        raise BadInput(f"the grid has {most:,} settings of one strategy: at most {MOST_CELLS:,} are run in one sweep")


def _require_distinct(cells: Sequence[GridCell]) -> None:
    """Raise BadInput for two cells that are the same: `rank=2` and `rank=02`."""
    found: dict[str, GridCell] = {}
    problems = []
    for cell in cells:
        seed = cell.request.settings.seed[0]
        same = json.dumps(cell.request.run_params(cell.arm, seed), sort_keys=True, default=str)
        if same in found:
            problems.append(f"the grid names one setting twice: {found[same].label} and {cell.label}")
        found.setdefault(same, cell)
    if problems:
        raise BadInput(*problems)


def _named(layers: Sequence[Layer], plugins: Plugins) -> list[str]:
    """Return the strategies that are named and known, where something else is wrong with the settings."""
    named = next((layer.values["strategy"] for layer in layers if "strategy" in layer.values), ())
    names = named.split(",") if isinstance(named, str) else named
    return [name for name in names if name in plugins.offers["strategy"]]


def _axes(
    grid: Mapping[str, Sequence[Any]], strategies: Sequence[str], plugins: Plugins, problems: list[str]
) -> dict[str, Sequence[Any]]:
    """Return the grid with each option under its strategy's name; note keys that cannot be varied."""
    axes: dict[str, Sequence[Any]] = {}
    known = setting_keys()
    for key, values in grid.items():
        prefix, _, rest = key.partition(".")
        options = {name: options_of(plugins.offers["strategy"][name]) for name in strategies}
        owners = [name for name in strategies if (rest or key) in options[name]]
        is_own = prefix in strategies and rest in options[prefix]
        if key in NOT_ON_A_GRID:
            problems.append(f"grid {key}: {NOT_ON_A_GRID[key]}")
        elif key in known or key in ("shift", "weights") or (rest and prefix in ("shift", "backbone")) or is_own:
            axes[key] = values
        elif prefix in plugins.offers["strategy"] and rest and prefix not in strategies:
            problems.append(f"grid {key}: strategy {prefix} is not run")
        elif (not rest or prefix == "strategy") and len(owners) == 1:
            full = f"{owners[0]}.{rest or key}"
            if full in grid:
                problems.append(f"grid {key}: is {full}, which has values of its own")
            axes[full] = values
        elif (not rest or prefix == "strategy") and owners:
            written = " or ".join(f"{name}.{rest or key}" for name in owners)
            problems.append(f"grid {key}: several strategies have it; write {written}")
        else:
            near = {*known, *(f"{name}.{option}" for name in strategies for option in options[name])}
            hint = suggestion(key, near)
            problems.append(f"grid {key}: unknown key{hint if hint.startswith('; did') else ''}")
    return axes


def _owner(key: str, strategies: Sequence[str]) -> str | None:
    """Return the strategy whose option a key is; None for a setting of all."""
    prefix, dot, _ = key.partition(".")
    return prefix if dot and prefix in strategies else None


def _without_others(values: Mapping[str, Any], strategy: str, strategies: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if _owner(key, strategies) in (None, strategy)}


def _label(arm: Arm, values: Mapping[str, Any]) -> str:
    """Name a cell: the strategy, its options that are not at their defaults, and all that the grid gave it."""
    varied = {key.removeprefix(f"{arm.strategy}."): value for key, value in values.items()}
    others = [word for word in arm.label.split(" ")[1:] if word.partition("=")[0] not in varied]
    return " ".join([arm.strategy, *others, *(f"{key}={shown(value)}" for key, value in varied.items())])


def shown(value: Any) -> str:
    """Return a value of a grid as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def stages_of(cells: Sequence[GridCell]) -> Iterator[tuple[Request, list[GridCell]]]:
    """Yield, for cells on the same base, images and views, a request with all their arms, and these cells."""
    by_key: dict[str, list[GridCell]] = {}
    for cell in cells:
        by_key.setdefault(cell.stage_key, []).append(cell)
    for members in by_key.values():
        yield members[0].request.with_arms([cell.arm for cell in members]), members
