"""Modules: built from a study's callable, fitted, and known by their state."""

from pathlib import Path

import torch
from torch import nn

from influence_dag.errors import ModelError
from influence_dag.objective.checkpoints import load_checkpoint, load_state, save_checkpoint
from influence_dag.objective.fitting import FitReport, fit
from influence_dag.objective.numbers import check_memory, check_numbers
from influence_dag.objective.seeding import seeded
from influence_dag.study.imported import import_callable, own_default
from influence_dag.study.model import ModelSettings
from influence_dag.study.opened import only_named_files
from influence_dag.study.torch_modes import kept_modes
from influence_dag.study.users_code import named_by
from influence_dag.texts import a_kind

__all__ = [
    "FitReport",
    "build_module",
    "fit",
    "import_callable",
    "load_checkpoint",
    "load_state",
    "save_checkpoint",
    "seeded",
]


def build_module(settings: ModelSettings, root: Path, dtype: torch.dtype) -> nn.Module:
    """The module of `model.build` in `dtype`, its first weights drawn from the fit's seed."""
    build = import_callable(settings.build, root, "model.build")
    context = f"model.build: {settings.build}"
    wanted = "it is called without arguments and has to return a torch.nn.Module"
    seed = settings.own_fit.seed if settings.own_fit else 0
    typed = own_default(settings.build, root, stays=True)  # in what the module then computes
    named, opens = named_by(context, wanted), only_named_files(context, root)
    with seeded(seed), kept_modes(), opens, named, typed:
        module = build()
    if not isinstance(module, nn.Module):
        raise ModelError(f"{context} returned {a_kind(module)}, expected a torch.nn.Module")
    check_numbers((*module.named_parameters(), *module.named_buffers()), f"{context}: ")
    check_memory(module, f"{context}: ")
    return module.to(dtype=dtype)
