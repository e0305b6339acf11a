"""Measure how often the verdicts of a comparison are wrong, on real trainings whose true differences are known.

    python benchmarks/calibration.py --data-dir FOLDER_WITH_MNIST --work FOLDER --pools 300 --output table.md

Many independent pools are drawn from MNIST under the default shift. On each, 26 cheap learners train on stored features
of one base, in the divisions that adaptkit makes; two strategies also fine-tune the base itself. The true score of a
learner is its mean over all pools on other images. Twelve learners form three families of four that differ only in
their random numbers: any verdict between two members is false.

Predictions are stored in the folder `--work`; experiments that it holds are not repeated, so that a stopped run
continues, and `--output` can be written again after a change of the statistics.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calibration_learners as learners
import numpy
import torch
from calibration_learners import CLASSES, MEMBERS, Answers, Population, Task
from calibration_tables import ACCURACY, BALANCED_ACCURACY, MACRO_F1, METRICS, NLL, write_table
from torch import Tensor

from adaptkit.data.protocols import Labels, disjoint_draw, fold_numbers, overlapping_draw
from adaptkit.data.split import stratified

SIZES = (100, 200, 500, 1000)
#: repeats and folds of the designs
DESIGNS = {"3x5": (3, 5), "3x3": (3, 3), "1x10": (1, 10)}
LOOKS, LABEL_STEPS = 5, tuple(range(100, 501, 50))
#: other images of each pool, on which the true scores are measured
OTHERS = 1000
DRAW_POOL, DRAW_TEST, DRAW_SEEDS, SHOTS = 1000, 1500, 10, (10, 20, 50)
GROUP_SIZES = (200, 500)
TUNED_SIZES, TRIALS = (200, 500), 10
FINE_TUNED_SIZE = 100
NAMES = tuple(map(str, range(CLASSES)))

Arrays = dict[str, numpy.ndarray]


def masks_of(assigned: Tensor, rows: int) -> Tensor:
    """Return masks `[folds, rows]` of the training images, from fold numbers; later rows are other images."""
    masks = torch.zeros(int(assigned.max()) + 1, rows)
    masks[:, : len(assigned)] = (assigned != torch.arange(len(masks))[:, None]).float()
    return masks


def mask_of(trained: Sequence[Tensor], rows: int) -> Tensor:
    """Return masks `[fits, rows]` from the positions of training images."""
    masks = torch.zeros(len(trained), rows)
    for mask, positions in zip(masks, trained, strict=True):
        mask[positions] = 1
    return masks


def divisions(labels: Tensor, repeats: int, folds: int, groups: Tensor | None = None) -> list[Tensor]:
    """Return the fold numbers of each repeat, as adaptkit divides the labelled images."""
    names = None if groups is None else tuple(map(str, groups.tolist()))
    return [fold_numbers(Labels(labels, NAMES, names), folds, seed) for seed in range(repeats)]


def pooled(predicted: Tensor, assigned: Sequence[Tensor]) -> Tensor:
    """Return out-of-fold predictions `[learners, repeats, images]` from those of all fits, repeat after repeat."""
    parts, start = [], 0
    for numbers in assigned:
        fits = start + numbers
        parts.append(predicted[:, fits, torch.arange(len(numbers))])
        start += int(numbers.max()) + 1
    return torch.stack(parts, dim=1)


def true_scores(answers: Answers, labels: Tensor) -> Tensor:
    """Return the score of each learner `[METRICS, learners]`, means over fits."""
    fits = answers.predicted.shape[:2]
    cells = (labels * CLASSES + answers.predicted).flatten(0, 1) + torch.arange(fits.numel())[:, None] * CLASSES**2
    counts = torch.bincount(cells.flatten(), minlength=fits.numel() * CLASSES**2).view(*fits, CLASSES, CLASSES)
    right, actual = counts.diagonal(dim1=-2, dim2=-1).float(), counts.sum(-1)
    scores = {
        ACCURACY: right.sum(-1).mean(1) / len(labels),
        MACRO_F1: (2 * right / (actual + counts.sum(-2)).clamp(min=1)).mean((-1, -2)),
        BALANCED_ACCURACY: (right / actual.clamp(min=1)).mean((-1, -2)),
        NLL: answers.losses.mean((-1, -2)),
    }
    return torch.stack([scores[metric] for metric in METRICS])


def drawn(population: Population, labelled: int, others: int, random: torch.Generator) -> Population:
    """Draw labelled images, of which folds need two of each class, and other images after them."""
    while True:
        images = population.take(torch.randperm(len(population.labels), generator=random)[: labelled + others])
        if images.labels[:labelled].bincount(minlength=CLASSES).min() > 1:
            return images


def train_folds(population: Population, size: int, random: torch.Generator) -> Arrays:
    """Train all learners on one pool: folds, and the overlapping draws of adaptkit 0.1."""
    images = drawn(population, size, OTHERS, random)
    labels, rows = images.labels[:size], size + OTHERS
    designs = {name: divisions(labels, repeats, folds) for name, (repeats, folds) in DESIGNS.items()}
    designs["3x5"] += [fold_numbers(Labels(labels, NAMES), 5, seed) for seed in range(3, LOOKS)]
    masks = {name: torch.cat([masks_of(part, rows) for part in parts]) for name, parts in designs.items()}
    split = size * 2 // 5
    masks["old"] = mask_of([overlapping_draw(labels[:split], 50, "stratified", seed) for seed in range(10)], rows)
    answers = learners.learn_all(Task(images, torch.cat(list(masks.values())), random))
    parts = dict(zip(masks, answers.split([len(mask) for mask in masks.values()]), strict=True))
    result = {f"predicted {name}": pooled(parts[name].predicted, assigned) for name, assigned in designs.items()}
    result["losses 3x5"] = pooled(parts["3x5"].losses, designs["3x5"][: DESIGNS["3x5"][0]])
    result["predicted old"] = parts["old"].predicted[:, :, split:size]
    others = slice(size, None)
    result |= {f"true {name}": true_scores(part.at(others), images.labels[others]) for name, part in parts.items()}
    result |= {f"folds {name}": torch.stack(assigned) for name, assigned in designs.items()}
    return arrays(result | {"labels": labels})


def train_draws(population: Population, draw: Callable[..., Tensor], random: torch.Generator) -> Arrays:
    """Train all learners on draws from one pool, and evaluate one test set."""
    rows = DRAW_POOL + DRAW_TEST
    images = population.take(torch.cat(stratified(population.labels, (DRAW_POOL, DRAW_TEST), random)))
    pool, test = images.labels[:DRAW_POOL], images.labels[DRAW_POOL:]
    trained = [draw(pool, shots, "stratified", seed) for shots in SHOTS for seed in range(DRAW_SEEDS)]
    answers = learners.learn_all(Task(images, mask_of(trained, rows), random)).at(slice(DRAW_POOL, None))
    result: dict[str, Any] = {"labels": test}
    for shots, part in zip(SHOTS, answers.split([DRAW_SEEDS] * len(SHOTS)), strict=True):
        result |= {f"predicted {shots}": part.predicted, f"true {shots}": true_scores(part, test)}
        parts = max(2, int(pool.bincount().max()) // shots)
        result[f"divisions {shots}"] = torch.arange(DRAW_SEEDS) // parts
    return arrays(result)


def train_groups(population: Population, size: int, random: torch.Generator) -> Arrays:
    """Train all learners on folds of one pool of whole groups, at least `size` images."""
    assert population.groups is not None
    counts = population.groups.bincount()
    order = torch.randperm(len(counts), generator=random)
    ends = counts[order].cumsum(0)
    inside, everything = (int((ends < images).sum()) + 1 for images in (size, size + OTHERS))
    rows = torch.cat([(population.groups == group).nonzero().flatten() for group in order[:everything]])
    images, used = population.take(rows), int(ends[inside - 1])
    if (images.labels[:used].bincount(minlength=CLASSES) < 2).any():  # folds need two images of a class
        return train_groups(population, size, random)
    assert images.groups is not None
    labels = images.labels[:used]
    assigned = divisions(labels, *DESIGNS["3x5"], images.groups[:used])
    masks = torch.cat([masks_of(part, len(rows)) for part in assigned])
    answers = learners.learn_all(Task(images, masks, random))
    units = images.groups[:used].unique(return_inverse=True)[1]
    result = {"predicted 3x5": pooled(answers.predicted, assigned), "labels": labels, "units": units}
    result["folds 3x5"] = torch.stack(assigned)
    # Pools of groups differ in size: fill up with -1.
    filled = {name: _filled(part, size + max(learners.GROUP_SIZES)) for name, part in result.items()}
    return arrays(filled | {"true 3x5": true_scores(answers.at(slice(used, None)), images.labels[used:])})


def _filled(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]), value=-1)


def train_more_labels(population: Population, random: torch.Generator) -> Arrays:
    """Train the families on folds of a growing number of labelled images of one pool."""
    most = LABEL_STEPS[-1]
    images = drawn(population, LABEL_STEPS[0], most - LABEL_STEPS[0], random)
    steps = {size: divisions(images.labels[:size], *DESIGNS["3x5"]) for size in LABEL_STEPS}
    masks = [torch.cat([masks_of(part, most) for part in assigned]) for assigned in steps.values()]
    parts = learners.learn_families(Task(images, torch.cat(masks), random)).split([len(mask) for mask in masks])
    result = {f"predicted {size}": pooled(part.predicted, steps[size]) for size, part in zip(steps, parts, strict=True)}
    result |= {f"folds {size}": torch.stack(assigned) for size, assigned in steps.items()}
    return arrays(result | {"labels": images.labels})


def train_tuned(population: Population, size: int, random: torch.Generator) -> Arrays:
    """Train a strategy that is tuned four times with independent random numbers: in each fit, or on all labels."""
    images = drawn(population, size, 0, random)
    assigned = divisions(images.labels, *DESIGNS["3x5"])
    task = Task(images, torch.cat([masks_of(part, size) for part in assigned]), random)
    inside = [learners.tuned(task, learners.HIDDEN, TRIALS) for _ in range(MEMBERS)]
    tuning = fold_numbers(Labels(images.labels, NAMES), 5, 1000)
    tuning_task = task.with_masks(masks_of(tuning, size))
    once = []
    for _ in range(MEMBERS):
        tried = learners.Candidates.drawn(1, TRIALS, random)
        repeated = [learners.Candidates(*(part.expand(fits, -1) for part in vars(tried).values())) for fits in (5, 15)]
        evaluated = 1 - tuning_task.masks
        right = [
            learners.right_of(tuning_task, repeated[0], learners.HIDDEN, n, evaluated).sum() for n in range(TRIALS)
        ]
        best = torch.stack(right).argmax().expand(15)
        once.append(repeated[1].predict(task, learners.HIDDEN, best))
    result = {"predicted inside": torch.stack(inside), "predicted once": torch.stack(once)}
    result = {name: pooled(part, assigned) for name, part in result.items()}
    return arrays(result | {"labels": images.labels, "folds 3x5": torch.stack(assigned)})


def train_fine_tuned(population: Population, base: torch.nn.Module, random: torch.Generator) -> Arrays:
    """Fine-tune the base itself in one repeat of five folds: `full` twice, with independent seeds, and `lora`."""
    size = FINE_TUNED_SIZE
    images = drawn(population, size, OTHERS // 4, random)
    assert images.pixels is not None
    images = Population(images.views, images.labels, pixels=images.pixels.float() / 255)
    assigned = divisions(images.labels[:size], 1, 5)
    task = Task(images, masks_of(assigned[0], len(images.labels)), random)
    seeds = torch.randint(2**31, (3, 5), generator=random).tolist()
    arms = zip(("full", "full", "lora"), seeds, strict=True)
    answers = Answers.of([learners.fine_tuned(base, name, task, of_fits) for name, of_fits in arms], images.labels)
    true = true_scores(answers.at(slice(size, None)), images.labels[size:])
    result = {"predicted 1x5": pooled(answers.predicted, assigned), "folds 1x5": torch.stack(assigned)}
    return arrays(result | {"true 1x5": true, "labels": images.labels[:size]})


def arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    """Return tensors as small arrays."""
    small = {torch.int64: torch.int16, torch.float32: torch.float32}
    return {
        name: tensor.to(torch.int8 if name.startswith("predicted") else small[tensor.dtype]).numpy()
        for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class Experiment:
    """A training that is repeated for many pools."""

    name: str
    train: Callable[[torch.Generator], Arrays]
    pools: int


def experiments(data_dir: Path, work: Path, pools: int, fine_tuned: int) -> Iterator[Experiment]:
    """Yield all experiments, the most important first."""
    base, single, grouped = learners.make_populations(data_dir, work / "population.pt")
    for size in (200, 100, 500, 1000):
        yield Experiment(f"folds {size}", lambda random, size=size: train_folds(single, size, random), pools)
    yield Experiment("draws", lambda random: train_draws(single, disjoint_draw, random), pools)
    for size in GROUP_SIZES:
        yield Experiment(f"groups {size}", lambda random, size=size: train_groups(grouped, size, random), pools)
    for size in TUNED_SIZES:
        yield Experiment(f"tuned {size}", lambda random, size=size: train_tuned(single, size, random), pools)
    yield Experiment("more labels", lambda random: train_more_labels(single, random), pools)
    yield Experiment("fine-tuned", lambda random: train_fine_tuned(single, base, random), fine_tuned)
    yield Experiment("old draws", lambda random: train_draws(single, overlapping_draw, random), pools)


def main() -> None:
    """Train what the work folder does not hold yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that contains MNIST/raw")
    parser.add_argument("--work", type=Path, required=True, help="folder for the base, features and predictions")
    parser.add_argument("--pools", type=int, default=300, help="independent pools")
    parser.add_argument("--fine-tuned", type=int, default=40, help="pools on which the base itself is fine-tuned")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file of the tables")
    parser.add_argument("--only", nargs="+", metavar="NAME", help='experiments to make, such as "folds 200"')
    parser.add_argument("--tables-only", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not arguments.tables_only:
        planned = experiments(arguments.data_dir, arguments.work, arguments.pools, arguments.fine_tuned)
        for number, experiment in enumerate(planned):
            path = arguments.work / f"{experiment.name}.npz"
            if path.exists() or (arguments.only and experiment.name not in arguments.only):
                continue
            start = time.perf_counter()
            random = torch.Generator().manual_seed(number)
            results = [experiment.train(random) for _ in range(experiment.pools)]
            stacked = {name: numpy.stack([result[name] for result in results]) for name in results[0]}
            part = path.with_suffix(".part.npz")
            numpy.savez(part, **stacked)
            part.rename(path)
            print(f"{experiment.name}: {experiment.pools} pools, {time.perf_counter() - start:.0f} s", flush=True)
    write_table(arguments.work, arguments.output)


if __name__ == "__main__":
    main()
