"""Figures of single classes: F1 per class, and differences between confusion matrices."""

from __future__ import annotations

import itertools
import math

import numpy
from matplotlib.axes import Axes

from adaptkit.comparison.classes import confusion_of, select_confused_classes, select_differing_classes
from adaptkit.comparison.findings import Comparison
from adaptkit.reports.figures.style import Drawing, listed, new_figure, settle, shown, write_note

#: F1: maximum number of arms and of classes; number of classes to select if there are more; maximum with text in cells
MOST_ROWS, MOST_CLASSES, MOST_SELECTED, MOST_WRITTEN = 40, 40, 20, 12
#: confusions: maximum number of classes; number of classes to select if there are more; maximum number of panels
MOST_CONFUSED, MOST_CONFUSING, MOST_OTHERS = 30, 15, 6
#: maximum number of classes for drawing confusions, because a matrix of more would have millions of cells
MOST_CELLS = 2_000


def draw_class_f1(comparison: Comparison) -> Drawing:
    """Draw F1 on the target test set as a heat map of arms by classes.

    If there are many classes, draw the classes on which the arms differ most.
    """
    arms, count = comparison.arms[:MOST_ROWS], len(comparison.classes)
    every = numpy.array([arm.class_f1 for arm in arms])
    chosen = list(range(count)) if count <= MOST_CLASSES else select_differing_classes(arms, MOST_SELECTED)
    selection = f"the {len(chosen)} of {count:,} classes " + (
        "on which the strategies differ most" if len(arms) > 1 else "of lowest F1"
    )
    classes, values = tuple(comparison.classes[index] for index in chosen), every[:, chosen]
    title = f"F1 of {'each class' if len(chosen) == count else 'classes'} on the target test set"
    width = min(11.0, 3.4 + 0.48 * len(classes))
    height = 1.6 + 0.07 * _longest(classes) + (0.3 if len(arms) <= MOST_WRITTEN else 0.2) * len(arms)
    figure = new_figure(max(5.6, width), height, title)
    axes = figure.subplots()
    lowest = min(0.9, math.floor(10 * float(values.min())) / 10)
    image = axes.imshow(values, cmap="Blues", vmin=lowest, vmax=1, aspect="auto", interpolation="none")
    figure.colorbar(image, ax=axes, label="F1", fraction=0.05, pad=0.02, shrink=min(1.0, 3.5 / height))
    axes.set_yticks(range(len(arms)), [shown(arm.name) for arm in arms])
    _name_classes(axes, classes)
    axes.set_xlabel("class")
    _clear(axes)
    if max(len(arms), len(classes)) <= MOST_WRITTEN:
        for row, column in numpy.ndindex(values.shape):
            colour = "white" if values[row, column] > lowest + 0.6 * (1 - lowest) else "black"
            axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
    left_out = (
        f"; the best {len(arms)} of {len(comparison.arms)} strategies" if len(arms) < len(comparison.arms) else ""
    )
    write_note(
        figure,
        f"{_seeds(comparison)}; best strategy first{left_out}" + (f"; {selection}" if len(chosen) < count else ""),
    )
    settle(figure)
    weakest = listed(
        [
            f"{shown(arm.name)} {shown(comparison.classes[scores.argmin()])} ({scores.min():.2f})"
            for arm, scores in zip(arms, every, strict=True)
        ]
    )
    about = "Heat map of strategies by classes" + (f", {selection}" if len(chosen) < count else "")
    return Drawing(
        stem="class_f1", title=title, alt=f"{about}. Weakest class of each strategy: {weakest}.", figure=figure
    )


def draw_confusion_differences(comparison: Comparison) -> Drawing | None:
    """Draw the confusion of each other arm minus that of the best, in points of the true class.

    If there are many classes, draw those between which the arms differ most. Returns None for a single arm.
    """
    best, *others = comparison.arms
    classes, count = comparison.classes, len(comparison.classes)
    if not others or count > MOST_CELLS:
        return None
    arms, reference = others[:MOST_OTHERS], confusion_of(best)
    differences = [100 * (confusion_of(arm) - reference) for arm in arms]
    selection = ""
    if count > MOST_CONFUSED:
        chosen = select_confused_classes(differences, MOST_CONFUSING)
        classes = tuple(classes[index] for index in chosen)
        differences = [difference[numpy.ix_(chosen, chosen)] for difference in differences]
        selection = f"; the {len(chosen)} of {count:,} classes between which the strategies differ most"
    limit = max(5.0, float(numpy.abs(differences).max()))
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    side = max(2.5, 0.13 * len(classes))
    names = 0.07 * _longest(classes)
    title = f"Confusions on the target test set: the others minus {shown(best.name)}"
    figure = new_figure(max(5.4, side * columns + 1.2 + names), side * rows + 1.2 + names, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    bottom = list(grid.flat[len(arms) - columns : len(arms)])
    for axes, arm, difference in itertools.zip_longest(grid.flat, arms, differences):
        if arm is None:
            axes.set_visible(False)
            continue
        image = axes.imshow(difference, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="none")
        axes.set_title(shown(arm.name, 30), fontsize=9)
        _name_classes(axes, classes if axes in bottom else (), size=6.5)
        _name_classes(axes, classes if axes in grid[:, 0] else (), size=6.5, vertical=True)
        _clear(axes)
    figure.colorbar(image, ax=grid, label="points of the true class", shrink=0.8, pad=0.02)
    for axes in grid[:, 0]:
        axes.set_ylabel("true")
    for axes in bottom:
        axes.set_xlabel("predicted")
    left_out = f"; the next {len(arms)} of {len(others)} other strategies" if len(arms) < len(others) else ""
    write_note(
        figure,
        f"orange: predicted more often as this class than by {shown(best.name)}; purple: less often; "
        f"on the diagonal, purple is worse{left_out}{selection}",
    )
    settle(figure)
    largest = listed(
        [_largest(shown(arm.name), matrix, classes) for arm, matrix in zip(arms, differences, strict=True)]
    )
    return Drawing(
        stem="confusion_differences",
        title=title,
        alt=f"Matrices of true by predicted class. Largest difference of each: {largest}.",
        figure=figure,
    )


def _largest(name: str, difference: numpy.ndarray, classes: tuple[str, ...]) -> str:
    row, column = numpy.unravel_index(numpy.abs(difference).argmax(), difference.shape)
    return f"{name} predicts {shown(classes[row])} as {shown(classes[column])} {difference[row, column]:+.1f} points"


def _seeds(comparison: Comparison) -> str:
    return "one seed" if all(len(arm.seeds) == 1 for arm in comparison.arms) else "mean over seeds"


def _longest(classes: tuple[str, ...]) -> int:
    """Return the length of the longest class name, as shown at an axis."""
    return max((len(shown(name, 16)) for name in classes), default=0)


def _name_classes(axes: Axes, classes: tuple[str, ...], size: float = 8, vertical: bool = False) -> None:
    """Label the ticks of an axis with class names."""
    names = [shown(name, 16) for name in classes]
    if vertical:
        axes.set_yticks(range(len(names)), names, fontsize=size)
    else:
        axes.set_xticks(
            range(len(names)), names, fontsize=size, rotation=90 if max(map(len, names), default=0) > 3 else 0
        )


def _clear(axes: Axes) -> None:
    """Remove the grid, ticks and frame."""
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
