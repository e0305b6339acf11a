"""Shared parts of figures: style, colours and markers, names, notes and legends, axes, and writing to files."""

from __future__ import annotations

import math
import re
import textwrap
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from adaptkit.comparison.metrics import of_severities
from adaptkit.comparison.records import ArmResult, Estimate, Metric

#: colours of the curves of a single run
TRAIN, SOURCE, TARGET = "#999999", "#0072B2", "#D55E00"
#: colours of the zero-shot base, of secondary text and of text
ZERO_SHOT, QUIET, INK = "#767676", "#6b6b6b", "#222222"
DASHED = (0, (6, 4))

#: colours of the built-in strategies, and of all others
FIXED = {"full": "#0072B2", "head": "#009E73", "lora": "#D55E00", "scratch": "#CC79A7"}
OTHERS = ("#E69F00", "#56B4E9", "#000000", "#332288", "#661100", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (8, 1.5, 1, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Mark:
    """Colour, marker and line style of an arm, as matplotlib takes them."""

    colour: str
    marker: str
    line: Any


def assign_colours(strategies: Iterable[str]) -> dict[str, str]:
    """Return a colour for each strategy.

    The checksum of the name selects the colour of a strategy without a fixed colour, or the next free colour. Thus, its
    colour rarely changes when other strategies are added. Beyond ten strategies, colours repeat.
    """
    names = sorted(set(strategies))
    colours = {name: FIXED[name] for name in names if name in FIXED}
    uses = Counter({colour: 0 for colour in OTHERS})
    for name in names:
        if name not in FIXED:
            start = zlib.crc32(name.encode("utf-8", "replace")) % len(OTHERS)
            order = OTHERS[start:] + OTHERS[:start]
            colours[name] = min(order, key=uses.__getitem__)
            uses[colours[name]] += 1
    return colours


def assign_marks(arms: Sequence[ArmResult], colours: Mapping[str, str]) -> dict[str, Mark]:
    """Return the mark of each arm by name; arms of one colour differ in marker and line style."""
    taken: Counter[str] = Counter()
    marks = {}
    for arm in sorted(arms, key=lambda arm: _natural(arm.name)):
        colour = colours[arm.strategy]
        index = taken[colour]
        taken[colour] += 1
        marks[arm.name] = Mark(colour, MARKERS[index % len(MARKERS)], LINES[index % len(LINES)])
    return marks


def darker(colour: str) -> str:
    """Return a colour dark enough for small text on white."""
    return to_hex(tuple(0.68 * part for part in to_rgb(colour)))  # type: ignore[arg-type]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts `rank=4` before `rank=16`."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isascii() and part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


DPI = 120
LONGEST_NAME = 34
#: maximum number of arms that are all labelled
CROWD = 12
#: `text.parse_math`: `$` in names is a dollar sign; `svg.fonttype`: text stays text, for search and screen readers
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8a8a",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "lines.markeredgewidth": 1.4,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "xtick.color": "#555555",
    "xtick.labelcolor": INK,
    "ytick.color": "#555555",
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Drawing:
    """A figure with the stem of its file names, its title, and `alt`, a description of its content."""

    stem: str
    title: str
    alt: str
    figure: Figure = field(repr=False)


@contextmanager
def own_style(**more: Any) -> Iterator[None]:
    """Draw in this module's style; the user's matplotlib settings are ignored and restored afterwards."""
    with style.context(["default", STYLE | more]), any_characters():
        yield


@contextmanager
def any_characters() -> Iterator[None]:
    """Suppress the warnings about characters that no font has; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from", category=UserWarning)
        yield


def save_drawing(drawing: Drawing, folder: Path) -> tuple[Path, Path]:
    """Write `<stem>.png` and `<stem>.svg`, byte for byte reproducible, and return their paths."""
    png, svg = folder / f"{drawing.stem}.png", folder / f"{drawing.stem}.svg"
    described = {"Title": drawing.title, "Description": drawing.alt, "Date": None, "Creator": None}
    figure = drawing.figure
    with own_style(**{"svg.hashsalt": drawing.stem}):
        # Figure.savefig would draw the figure again before each file, to compute a layout that is already known.
        try:
            FigureCanvasSVG(figure).print_svg(svg, metadata=described)  # type: ignore[no-untyped-call]
        finally:
            figure.set_dpi(DPI)
            canvas = FigureCanvasAgg(figure)
        canvas.print_png(png)  # type: ignore[no-untyped-call]
    return png, svg


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure with a title; width and height are in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.015, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure


def write_note(figure: Figure, note: str) -> None:
    """Write a note on how to read the figure below it."""
    text = textwrap.fill(note, int(figure.get_figwidth() * 15.5))
    figure.supxlabel(text, x=0.015, ha="left", fontsize=8, color=QUIET, linespacing=1.35)


def set_legend(parent: Axes | Figure, handles: Sequence[Artist], names: Sequence[str], **place: Any) -> None:
    """Add a legend. Unlike matplotlib's legend, it also shows names that begin with an underscore."""
    legend = parent.legend(handles, [" "] * len(names), **place)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(shown(name))


def settle(figure: Figure) -> None:
    """Compute the layout once and keep it."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")


def shown(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name as one printable line; in long names, `…` replaces the middle."""
    line = "".join(
        sign if sign.isprintable() else " " if sign.isspace() else "\N{REPLACEMENT CHARACTER}" for sign in name
    )
    if len(line) <= longest:
        return line
    tail = (longest - 1) // 3
    return f"{line[: longest - 1 - tail]}…{line[-tail:]}"


def listed(names: list[str], most: int = 12) -> str:
    """Return names or phrases as a list in a sentence. For many, return the first ones and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def level_label(metric: Metric) -> str:
    """Return an axis label for values of a metric."""
    is_level = metric.key.endswith(("accuracy", "fraction")) or of_severities(metric.key)
    return _with_unit(metric.label, "%" if is_level else metric.unit)


def difference_label(metric: Metric) -> str:
    """Return an axis label for differences of a metric, in points for accuracies."""
    return _with_unit(f"difference in {metric.label}", metric.unit)


def _with_unit(label: str, unit: str) -> str:
    return f"{shown(label, 60)} ({unit})" if unit else shown(label, 60)


def draw_line(axes: Axes, xs: Sequence[float], ys: Sequence[Estimate], *, mark: Mark, shade: float) -> None:
    """Draw estimates, in the unit of the axis, as a line of means with a band of their 95 % intervals."""
    axes.plot(
        xs,
        [y.mean for y in ys],
        color=mark.colour,
        linestyle=mark.line,
        marker=mark.marker,
        markersize=4,
        markevery=max(1, len(xs) // 10),
        linewidth=1.6,
    )
    bounds = [(y.low, y.high) for y in ys if y.low is not None and y.high is not None]
    if bounds:
        lows, highs = zip(*bounds, strict=True)
        axes.fill_between(xs, lows, highs, color=mark.colour, alpha=shade, linewidth=0)


def line_handle(mark: Mark) -> Line2D:
    """Return the legend entry of a line drawn by `draw_line`."""
    return Line2D([], [], color=mark.colour, linestyle=mark.line, marker=mark.marker, markersize=4, linewidth=1.6)


def draw_points(
    axes: Axes, points: Sequence[tuple[Estimate, Estimate]], *, marks: Sequence[Mark], hollow: Sequence[bool]
) -> None:
    """Draw pairs of estimates, in the units of the axes, as points with 95 % intervals."""
    bars = [(bar, mark.colour) for point, mark in zip(points, marks, strict=True) for bar in intervals(*point)]
    # Thick bars would hide points if there are many.
    width = 1.3 if len(points) <= CROWD else 0.8
    lines = LineCollection(
        [bar for bar, _ in bars], colors=[colour for _, colour in bars], linewidths=width, zorder=2.5
    )
    axes.add_collection(lines)
    for (x, y), mark, empty in zip(points, marks, hollow, strict=True):
        fill = "white" if empty else mark.colour
        axes.plot([x.mean], [y.mean], mark.marker, color=mark.colour, markerfacecolor=fill, markersize=7, zorder=3)


def intervals(x: Estimate, y: Estimate) -> list[list[tuple[float, float]]]:
    """Return the ends of the 95 % intervals of a point: none, one or two lines."""
    across = [] if x.low is None or x.high is None else [[(x.low, y.mean), (x.high, y.mean)]]
    up = [] if y.low is None or y.high is None else [[(x.mean, y.low), (x.mean, y.high)]]
    return [*across, *up]


def scaled(estimate: Estimate, scale: float) -> Estimate:
    """Return an estimate in another unit."""
    mean, sd, low, high = (
        None if value is None else scale * value for value in (estimate.mean, estimate.sd, estimate.low, estimate.high)
    )
    assert mean is not None
    return Estimate(mean, estimate.n, sd=sd, low=low, high=high)


def use_parameter_axis(axes: Axes, counts: list[int]) -> None:
    """Make the x axis a logarithmic axis of trainable parameters, at least one and a half decades wide."""
    low, high = math.log10(min(counts)), math.log10(max(counts))
    padding = max(0.12 * (high - low), 0.25, (1.5 - (high - low)) / 2)
    axes.set_xscale("log")
    axes.set_xlim(10 ** (low - padding), 10 ** (high + padding))
    if high - low + 2 * padding < 2.5:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.set_xlabel("trainable parameters")


def short_count(value: float) -> str:
    """Return a count as a short tick label: 300, 3 k, 30 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def seeds_note(counts: Sequence[int]) -> str:
    """Return a note on the number of runs of the means."""
    return f"{_runs(counts)} with 95 % interval"


def band_note(counts: Sequence[int]) -> str:
    """Return a note on the number of runs for lines with a band."""
    return f"{_runs(counts)}; band: 95 % interval"


def _runs(counts: Sequence[int]) -> str:
    return "one run" if max(counts) == 1 else f"mean over {_range(counts)} runs"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
