"""Code measured by `lora.py`: two models, LoRA of three libraries, a training step, an inference pass."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptkit.backbones.small_cnn_layers import SmallCNNModel
from adaptkit.strategies.lora import LoRA
from adaptkit.training.loop import Recipe, make_optimizer
from adaptkit.training.memory import step_bytes
from adaptkit.training.trainable import adapt

RANK, ALPHA, CLASSES = 8, 16.0, 10
SIZES = {"CNN": (1, 28), "ViT-Tiny": (3, 224)}


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `[n, tokens, width]` to tokens."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer of ViT-Tiny's size (Dosovitskiy et al., 2021; Touvron et al., 2021), not pretrained."""

    def __init__(self, size: int, width: int = 192, depth: int = 12, heads: int = 3, patch: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[n, 3, size, size]` to logits."""
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def build(name: str) -> nn.Module:
    """Return a base model with frozen weights, always the same."""
    torch.manual_seed(0)
    channels, size = SIZES[name]
    model = SmallCNNModel(channels, size, CLASSES) if name == "CNN" else ViT(size)
    return model.requires_grad_(False)


def images(name: str, batch: int) -> tuple[Tensor, Tensor]:
    """Return a batch of random images and their labels."""
    channels, size = SIZES[name]
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(1)), torch.arange(
        batch
    ) % CLASSES


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def adaptkit_model(base: nn.Module, rank: int = RANK, targets: str = "Linear") -> nn.Module:
    """Return a copy of the base with adaptkit's LoRA."""
    model = copy.deepcopy(base)
    adapt(model, LoRA(rank=rank, alpha=ALPHA, targets=targets), init_seed=0)
    return model


def peft_model(base: nn.Module, first: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the base with PEFT's LoRA, which starts at the given A."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(first), lora_dropout=0.0, bias="none")
    model = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, weight in first.items():
            model.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.copy_(weight)
    return model


def loralib_model(base: nn.Module, first: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the base with loralib's LoRA, which starts at the given A."""
    import loralib

    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, weight in first.items():
            parent, _, child = name.rpartition(".")
            plain = model.get_submodule(name)
            layer = loralib.Linear(plain.in_features, plain.out_features, r=RANK, lora_alpha=ALPHA)
            layer.weight.copy_(plain.weight)
            layer.bias.copy_(plain.bias)
            layer.lora_A.copy_(weight)
            setattr(model.get_submodule(parent), child, layer)
    loralib.mark_only_lora_as_trainable(model)
    return model


def libraries(base: nn.Module) -> dict[str, nn.Module]:
    """Return the base with LoRA of each library on every linear layer, with the same rank, scale and A, and B = 0."""
    ours = adaptkit_model(base)
    first = {name: ours.get_submodule(name).lora_A.weight for name in linear_layers(base)}
    return {"adaptkit": ours, "PEFT": peft_model(base, first), "loralib": loralib_model(base, first)}


def merged(name: str, model: nn.Module) -> nn.Module:
    """Return a copy of a model for inference, merged by its library."""
    model = copy.deepcopy(model)
    if name == "adaptkit":
        LoRA().merge(model)
    elif name == "PEFT":
        model = model.merge_and_unload()
    return model.eval()  # loralib merges here


def training(model: nn.Module, pixels: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a function that takes one training step: forward, backward, Adam."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer([{"params": trained}], recipe(len(labels)), labels.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(pixels), labels).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, pixels: Tensor) -> Callable[[], None]:
    """Return a function that computes logits."""

    @torch.inference_mode()
    def run() -> None:
        model(pixels)

    return run


def recipe(batch: int) -> Recipe:
    """Return the optimizer for all models."""
    return Recipe(epochs=1, batch_size=batch, lr=1e-4, order_seed=0)


def step_memory(model: nn.Module, pixels: Tensor, labels: Tensor) -> int:
    """Return adaptkit's memory estimate: parameters, gradients, optimizer state, tensors saved for backward."""
    return step_bytes(model, pixels, labels, recipe=recipe(len(labels)))


def allocated(step: Callable[[], None]) -> int:
    """Return the peak number of bytes that a step on the CPU allocates."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def interleaved(cases: Mapping[str, Callable[[], None]], rounds: int, passes: int) -> dict[str, list[float]]:
    """Return the median seconds of each case per round. Each pass runs every case once, in rotating order."""
    names = list(cases)
    medians: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        cases[name]()
    for _ in range(rounds):
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(passes):
            for name in _rotated(names, turn):
                start = time.perf_counter()
                cases[name]()
                seconds[name].append(time.perf_counter() - start)
        for name in names:
            medians[name].append(statistics.median(seconds[name]))
    return medians


def _rotated(names: Sequence[str], turn: int) -> list[str]:
    cut = turn % len(names)
    return [*names[cut:], *names[:cut]]
