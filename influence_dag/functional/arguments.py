"""What the arguments of a call say, whichever library's names they have."""

from typing import Any, Literal

import torch
from torch import Tensor

from influence_dag.errors import check_known
from influence_dag.solvers import Method, build
from influence_dag.solvers.settings import checked_damping
from influence_dag.structures import described
from influence_dag.texts import a_kind

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
    check_known(argument, name, accepted)
    return name


def damping_of(given: Any, also: Any, settings: dict[str, Any]) -> float | Literal["auto"]:
    """λ, whichever of its two names a call had for it."""
    if "damping" in settings:
        raise TypeError(
            "damping is a setting of studies; calls in memory have hessian_regularization "
            "(solve_hvp: hessian_perturbation)"
        )
    if also is not None and given not in (0.0, also):
        raise ValueError(
            f"hessian_regularization={given!r} and hessian_perturbation={also!r} are one "
            "damping; give one of them"
        )
    value = given if also is None else also
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"damping={value!r} is unknown; use a number or 'auto'")
    if isinstance(value, list | tuple):
        raise TypeError(
            f"damping is {a_kind(value)}; one number or 'auto' is wanted: call once for each of "
            "several, or list them in a study"
        )
    return "auto" if isinstance(value, str) else checked_damping(value)


def method_of(name: str, damping: float | None, settings: dict[str, Any]) -> Method:
    synonyms = _SYNONYMS.get(name, {})
    if twice := [pair for pair in synonyms.items() if {*pair} <= {*settings}]:
        raise TypeError(f"{' and '.join(twice[0])} are one setting; give one of them")
    settings = {synonyms.get(key, key): value for key, value in settings.items()}
    if name == "direct":
        settings.setdefault("damping", damping)
    return build(name, _DEFAULTS.get(name, {}) | settings)


def start_of(name: str, settings: dict[str, Any]) -> Tensor | None:
    """The first guess for x among the settings, if there is one."""
    start = settings.pop(_START[name], None) if name in _START else None
    if start is None:
        return None
    if not isinstance(start, Tensor):
        raise TypeError(f"{_START[name]} is {a_kind(start)}; a tensor is wanted")
    if start.is_complex():
        raise TypeError(f"{_START[name]} is {described(start)}; real numbers are wanted")
    if not start.isfinite().all():
        raise ValueError(f"{_START[name]} has entries that are not finite; leave it out")
    if name == "lissa":
        if settings.get("scale") is None:
            raise ValueError("h0 is a first guess for scale * x: give scale along with it")
        start = start / settings["scale"]
    return torch.atleast_2d(start.detach())
