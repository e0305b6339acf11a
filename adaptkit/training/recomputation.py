"""Activation checkpointing: recompute activations of blocks in the backward pass, which is slower but saves memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from adaptkit.backbones.structure import find_stages


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model with a `head` whose recomputation saves memory: stages of several layers.

    A single layer saves nothing, since its input is stored in any case. A stage with most of the model's parameters,
    such as the encoder of a transformer, is divided into its blocks.
    """
    size = _size(model)
    stages = [stage.parts[0][1] for stage in find_stages(model)]
    return [block for stage in stages if _is_composed(stage) for block in _divided(stage, size / 2)]


def _divided(stage: nn.Module, most: float) -> list[nn.Module]:
    for module in stage.modules():
        blocks = [child for child in module.children() if _is_composed(child)]
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(blocks) > 1 and _size(module) > most:
            return [inner for block in blocks for inner in _divided(block, most)]
    return [stage]


def _is_composed(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def is_trained(blocks: Sequence[nn.Module]) -> bool:
    """Check whether any parameter of these blocks is trained."""
    return any(parameter.requires_grad for block in blocks for parameter in block.parameters())


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Recompute the activations of these blocks in the backward pass; calls in this context store only their inputs."""
    plain = [(block, block.__dict__.get("forward")) for block in blocks]
    for block in blocks:
        block.forward = functools.partial(_recompute, block, block.forward)
    try:
        yield
    finally:
        for block, own in plain:
            if own is None:
                del block.forward
            else:
                block.forward = own


def _recompute(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _fixed_statistics(block)

    # The second pass repeats the random draws of the first, for example those of dropout.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, context_fn=contexts, **kwargs)


@contextmanager
def _fixed_statistics(block: nn.Module) -> Iterator[None]:
    """Do not update running statistics again in the second pass.

    No buffer is written in or after this context: autograd would report a changed value.
    """
    layers = [layer for layer in block.modules() if layer.training and _has_statistics(layer)]
    before = [(layer.momentum, layer._buffers.get("num_batches_tracked")) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0  # type: ignore[assignment]
        layer._buffers["num_batches_tracked"] = None
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, before, strict=True):
            layer.momentum = momentum
            layer._buffers["num_batches_tracked"] = batches


def _has_statistics(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "running_mean", None), Tensor) and hasattr(layer, "momentum")
