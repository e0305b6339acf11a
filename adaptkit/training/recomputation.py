"""Compute what blocks keep for the backward pass a second time instead of keeping it: slower, in less memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from adaptkit.backbones.structure import find_stages


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model that has a `head` for which computing twice saves memory: stages of several layers.

    A single layer keeps its input, which is all that would be kept of it anyway. Where one stage is most of the model,
    as an encoder with a small patch embedding before it, its blocks are meant.
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
    """Tell whether anything in these blocks is trained."""
    return any(parameter.requires_grad for block in blocks for parameter in block.parameters())


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let these blocks, where they are called in this context, keep their inputs only until the backward pass."""
    plain = [(block, block.__dict__.get("forward")) for block in blocks]
    for block in blocks:
        block.forward = functools.partial(_twice, block, block.forward)
    try:
        yield
    finally:
        for block, own in plain:
            if own is None:
                del block.forward
            else:
                block.forward = own


def _twice(block: nn.Module, forward: Any, *given: Any, **named: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _unmoved(block)

    # Random draws, of dropout for one, are the first pass's again.
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=True, context_fn=contexts, **named)


@contextmanager
def _unmoved(block: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are: the first pass has moved them.

    Neither in nor after this context is a buffer written to, which autograd would take for a changed value.
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
