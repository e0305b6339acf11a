"""Figures of a run, drawn without a display and without touching matplotlib's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adaptkit.contracts import Epoch, Predictions
from adaptkit.reports.palette import CLEAN, SHIFTED, TRAIN

if TYPE_CHECKING:
    from torch import Tensor


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


def draw_curves(epochs: Sequence[Epoch], title: str) -> Figure:
    """Draw the accuracies against epochs and against seconds."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
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
    by_epoch.xaxis.get_major_locator().set_params(integer=True)
    by_epoch.set_ylabel("accuracy (%)")
    by_epoch.legend(frameon=False)
    figure.suptitle(title)
    return figure


def draw_confusion(predictions: Predictions, classes: Sequence[str], title: str) -> Figure:
    """Draw how often each class (row) was taken for each class (column)."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(predictions.truth, predictions.predicted, labels=range(len(classes)))
    shares = counts / numpy.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.2, 1.8 + 0.36 * len(classes))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{title}\naccuracy {100 * predictions.accuracy:.1f} %", fontsize=10)
    if len(classes) <= 30:
        axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    if len(classes) <= 12:
        for row, column in numpy.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=7, color=colour)
    return figure


def draw_samples(
    samples: Mapping[str, Tensor], predictions: Mapping[str, Predictions], classes: Sequence[str], title: str
) -> Figure:
    """Draw the first images of each test set with their class; wrong predictions follow in orange."""
    columns = max(len(images) for images in samples.values())
    figure = Figure(figsize=(1.15 * columns, 1.4 * len(samples) + 0.4), layout="constrained")
    grid = figure.subplots(len(samples), columns, squeeze=False)
    for row, (name, images) in zip(grid, samples.items(), strict=True):
        for axes in row:
            axes.set_axis_off()
        found = predictions[name]
        for index, (axes, image) in enumerate(zip(row, images.numpy(), strict=False)):
            if image.shape[0] == 3:
                axes.imshow(image.transpose(1, 2, 0))
            else:  # grey, or the first of some other channels
                axes.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            truth, predicted = classes[found.truth[index]], classes[found.predicted[index]]
            right = truth == predicted
            label = truth if right else f"{truth} → {predicted}"
            axes.set_title(label, fontsize=8, color="black" if right else SHIFTED)
        row[0].text(-0.25, 0.5, name, transform=row[0].transAxes, rotation=90, va="center", ha="right", fontsize=9)
    figure.suptitle(f"{title}: first test images with their class (orange: true → predicted)", fontsize=10)
    return figure
