"""Measure the memory that training a strategy takes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from adaptkit.training.evaluation import autocast
from adaptkit.training.loop import Recipe, make_optimizer
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import set_train_mode


def step_bytes(model: nn.Module, pixels: Tensor, labels: Tensor, recipe: Recipe) -> int:
    """Return the bytes of parameters, gradients, optimizer state and tensors saved for backward in one step.

    The step is taken on a copy, so that the model stays as it is.
    """
    model = copy.deepcopy(model)
    set_train_mode(model)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer([{"params": trained}], recipe, labels.device)
    with RandomStream(recipe.order_seed):
        watched = torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept)
        with autocast(labels.device, recipe.precision), watched:
            loss = nn.functional.cross_entropy(model(pixels).float(), labels)
        loss.backward()
        optimizer.step()
    state = [value for slots in optimizer.state.values() for value in slots.values() if isinstance(value, Tensor)]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    held = (*model.parameters(), *model.buffers(), *gradients, *state)
    return sum(tensor.nbytes for tensor in held) + sum(saved.values())
