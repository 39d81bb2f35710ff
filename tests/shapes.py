"""What is said of shapes in annotations is checked while the tests run; other types are pyright's.

(An argument of a wrong type is what tests of refusals are about.)
"""

import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations of shapes held, no others."""
    if isinstance(function, type):
        return function
    said = function.__annotations__
    function.__annotations__ = {name: kind for name, kind in said.items() if _has_shape(kind)}
    return beartype(function)


def _has_shape(kind: Any) -> bool:
    if isinstance(kind, type):
        return issubclass(kind, AbstractArray)
    return any(_has_shape(part) for part in typing.get_args(kind))
