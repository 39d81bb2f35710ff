"""Nested values as models and losses pass them: tensors in tuples, mappings and objects with them.

Inputs, targets and outputs are taken as they come (a tensor, a tuple, a dict, a framework's own
output class); what is done to each tensor is done here, and everything else is handed on.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The value with `function` of every tensor in it; what is no tensor stays as it is.

    >>> import torch
    >>> map_tensors(len, {"image": torch.zeros(3, 8), "ages": (torch.zeros(3), None)})
    {'image': 3, 'ages': (3, None)}
    """
    leaves, structure = _pytree.tree_flatten(value)
    return _pytree.tree_unflatten(
        [function(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
    )


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a value, in order."""
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def with_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """The value with other tensors in the places of its own, in their order."""
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), value)


def differentiable(value: Any) -> list[int]:
    """Which of a value's tensors hold floating-point numbers, as positions in `tensors_of`."""
    return [at for at, leaf in enumerate(tensors_of(value)) if leaf.is_floating_point()]


def described(value: Any) -> str:
    """A value in words: what it is made of, and the shapes and types of its tensors.

    >>> import torch
    >>> described({"x": torch.zeros(2, 3), "note": "a"})
    "dict with 'x': float32 (2, 3), 'note': str"
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        inside = ", ".join(f"{name!r}: {described(part)}" for name, part in value.items())
        return f"{kind} with {inside or 'nothing'}"
    if isinstance(value, tuple | list):
        shown = ", ".join(described(part) for part in value[:4])
        rest = f" and {len(value) - 4} more" if len(value) > 4 else ""
        return f"{kind} of {shown or 'nothing'}{rest}"
    return kind
