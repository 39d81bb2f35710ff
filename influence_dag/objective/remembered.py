"""Whether a module keeps something of a call that changes what the next one gives."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from influence_dag.errors import ModelError
from influence_dag.objective.attempts import NotRunError, attempted
from influence_dag.objective.keeping import caches, places
from influence_dag.objective.rows import Rows
from influence_dag.structures import map_tensors, tensors_of
from influence_dag.texts import listed

if TYPE_CHECKING:
    from influence_dag.objective.objective import Objective

_MOVED = 1e-2  # by which share θ is another one
_SAME = 1e-3  # relative: of outputs that are

_PLAIN = bool | int | float | str

_Key = tuple[int, str]  # the identity of what has it, which may have no hash, and its name


class _Kept(NamedTuple):
    """What is kept under a name, as a copy (where one is asked for), and as it was."""

    owner: Any
    said: str
    copied: Any
    held: Any


def check_remembers_nothing(objective: "Objective", rows: Rows) -> None:
    """Raise `ModelError` for a module whose outputs depend on the calls before.

    A mean that is taken from the first batch, a product of weights that is kept from the first
    call: what is differentiated then is another function from call to call, and no repetition
    shows it. Looked at where a call leaves a buffer, an attribute, a global or what else its code
    may write to (`keeping`) other than it was: the next one, of other rows and another θ, has to
    give what it gives without it.
    """
    with suppress(NotRunError):  # told with its cause by other checks
        _check_two_calls(objective, rows)


def _check_two_calls(objective: "Objective", rows: Rows) -> None:
    if len(rows) < 2:
        return
    before = _kept(objective.module, copies=True)
    half = max(1, len(rows) // 2)
    other = objective.params * (1 + _MOVED) + _MOVED * objective.params.abs().mean()
    _outputs(objective, objective.params, rows[:half])
    left = [
        now.said
        for key, now in _kept(objective.module).items()
        if key not in before or not _are_same(now.held, before[key].copied)
    ]
    left += [name for name, each in caches(objective.module).items() if each.cache_info().currsize]
    if not left:
        return
    after, again = (_outputs(objective, other, rows[half:]) for _ in range(2))
    if _apart(after, again):
        return  # random, or counting: told as that
    with attempted():
        _put_back(objective.module, before)
    fresh = _outputs(objective, other, rows[half:])
    if _apart(after, fresh):
        raise ModelError(
            f"{type(objective.module).__name__} remembers a call ({listed(left, 3)}): the same "
            "rows and parameters give other outputs after it than without it, so that derivatives "
            "would be of one function and values of another; compute what it keeps anew in each "
            "call, or set it before (a buffer that training fills, module.eval())"
        )


def _kept(module: nn.Module, *, copies: bool = False) -> dict[_Key, _Kept]:
    """What is tensors, numbers, words, nothing, or collections of such, wherever it is kept."""
    found: dict[_Key, _Kept] = {}

    def copy(leaf: Tensor) -> Tensor:
        return leaf.detach().clone() if copies else leaf

    for owner, said, attributes in places(module):
        for name, value in attributes.items():
            if value is None or isinstance(value, _PLAIN | Tensor | list | tuple | dict):
                with suppress(TypeError, AttributeError, RuntimeError):  # not to be made again
                    held = map_tensors(lambda leaf: leaf, value)
                    copied = map_tensors(copy, held)
                    told = said if name == "cell_contents" else ".".join(filter(None, (said, name)))
                    found[id(owner), name] = _Kept(owner, told, copied, held)
    return found


def _are_same(one: Any, other: Any) -> bool:
    """Whether two values are alike; objects and tensors of other kinds are not looked into."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        try:
            alike = one.shape == other.shape and one.dtype == other.dtype
            return alike and torch.equal(one.nan_to_num(), other.nan_to_num())
        except (RuntimeError, TypeError):  # sparse, nested, quantised, of no memory
            return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_are_same, one, other))
    return one == other if isinstance(one, _PLAIN) else True


def _put_back(module: nn.Module, before: dict[_Key, _Kept]) -> None:
    """What there was, and nothing that there was not; caches are emptied."""
    for cache in caches(module).values():
        cache.cache_clear()
    for key, kept in _kept(module).items():
        if key not in before:
            delattr(kept.owner, key[1])
    for (_, name), (owner, _, copied, held) in before.items():
        now = getattr(owner, name, None)
        if _are_same(now, copied):
            continue
        with torch.no_grad():
            for tensor, values in zip(tensors_of(held), tensors_of(copied), strict=True):
                tensor.copy_(values)
        if isinstance(now, list) and isinstance(held, list):
            now[:] = held
        elif isinstance(now, dict) and isinstance(held, dict):
            now.clear()
            now.update(held)
        else:
            setattr(owner, name, held)


def _outputs(objective: "Objective", theta: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    with torch.no_grad(), attempted():
        found = tensors_of(objective.outputs(theta, rows.x))
    return tuple(leaf.clone() for leaf in found if leaf.is_floating_point())


def _apart(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    if len(one) != len(other):
        return True
    pairs = zip(one, other, strict=True)
    return any(
        a.shape != b.shape
        or a.dtype != b.dtype
        or not torch.allclose(a, b, rtol=_SAME, atol=1e-6, equal_nan=True)
        for a, b in pairs
    )
