"""Figures of a single run: curves, confusion matrices and samples.

They use no display and do not change matplotlib's global state. They are drawn for every run and must be fast.
Therefore, parts have fixed positions in inches, because an automatic layout draws the figure several times. All images
share one axes, and all numbers share one artist.
"""

from __future__ import annotations

from collections.abc import Sequence
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

from adaptkit.comparison.classes import select_confused_classes
from adaptkit.comparison.metrics import DOMAINS
from adaptkit.events import Calibration, ConfidenceBin, Epoch, Predictions, RunResult
from adaptkit.reports.figures.style import SOURCE, TARGET, TRAIN, any_characters, shown

if TYPE_CHECKING:
    from torch import Tensor

DPI = 110
SMALL = FontProperties(size=8)
#: confusions: maximum number of classes; number of classes to select if there are more; maximum with counts in cells
MOST_CLASSES, MOST_CONFUSED, MOST_WRITTEN = 30, 20, 12
LONGEST_CLASS = 24
#: maximum length of one class name above a sample, and of two class names on one line
LONGEST_OF_ONE, LONGEST_OF_TWO = 15, 13


class Numbers(Artist):
    """Draw counts in the cells of a matrix, in white on dark cells; zeros are not drawn."""

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
    # Figure.savefig would lay out and draw the figure twice.
    with any_characters():
        FigureCanvasAgg(figure).print_png(path, pil_kwargs={"compress_level": 3})  # type: ignore[no-untyped-call]


def draw_curves(epochs: Sequence[Epoch], title: str) -> Figure:
    """Draw the training, source and target accuracies against epochs and against seconds."""
    figure = Figure(figsize=(9, 3.6), dpi=DPI)
    by_epoch = _axes(figure, left=0.52, bottom=0.5, width=4.15, height=2.8)
    by_time = _axes(figure, left=4.81, bottom=0.5, width=4.15, height=2.8, sharey=by_epoch)
    series = [("training", TRAIN, [epoch.train_accuracy for epoch in epochs])]
    source = [epoch.test_accuracy for epoch in epochs if epoch.test_accuracy is not None]
    target = [epoch.shifted_accuracy for epoch in epochs if epoch.shifted_accuracy is not None]
    if len(source) == len(epochs):
        series.append(("source", SOURCE, source))
    if len(target) == len(epochs):
        series.append(("target", TARGET, target))
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
    """Draw the number of images of each class (row) that were predicted as each class (column).

    If there are many classes, draw the most confused ones.
    """
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(predictions.truth, predictions.predicted, labels=range(len(classes)))
    shares = counts / numpy.maximum(counts.sum(axis=1, keepdims=True), 1)
    about, written = f"accuracy {100 * predictions.accuracy:.1f} %", len(classes) <= MOST_WRITTEN
    if len(classes) > MOST_CLASSES:
        chosen = select_confused_classes([counts], MOST_CONFUSED)
        counts, shares = (matrix[numpy.ix_(chosen, chosen)] for matrix in (counts, shares))
        about += f"; the {len(chosen)} most confused of {len(classes):,} classes"
        classes, written = [classes[index] for index in chosen], True
    names = [_plain(name, LONGEST_CLASS) for name in classes]
    side = max(3.3, 0.95 + 0.36 * len(names))
    figure = Figure(dpi=DPI)
    upright = max(map(len, names)) > 2
    room = _width(figure, names)
    left, bottom = 0.5 + room, 0.5 + (room if upright else 0.2)
    figure.set_size_inches(left + side + 1.1, bottom + side + 0.55)
    axes = _axes(figure, left=left, bottom=bottom, width=side, height=side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{title}\n{about}", fontsize=10)
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    if written:
        axes.add_artist(Numbers(counts, shares > 0.5))
    scale = _axes(figure, left=left + side + 0.25, bottom=bottom + 0.1 * side, width=0.18, height=0.8 * side)
    scale.imshow(numpy.linspace(1, 0, 256)[:, None], cmap="Blues", extent=(0, 1, 0, 1), aspect="auto")
    scale.set_xticks([])
    scale.yaxis.tick_right()
    scale.yaxis.set_label_position("right")
    scale.set_ylabel("share of the true class")
    return figure


def draw_reliability(calibration: Calibration, title: str) -> Figure:
    """Draw the accuracy of predictions of similar confidence against their confidence, before and after calibration."""
    figure = Figure(figsize=(8.8, 4.9), dpi=DPI)
    before = _axes(figure, left=0.75, bottom=0.6, width=3.4, height=3.4)
    after = _axes(figure, left=5.1, bottom=0.6, width=3.4, height=3.4)
    panels = (
        (before, "before", calibration.bins_before, calibration.ece_before, calibration.nll_before),
        (after, "after, cross-fitted", calibration.bins_after, calibration.ece_after, calibration.nll_after),
    )
    for axes, name, bins, ece, nll in panels:
        axes.plot([0, 100], [0, 100], color="grey", linestyle="--", linewidth=1, label="perfect")
        confidences, accuracies = ([100 * value for value in values] for values in _coordinates(bins))
        axes.plot(confidences, accuracies, marker="o", markersize=4, color=TARGET, clip_on=False, label="predictions")
        low, high = [100 * one.low for one in bins], [100 * one.high for one in bins]
        axes.vlines(confidences, low, high, color=TARGET, alpha=0.5, label="95 % interval")
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", ylabel="accuracy (%)")
        axes.set_title(
            f"{name}: calibration error {100 * ece:.1f} points\nnegative log-likelihood {nll:.3f}", fontsize=10
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    before.legend(frameon=False, loc="upper left")
    figure.suptitle(f"{title}: temperature {calibration.temperature:.3g}, {calibration.images:,} images", y=0.97)
    return figure


def _coordinates(bins: Sequence[ConfidenceBin]) -> tuple[list[float], list[float]]:
    return [one.confidence for one in bins], [one.accuracy for one in bins]


def draw_samples(result: RunResult, title: str) -> Figure:
    """Draw the first images of each test set with their class, and wrong predictions in orange."""
    samples = result.samples
    captions = {name: _captions(images, result.predictions[name], result.classes) for name, images in samples.items()}
    # Two long class names need two lines.
    tall = any(wrong and len(truth) + len(wrong) > LONGEST_OF_TWO for row in captions.values() for truth, wrong in row)
    columns = max(len(images) for images in samples.values())
    # In inches; images of 28 x 28 pixels are drawn at exactly four times their size.
    tile, gap, left, above = 112 / DPI, 8 / DPI, 0.36, 0.28 if tall else 0.15
    row_height = 1.25 + above
    width, height = left + columns * (tile + gap), row_height * len(samples) + 0.4
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = _axes(figure, left=0, bottom=0, width=width, height=height)
    axes.set_axis_off()
    for number, (name, images) in enumerate(samples.items()):
        bottom = height - 0.4 - row_height * number - above - tile
        row = _tiled(images.numpy(), gap / tile)
        right = left + len(images) * (tile + gap) - gap
        axes.imshow(row, extent=(left, right, bottom, bottom + tile))
        axes.text(0.1, bottom + tile / 2, DOMAINS[name], rotation=90, va="center", ha="center", fontsize=9)
        for index, (truth, wrong) in enumerate(captions[name]):
            mistake = f"{truth}\n→ {wrong}" if tall else f"{truth} → {wrong}"
            axes.text(
                left + index * (tile + gap) + tile / 2,
                bottom + tile + 0.06,
                mistake if wrong else truth,
                ha="center",
                fontsize=8,
                color=TARGET if wrong else "black",
            )
    axes.set(xlim=(0, width), ylim=(0, height))
    about = "first test images with their class (orange: true → predicted)"
    figure.suptitle(f"{title}: {about}", fontsize=10, y=1 - 0.1 / height)
    return figure


def _captions(images: Tensor, predictions: Predictions, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return the class of each of the first images, and the predicted class if it is wrong, else an empty text."""
    pairs = zip(predictions.truth[: len(images)], predictions.predicted[: len(images)], strict=True)
    return [
        (_plain(classes[truth], LONGEST_OF_ONE), "" if truth == other else _plain(classes[other], LONGEST_OF_ONE - 2))
        for truth, other in pairs
    ]


def _plain(name: str, longest: int) -> str:
    """Return a name as one short line, with `$` escaped for matplotlib."""
    return shown(name, longest).replace("$", r"\$")


def _tiled(images: NDArray[numpy.float32], gap: float) -> NDArray[numpy.float32]:
    """Join images `[n, c, h, w]` to one row `[h, w', 3]`; `gap` is the width of the gaps as a share of an image."""
    # If images do not have three channels, show their first channel.
    coloured = images if images.shape[1] == 3 else images[:, :1].repeat(3, axis=1)
    space = max(1, round(gap * images.shape[3]))
    spaced = numpy.pad(coloured, ((0, 0), (0, 0), (0, 0), (0, space)), constant_values=1)
    row: NDArray[numpy.float32] = numpy.concatenate(list(spaced.transpose(0, 2, 3, 1)), axis=1)[:, :-space]
    return row.clip(0, 1)


def _axes(
    figure: Figure, *, left: float, bottom: float, width: float, height: float, sharey: Axes | None = None
) -> Axes:
    """Add axes at this position of the figure, in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), sharey=sharey)


def _width(figure: Figure, texts: Sequence[str]) -> float:
    """Return the width of the widest of these small texts, in inches."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    with any_characters():
        widths = [renderer.get_text_width_height_descent(text, SMALL, ismath=False)[0] for text in texts]
    return float(max(widths)) / DPI
