"""What the arguments of a call say, whichever library's names they have."""

from typing import Any

import torch
from torch import Tensor

from influence_dag.solvers import Method, build

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
