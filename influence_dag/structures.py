"""Nested values as models and losses pass them: tensors in tuples, mappings and objects with them.

Inputs, targets and outputs are taken as they come (a tensor, a tuple, a dict, a framework's own
output class); what is done to each tensor is done here, and everything else is handed on.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The value with `function` of every tensor in it; what is no tensor stays as it is.

    Looks into tuples, named tuples, lists, mappings of any class, dataclasses and namespaces.

    >>> import torch
    >>> map_tensors(len, {"image": torch.zeros(3, 8), "ages": (torch.zeros(3), None)})
    {'image': 3, 'ages': (3, None)}
    """
    if isinstance(value, Tensor):
        return function(value)
    names, parts = _parts(value)
    if parts is None:
        return value
    return _with_parts(value, names, [map_tensors(function, part) for part in parts])


def named_parts(value: Any) -> dict[str, Any]:
    """What a structure holds, by name, or by position where its parts have no names.

    >>> named_parts(("a", "b"))
    {'0': 'a', '1': 'b'}
    """
    names, parts = _parts(value)
    return dict(zip(map(str, names or range(len(parts or ()))), parts or (), strict=True))


def _parts(value: Any) -> tuple[list[Any], list[Any] | None]:
    """What a structure consists of, under its names if it has some; None for what is none."""
    if isinstance(value, Mapping):
        return list(value), [value[name] for name in value]
    if isinstance(value, tuple | list):
        return [], list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return names, [getattr(value, name) for name in names]
    if isinstance(value, SimpleNamespace):
        return list(vars(value)), list(vars(value).values())
    return [], None


def _with_parts(value: Any, names: list[Any], parts: list[Any]) -> Any:
    if type(value) in (tuple, list):
        return type(value)(parts)
    if type(value) is dict:
        return dict(zip(names, parts, strict=True))
    if isinstance(value, tuple | list):
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    other = copy.copy(value)
    for name, part in zip(names, parts, strict=True):
        if isinstance(value, Mapping):
            other[name] = part
        else:
            object.__setattr__(other, name, part)
    return other


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a value, in order."""
    tensors: list[Tensor] = []
    map_tensors(lambda leaf: tensors.append(leaf) or leaf, value)
    return tensors


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
