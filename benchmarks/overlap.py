"""Measure the effect of target images that are also source images, as in the notebook.

    python benchmarks/overlap.py --data-dir FOLDER_WITH_MNIST

Runs full fine-tuning with the notebook preset, from one base per seed. Target images are either disjoint from the
source, as in adaptkit, or drawn from both source and pool, as in the notebook. Prints gain and retention in points,
paired by seed and draw.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy
import torch
from scipy.stats import ttest_rel
from torch import Tensor, nn

from adaptkit.data.views import shifted_views
from adaptkit.experiment.base import obtain_base
from adaptkit.experiment.prepare import prepare
from adaptkit.plugins.loading import load_plugins
from adaptkit.seeds import derive_seed
from adaptkit.settings.request import Request
from adaptkit.settings.resolve import Layer, resolve
from adaptkit.training import objective
from adaptkit.training.evaluation import predict_logits
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import plain_passes
from adaptkit.training.trainable import adapt

IMAGES, SOURCE, ALL = 2_000, 20_000, 60_000


def views_of(pixels: torch.Tensor, request: Request, order: int, epoch: int) -> torch.Tensor:
    """Return the views of the target images for an epoch."""
    return shifted_views(pixels, request.shifts, derive_seed(order, f"v{epoch}"))


def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Return the fraction of images that the model classifies correctly."""
    return objective.accuracy(predict_logits(model, pixels), labels)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=4)
    options = parser.parse_args()
    plugins = load_plugins()
    found: dict[str, list[tuple[float, float]]] = {"disjoint": [], "overlap": []}
    for seed in range(options.seeds):
        keys = {"split.seed": seed, "base.seed": seed, "seed": seed, "data_dir": str(options.data_dir)}
        request = resolve([Layer({"strategy": ["full"], "preset": "notebook"} | keys)], plugins)
        experiment = prepare(request)
        base = obtain_base(experiment, plugins, notice=print).base
        model = experiment.place(base.build(request, experiment.domains))
        clean, zero_shot = accuracy(model, *experiment.clean), accuracy(model, *experiment.shifted)
        domains = experiment.domains
        pixels = torch.cat([domains.source.pixels, domains.pool.pixels])
        labels = torch.cat([domains.source.labels, domains.pool.labels])
        for draw in range(options.draws):
            for kind, values in found.items():
                generator = torch.Generator().manual_seed(derive_seed(draw, f"t{kind}"))
                first = SOURCE if kind == "disjoint" else 0
                chosen = first + torch.randperm(ALL - first, generator=generator)[:IMAGES]
                model = experiment.place(base.build(request, domains))
                groups = adapt(model, request.arms[0].create(), init_seed=0)
                order = derive_seed(draw, "order")

                views = partial(views_of, pixels[chosen], request, order)
                recipe = Recipe(epochs=5, batch_size=128, lr=1e-3, order_seed=order)
                passes = plain_passes(model, views, labels=labels[chosen], test=experiment.clean)
                for _ in fit(model, groups, passes, recipe=recipe):
                    pass
                kept, gained = accuracy(model, *experiment.clean), accuracy(model, *experiment.shifted)
                values.append((100 * (gained - zero_shot), 100 * (kept - clean)))
    print(f"| full, points, {len(found['disjoint'])} pairs | disjoint | overlapping | p |\n| --- | --- | --- | --- |")
    for column, name in enumerate(("gain", "retention")):
        apart, mixed = ([value[column] for value in found[kind]] for kind in found)
        p = ttest_rel(apart, mixed).pvalue
        print(f"| {name} | {numpy.mean(apart):+.2f} | {numpy.mean(mixed):+.2f} | {p:.4f} |")


if __name__ == "__main__":
    main()
