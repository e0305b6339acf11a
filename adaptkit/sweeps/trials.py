"""Make trials of a grid: each strategy crosses the values that concern it, and every seed runs each of them."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.config import setting_keys
from adaptkit.errors import BadInput, suggestion
from adaptkit.offers import options_of
from adaptkit.plugins import Plugins, PluginWarning
from adaptkit.request import Arm, Request
from adaptkit.resolve import Layer, resolve

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
class Cell:
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
) -> tuple[Cell, ...]:
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
    cells: list[Cell] = []
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
                cells.append(Cell(request, values, _label(request.arms[0], values)))
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


def _require_distinct(cells: Sequence[Cell]) -> None:
    """Raise BadInput for two cells that are the same: `rank=2` and `rank=02`."""
    found: dict[str, Cell] = {}
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


def stages_of(cells: Sequence[Cell]) -> Iterator[tuple[Request, list[Cell]]]:
    """Yield, for cells on the same base, images and views, a request with all their arms, and these cells."""
    by_key: dict[str, list[Cell]] = {}
    for cell in cells:
        by_key.setdefault(cell.stage_key, []).append(cell)
    for members in by_key.values():
        yield members[0].request.with_arms([cell.arm for cell in members]), members
