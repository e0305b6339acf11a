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
    in_model = _addresses(model)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved.update({place: size for place, size in _storages(tensor).items() if place not in in_model})
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
    return sum(part.nbytes for tensor in held for part in _parts(tensor)) + sum(saved.values()) + again


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the dense tensors that a tensor consists of: itself, or the indices and values of a sparse one."""
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()  # for example in the layout of oneDNN, which has no accessible storage


def _storages(tensor: Tensor) -> dict[int, int]:
    """Return the address and size in bytes of the memory behind a tensor."""
    storages = [part.untyped_storage() for part in _parts(tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _addresses(model: nn.Module) -> set[int]:
    return {place for tensor in (*model.parameters(), *model.buffers()) for place in _storages(tensor)}


def _largest(model: nn.Module, pixels: Tensor, recipe: Recipe) -> int:
    """Return the bytes that the largest block saves for the backward pass; blocks are recomputed one at a time.

    Parameters are not counted. The forward pass may update the model's running statistics.
    """
    in_model = _addresses(model)
    saved: dict[int, Tensor] = {}
    sizes = [0]

    def note(tensor: Tensor) -> None:
        # Held until the block ends, so that no other tensor reuses its memory and is counted in its place.
        saved.update({place: tensor for place in _storages(tensor) if place not in in_model})

    def begin(*_: object) -> None:
        saved.clear()

    def end(*_: object) -> None:
        sizes.append(sum(_storages(tensor)[place] for place, tensor in saved.items()))
        saved.clear()

    for block in find_blocks(model):
        block.register_forward_pre_hook(begin)
        block.register_forward_hook(end)
    watched = torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing)
    with RandomStream(recipe.order_seed), computing(pixels.device, recipe.precision), watched:
        model(pixels)
    return max(sizes)
