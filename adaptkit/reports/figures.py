"""Figures of a run, drawn without a display and without touching matplotlib's global state.

They are drawn for every run, so each part has its fixed place, in inches: a layout that matplotlib works out draws all
parts several times, and an axes for each image or a text object for each number costs more than what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from adaptkit.contracts import Epoch, Predictions
from adaptkit.reports.palette import CLEAN, SHIFTED, TRAIN

if TYPE_CHECKING:
    from torch import Tensor

DPI = 110
SMALL = FontProperties(size=8)


class Numbers(Artist):
    """Numbers at the centres of an image's cells, white where the cell is dark; none for 0."""

    def __init__(self, counts: NDArray[numpy.int64], dark: NDArray[numpy.bool_]) -> None:
        super().__init__()
        self._counts, self._dark = counts, dark

    def draw(self, renderer: RendererBase) -> None:
        """Draw the numbers."""
        assert self.axes is not None
        font = FontProperties(size=7)
        context = renderer.new_gc()
        _, top = renderer.get_canvas_width_height()  # Agg counts rows from the top
        cells = numpy.argwhere(self._counts)
        centres = self.axes.transData.transform(cells[:, ::-1])
        for (row, column), (x, y) in zip(cells, centres, strict=True):
            text = str(self._counts[row, column])
            width, height, descent = renderer.get_text_width_height_descent(text, font, ismath=False)
            context.set_foreground("white" if self._dark[row, column] else "black")
            renderer.draw_text(context, x - width / 2, top - y + height / 2 - descent, text, font, 0)
        context.restore()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    # Figure.savefig would lay it out and draw it twice.
    FigureCanvasAgg(figure).print_png(path, pil_kwargs={"compress_level": 3})  # type: ignore[no-untyped-call]


def draw_curves(epochs: Sequence[Epoch], title: str) -> Figure:
    """Draw the accuracies against epochs and against seconds."""
    figure = Figure(figsize=(9, 3.6), dpi=DPI)
    by_epoch = _axes(figure, 0.52, 0.5, 4.15, 2.8)
    by_time = _axes(figure, 4.81, 0.5, 4.15, 2.8, sharey=by_epoch)
    series = [
        ("training", TRAIN, [epoch.train_accuracy for epoch in epochs]),
        ("clean test", CLEAN, [epoch.test_accuracy for epoch in epochs]),
    ]
    if all(epoch.shifted_accuracy is not None for epoch in epochs):
        series.append(("shifted test", SHIFTED, [epoch.shifted_accuracy or 0.0 for epoch in epochs]))
    for axes, label, xs in (
        (by_epoch, "epoch", [epoch.number for epoch in epochs]),
        (by_time, "seconds (training and evaluation)", [epoch.cumulative_seconds for epoch in epochs]),
    ):
        for name, colour, values in series:
            axes.plot(xs, [100 * value for value in values], marker="o", markersize=3, color=colour, label=name)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    by_epoch.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    by_epoch.set_ylabel("accuracy (%)")
    by_epoch.legend(frameon=False)
    by_time.tick_params(labelleft=False)
    figure.suptitle(title)
    return figure


def draw_confusion(predictions: Predictions, classes: Sequence[str], title: str) -> Figure:
    """Draw how often each class (row) was taken for each class (column)."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(predictions.truth, predictions.predicted, labels=range(len(classes)))
    shares = counts / numpy.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Beyond what is named, cells become smaller: a picture of a thousand classes must still fit into memory.
    side = max(3.3, 0.95 + 0.36 * min(len(classes), 30))
    figure = Figure(dpi=DPI)
    named, upright = len(classes) <= 30, max(map(len, classes)) > 2
    room = _width(figure, classes) if named else 0.25
    left, bottom = 0.5 + room, 0.5 + (room if named and upright else 0.2)
    figure.set_size_inches(left + side + 1.1, bottom + side + 0.55)
    axes = _axes(figure, left, bottom, side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{title}\naccuracy {100 * predictions.accuracy:.1f} %", fontsize=10)
    if named:
        axes.set_xticks(range(len(classes)), classes, rotation=90 if upright else 0, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    if len(classes) <= 12:
        axes.add_artist(Numbers(counts, shares > 0.5))
    scale = _axes(figure, left + side + 0.25, bottom + 0.1 * side, 0.18, 0.8 * side)
    scale.imshow(numpy.linspace(1, 0, 256)[:, None], cmap="Blues", extent=(0, 1, 0, 1), aspect="auto")
    scale.set_xticks([])
    scale.yaxis.tick_right()
    scale.yaxis.set_label_position("right")
    scale.set_ylabel("share of the true class")
    return figure


def draw_samples(
    samples: Mapping[str, Tensor], predictions: Mapping[str, Predictions], classes: Sequence[str], title: str
) -> Figure:
    """Draw the first images of each test set with their class; wrong predictions follow in orange."""
    columns = max(len(images) for images in samples.values())
    # In inches; images of 28 pixels a side are drawn at exactly four times their size.
    tile, gap, left, row_height = 112 / DPI, 8 / DPI, 0.36, 1.4
    width, height = left + columns * (tile + gap), row_height * len(samples) + 0.4
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = _axes(figure, 0, 0, width, height)
    axes.set_axis_off()
    for number, (name, images) in enumerate(samples.items()):
        bottom = height - 0.4 - row_height * number - 0.15 - tile
        row = _tiled(images.numpy(), gap / tile)
        right = left + len(images) * (tile + gap) - gap
        axes.imshow(row, extent=(left, right, bottom, bottom + tile))
        axes.text(0.1, bottom + tile / 2, name, rotation=90, va="center", ha="center", fontsize=9)
        found = predictions[name]
        for index in range(len(images)):
            truth, predicted = classes[found.truth[index]], classes[found.predicted[index]]
            is_right = truth == predicted
            axes.text(
                left + index * (tile + gap) + tile / 2,
                bottom + tile + 0.06,
                truth if is_right else f"{truth} → {predicted}",
                ha="center",
                fontsize=8,
                color="black" if is_right else SHIFTED,
            )
    axes.set(xlim=(0, width), ylim=(0, height))
    about = "first test images with their class (orange: true → predicted)"
    figure.suptitle(f"{title}: {about}", fontsize=10, y=1 - 0.1 / height)
    return figure


def _tiled(images: NDArray[numpy.float32], gap: float) -> NDArray[numpy.float32]:
    """Return images `[n, c, h, w]` side by side as one, `[h, w', 3]`, with white gaps of this share of their width."""
    # Grey, or the first of some other channels, where they are not three.
    coloured = images if images.shape[1] == 3 else images[:, :1].repeat(3, axis=1)
    space = max(1, round(gap * images.shape[3]))
    spaced = numpy.pad(coloured, ((0, 0), (0, 0), (0, 0), (0, space)), constant_values=1)
    row: NDArray[numpy.float32] = numpy.concatenate(list(spaced.transpose(0, 2, 3, 1)), axis=1)[:, :-space]
    return row.clip(0, 1)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float, sharey: Axes | None = None) -> Axes:
    """Add axes at this place of the figure, in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), sharey=sharey)


def _width(figure: Figure, texts: Sequence[str]) -> float:
    """Return the width of the widest of some small texts, in inches."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    widths = [renderer.get_text_width_height_descent(text, SMALL, ismath=False)[0] for text in texts]
    return float(max(widths)) / DPI
