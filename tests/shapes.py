"""What is said of shapes in annotations is checked while the tests run; other types are pyright's.

(An argument of a wrong type is what tests of refusals are about.)

`--jaxtyping-packages` has every function of a package decorated with `jaxtyping.jaxtyped`, which
binds each call's arguments anew and checks them twice, also where nothing is said of shapes. Here
functions that say something are checked once a call, arguments and result in one scope of names.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from jaxtyping import AbstractArray


def checked(what: Any = None, *, typechecker: object = None) -> Any:
    """A function, or what is made of functions, with its annotations of shapes held, no others."""
    if what is None:
        return checked
    if isinstance(what, classmethod | staticmethod):
        return type(what)(checked(what.__func__))
    if isinstance(what, property):
        return property(*(each and checked(each) for each in (what.fget, what.fset, what.fdel)))
    if isinstance(what, type):
        if dataclasses.is_dataclass(what) and "__init__" in vars(what):
            what.__init__ = checked(what.__init__)
        return what
    return _held(what)


def _held(function: Callable[..., Any]) -> Callable[..., Any]:
    said = {name: kind for name, kind in function.__annotations__.items() if _has_shape(kind)}
    if not said:
        return function
    from beartype import beartype  # stores and tables are tested without it too

    everything, function.__annotations__ = function.__annotations__, said
    held = beartype(function)
    function.__annotations__ = everything

    @functools.wraps(function)
    def in_scope(*arguments: Any, **options: Any) -> Any:
        with _scope:
            return held(*arguments, **options)

    return in_scope


def _has_shape(kind: Any) -> bool:
    if isinstance(kind, type):
        return issubclass(kind, AbstractArray)
    return any(_has_shape(part) for part in typing.get_args(kind))


_scope = jaxtyping.jaxtyped("context")
jaxtyping.jaxtyped = checked
