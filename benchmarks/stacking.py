"""Measure whether training several seeds together, as one batched product, would save time.

    python benchmarks/stacking.py

Trains the trainable part of `head` and `lora` on `small_cnn` for five seeds, on features of 500 images, with batches of
32 and 10 epochs: one seed after the other, as adaptkit does, and stacked (torch.func: `vmap` over the parameters).
Prints both times, the difference of the final weights, and the seconds that five default runs would save.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from adaptkit.strategies.lora_layers import LoRALinear
from adaptkit.training import loop as optimizers

SEEDS, IMAGES, BATCH, EPOCHS, REPEATS = 5, 500, 32, 10, 5


def head(seed: int) -> tuple[nn.Module, int]:
    """Return the layer that `head` trains, and its number of input features."""
    torch.manual_seed(0)  # all from the same base
    return nn.Linear(128, 10), 128


def lora(seed: int) -> tuple[nn.Module, int]:
    """Return the layers that `lora` adapts, and their number of input features."""
    torch.manual_seed(0)
    layers = nn.Linear(3136, 128), nn.Linear(128, 10)
    torch.manual_seed(seed)
    adapted = [LoRALinear(layer, 8, 16, 0.0) for layer in layers]
    for layer in adapted:
        layer.base_layer.requires_grad_(False)
    return nn.Sequential(adapted[0], nn.ReLU(), adapted[1]), 3136


def order(seed: int) -> list[Tensor]:
    """Return the batches of all epochs of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [part for _ in range(EPOCHS) for part in torch.randperm(IMAGES, generator=generator).split(BATCH)]


def one_by_one(models: Sequence[nn.Module], features: Tensor, labels: Tensor) -> None:
    """Train each model on the features of its seed."""
    for seed, model in enumerate(models):
        optimizer = optimizers.make("adam", [{"params": trained(model)}], lr=5e-3, fused=True)
        for batch in order(seed):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(features[seed, batch]), labels[seed, batch]).backward()
            optimizer.step()


def together(models: Sequence[nn.Module], features: Tensor, labels: Tensor) -> None:
    """Train all models at once, step by step, and write the weights back."""
    stacked = stack_module_state(list(models))[0]
    names = [name for name, parameter in models[0].named_parameters() if parameter.requires_grad]
    moving = {name: stacked[name].detach().requires_grad_() for name in names}
    still = {name: value.detach() for name, value in models[0].named_parameters() if name not in names}
    skeleton = copy.deepcopy(models[0]).to("meta")

    def loss(own: dict[str, Tensor], images: Tensor, truth: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(skeleton, own | still, (images,)), truth)

    losses = vmap(loss)
    optimizer = optimizers.make("adam", [{"params": list(moving.values())}], lr=5e-3, fused=True)
    seeds = torch.arange(len(models))[:, None]
    for batches in zip(*(order(seed) for seed in range(len(models))), strict=True):
        rows = torch.stack(batches)
        optimizer.zero_grad(set_to_none=True)
        losses(moving, features[seeds, rows], labels[seeds, rows]).sum().backward()
        optimizer.step()
    with torch.no_grad():
        for number, model in enumerate(models):
            for name, parameter in model.named_parameters():
                if name in moving:
                    parameter.copy_(moving[name][number])


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def main() -> None:
    """Measure both variants in turn and print a Markdown table."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {REPEATS}\n")
    print("| five seeds of | one by one, s | stacked, s | ratio | saved per run, s | weights apart by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for make in (head, lora):
        seconds: dict[str, list[float]] = {"one": [], "all": []}
        generator = torch.Generator().manual_seed(1)
        features = torch.rand(SEEDS, IMAGES, make(0)[1], generator=generator)
        labels = torch.randint(10, (SEEDS, IMAGES), generator=generator)
        for _ in range(REPEATS + 1):  # the first repeat is a warm-up
            results = []
            for name, train in (("one", one_by_one), ("all", together)):
                models = [make(seed)[0] for seed in range(SEEDS)]
                start = time.perf_counter()
                train(models, features, labels)
                seconds[name].append(time.perf_counter() - start)
                results.append(models)
        pairs = zip(*([p for model in models for p in trained(model)] for models in results), strict=True)
        apart = max((one - other).abs().max().item() for one, other in pairs)
        one, every = (statistics.median(values[1:]) for values in seconds.values())
        saved = (one - every) / SEEDS
        print(f"| {make.__name__} | {one:.2f} | {every:.2f} | {every / one:.2f} | {saved:.3f} | {apart:.1e} |")


if __name__ == "__main__":
    main()
