"""What the arguments of a call say, whichever library's names they have, and if they can serve.

A module is taken as people have it at the end of a training; what is asked for has to fit into
memory, before anything is computed for it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from influence_dag.errors import ModelError
from influence_dag.influence.points import Point
from influence_dag.objective.numbers import check_memory, check_numbers
from influence_dag.objective.objective import Rows
from influence_dag.solvers import Method, build
from influence_dag.texts import a_kind, readable_bytes

# What other libraries call the settings of a method, and its start.
_SYNONYMS = {"arnoldi": {"rank_estimate": "rank", "eigen_computation_on_gpu": "on_device"}}
_START = {"cg": "x0", "lissa": "h0"}
# Their contract: a solve that runs out of steps returns what it has, low ranks are used as found.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "cg": {"on_failure": "warn"},
    "lissa": {"on_failure": "warn"},
    "arnoldi": {"on_indefinite": "allow"},
}


def choice(argument: str, value: Any, accepted: tuple[str, ...]) -> str:
    """The name, whether written as a string of any case or as a member of an enumeration."""
    name = str(getattr(value, "value", value)).lower()
    if name not in accepted:
        raise ValueError(f"{argument}={value!r} is unknown; choose one of {', '.join(accepted)}")
    return name


def method_of(name: str, damping: float | None, settings: dict[str, Any]) -> Method:
    synonyms = _SYNONYMS.get(name, {})
    settings = {synonyms.get(key, key): value for key, value in settings.items()}
    if name == "direct":
        settings.setdefault("damping", damping)
    return build(name, _DEFAULTS.get(name, {}) | settings)


def start_of(name: str, settings: dict[str, Any]) -> Tensor | None:
    """The first guess for x among the settings, if there is one."""
    start = settings.pop(_START[name], None) if name in _START else None
    if start is None:
        return None
    if name == "lissa":
        if settings.get("scale") is None:
            raise ValueError("h0 is a first guess for scale * x: give scale along with it")
        start = start / settings["scale"]
    return torch.atleast_2d(start)


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


def check_fits(point: Point, rows: Rows, tests: int) -> None:
    """Raise `ModelError` where test × train × features are more than there is room for."""
    leaves = point.leaves(rows[:1])
    features = sum(leaf.numel() for leaf in leaves)
    need = tests * len(rows) * sum(leaf.nbytes for leaf in leaves)
    free = free_bytes(leaves[0].device)
    if free is None or need <= free:
        return
    raise ModelError(
        f"perturbation influences of {tests:,} × {len(rows):,} rows with {features:,} features "
        f"take {readable_bytes(need)}, and {readable_bytes(free)} are free; hand over fewer rows "
        "at a time (test_data, input_data), or make a study, which keeps what is asked for of "
        "them (perturbation.reduce, perturbation.pairs)"
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None
