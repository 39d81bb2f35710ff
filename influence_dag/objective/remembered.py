"""Whether a module keeps something of a call that changes what the next one gives."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from influence_dag.errors import ModelError
from influence_dag.objective.rows import Rows
from influence_dag.structures import tensors_of
from influence_dag.texts import listed

if TYPE_CHECKING:
    from influence_dag.objective.objective import Objective

_MOVED = 1e-2  # by which share θ is another one
_SAME = 1e-3  # relative: of outputs that are

_Key = tuple[nn.Module, str]


def check_remembers_nothing(objective: "Objective", rows: Rows) -> None:
    """Raise `ModelError` for a module whose outputs depend on the calls before.

    A mean that is taken from the first batch, a product of weights that is kept from the first
    call: what is differentiated then is another function from call to call, and no repetition
    shows it. Looked at where a call leaves a buffer or an attribute other than it was: the next
    one, of other rows and another θ, has to give what it gives without it.
    """
    if len(rows) < 2:
        return
    before = _kept(objective.module)
    half = max(1, len(rows) // 2)
    other = objective.params * (1 + _MOVED) + _MOVED * objective.params.abs().mean()
    _outputs(objective, objective.params, rows[:half])
    left = [key for key, value in _kept(objective.module).items() if _differs(value, before, key)]
    if not left:
        return
    after, again = (_outputs(objective, other, rows[half:]) for _ in range(2))
    if _apart(after, again):
        return  # random, or counting: told as that
    _put_back(objective.module, before)
    fresh = _outputs(objective, other, rows[half:])
    if _apart(after, fresh):
        names = {id(layer): name for name, layer in objective.module.named_modules()}
        at = [".".join(filter(None, (names[id(layer)], key))) for layer, key in left]
        raise ModelError(
            f"{type(objective.module).__name__} remembers a call ({listed(at, 3)}): the same rows "
            "and parameters give other outputs after it than without it, so that derivatives would "
            "be of one function and values of another; compute what it keeps anew in each call, or "
            "set it before (a buffer that training fills, module.eval())"
        )


def _kept(module: nn.Module) -> dict[_Key, Any]:
    """Buffers as copies, and attributes that are tensors, numbers or nothing, by layer and name."""
    found: dict[_Key, Any] = {}
    for layer in module.modules():
        for name, buffer in layer._buffers.items():
            found[layer, name] = None if buffer is None else buffer.detach().clone()
        for name, value in vars(layer).items():
            if name == "training" or name.startswith("__"):
                continue
            if isinstance(value, Tensor):
                found[layer, name] = value.detach().clone()
            elif value is None or isinstance(value, bool | int | float):
                found[layer, name] = value
    return found


def _differs(value: Any, before: dict[_Key, Any], key: _Key) -> bool:
    old = before.get(key)
    if isinstance(value, Tensor) and isinstance(old, Tensor):
        same = value.shape == old.shape and value.dtype == old.dtype
        return not (same and torch.equal(value.nan_to_num(), old.nan_to_num()))
    return key not in before or type(value) is not type(old) or value != old


def _put_back(module: nn.Module, before: dict[_Key, Any]) -> None:
    """What there was, and nothing that there was not."""
    for layer, name in _kept(module).keys() - before.keys():
        delattr(layer, name)
    with torch.no_grad():
        for (layer, name), value in before.items():
            now = getattr(layer, name, None)
            if isinstance(value, Tensor) and isinstance(now, Tensor) and now.shape == value.shape:
                now.copy_(value)
            elif now is not value:
                setattr(layer, name, value)


def _outputs(objective: "Objective", theta: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = tensors_of(objective.outputs(theta, rows.x))
    return tuple(leaf.clone() for leaf in found if leaf.is_floating_point())


def _apart(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    pairs = zip(one, other, strict=True)
    return any(
        a.shape != b.shape or not torch.allclose(a, b, rtol=_SAME, atol=1e-6, equal_nan=True)
        for a, b in pairs
    )
