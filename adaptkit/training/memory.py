"""Measure the memory that a training step needs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from adaptkit.training.evaluation import computing
from adaptkit.training.loop import Recipe, make_optimizer
from adaptkit.training.objective import loss_of
from adaptkit.training.recomputation import find_blocks, recomputed
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import set_train_mode


def step_bytes(model: nn.Module, pixels: Tensor, labels: Tensor, *, recipe: Recipe) -> int:
    """Return the peak memory, in bytes, of one training step of the whole model.

    On CUDA this is measured. Elsewhere it is the sum of parameters, buffers, gradients, optimizer state and tensors
    saved for the backward pass; with recomputed blocks, the saved tensors of the largest block are added. The step runs
    on a copy, so the model does not change. Other memory of the experiment, such as features, is not counted.
    """
    device = labels.device
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = copy.deepcopy(model)
    set_train_mode(model, recipe.adapt_statistics)
    blocks = find_blocks(model) if recipe.checkpointing else []
    again = _largest(copy.deepcopy(model), pixels, recipe) if blocks and device.type != "cuda" else 0
    model_storage = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in model_storage:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer([{"params": trained}], recipe, device)
    with RandomStream(recipe.order_seed):
        watched = torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept)
        with computing(device, recipe.precision), watched, recomputed(blocks):
            loss = loss_of(model(pixels), labels)
        loss.backward()
        optimizer.step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) - before
    state = [value for slots in optimizer.state.values() for value in slots.values() if isinstance(value, Tensor)]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    held = (*model.parameters(), *model.buffers(), *gradients, *state)
    return sum(tensor.nbytes for tensor in held) + sum(saved.values()) + again


def _largest(model: nn.Module, pixels: Tensor, recipe: Recipe) -> int:
    """Return the bytes that the largest block saves for the backward pass; blocks are recomputed one at a time.

    Parameters are not counted. The forward pass may update the model's running statistics.
    """
    model_storage = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}
    sizes = [0]

    def note(tensor: Tensor) -> None:
        # Held until the block ends, so that no other tensor reuses its memory and is counted in its place.
        if tensor.untyped_storage().data_ptr() not in model_storage:
            saved[tensor.untyped_storage().data_ptr()] = tensor

    def begin(*_: object) -> None:
        saved.clear()

    def end(*_: object) -> None:
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
        saved.clear()

    for block in find_blocks(model):
        block.register_forward_pre_hook(begin)
        block.register_forward_hook(end)
    watched = torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing)
    with RandomStream(recipe.order_seed), computing(pixels.device, recipe.precision), watched:
        model(pixels)
    return max(sizes)
