"""A module as people have it at the end of a training, and what of it can be differentiated."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from influence_dag.errors import ModelError
from influence_dag.objective.numbers import check_memory, check_numbers
from influence_dag.texts import a_kind


def usable_device(device: torch.device | str) -> torch.device:
    """The device, where torch can compute on it. Raises `ModelError` with what torch says."""
    try:
        usable = torch.device(device)
        torch.zeros(1, device=usable).cpu()
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"device={device!r} cannot be computed on: {reason}") from error
    return usable


def usable_module(model: Any) -> nn.Module:
    """The module itself, out of what only copies it to several devices.

    Raises `TypeError` for what is no module, and `ModelError` for one whose parameters cannot be
    exchanged, are no numbers, or lie in the memory of another tensor.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {a_kind(model)}; a torch.nn.Module is wanted")
    if isinstance(model, DataParallel | DistributedDataParallel):
        return usable_module(model.module)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ModelError(
            "model was compiled by torch.jit, whose parameters cannot be exchanged for others; "
            "hand over the torch.nn.Module that it was made of"
        )
    check_numbers(model.named_parameters(), "model: ")
    check_memory(model, "model: ")
    return model
