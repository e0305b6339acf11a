"""A table as text: what every form of a report shows of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A heading, and whether numbers stand below it."""

    heading: str
    numbers: bool = True


@dataclass(frozen=True)
class Cell:
    """A text; `tone` is what a page says of it in colour too, `colour` an arm's, as in the figures."""

    text: str
    tone: str = ""
    colour: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of which names the row; `note` says what one must know to read them."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
