"""Colours, markers and line styles: one colour a strategy in every figure and report, told apart by every eye.

Okabe and Ito's colours come first, then ones that stay at a distance of at least 13 (CIE L*a*b*) from all others also
under simulated protanopia, deuteranopia and tritanopia (Machado et al., 2009).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_hex, to_rgb

from adaptkit.comparison import ArmResult

#: the curves of a single run
TRAIN, CLEAN, SHIFTED = "#999999", "#0072B2", "#D55E00"
#: the base as it is, and what is said beside the data
ZERO_SHOT, QUIET, INK = "#767676", "#6b6b6b", "#222222"
DASHED = (0, (6, 4))

#: of the built-in strategies
FIXED = {"full": "#0072B2", "head": "#009E73", "lora": "#D55E00", "scratch": "#CC79A7"}
OTHERS = ("#E69F00", "#56B4E9", "#000000", "#332288", "#661100", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (8, 1.5, 1, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Mark:
    """How an arm is drawn: matplotlib's colour, marker and line style."""

    colour: str
    marker: str
    line: Any


def assign_colours(strategies: Iterable[str]) -> dict[str, str]:
    """Return a colour for each strategy.

    A strategy without a fixed colour takes the one that its name's checksum points at, or the next free one, so that it
    rarely changes colour when another strategy joins. Beyond ten strategies colours repeat.
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
    """Return each arm's mark, by name; arms of one colour differ by marker and line style, in the order of names."""
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
    """Return a sort key by which `rank=4` comes before `rank=16`."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isascii() and part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
