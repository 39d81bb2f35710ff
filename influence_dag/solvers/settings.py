"""Settings of methods: looked at where a method is made, whether by a call or in code."""

import math
import numbers
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from influence_dag.errors import check_known


@dataclass(frozen=True)
class Bounds:
    """Which numbers a setting may be, and how that is said."""

    wanted: str
    least: float = 0.0
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False

    def checked(self, name: str, value: Any) -> float:
        """The number as Python has it, from Python, numpy or a tensor of one; else `ValueError`.

        Whole numbers may be written as decimals (`1e3`); truth values are no numbers.
        """
        number = value.item() if getattr(value, "ndim", None) == 0 else value
        if not self._hold(number):
            raise ValueError(f"{name}={value!r}; {self.wanted} is wanted")
        return int(number) if self.whole else float(number)

    def _hold(self, number: Any) -> bool:
        kind = type(number)
        if kind is bool or not issubclass(kind, numbers.Real):
            return False
        within = self.least <= number < self.below and number > self.above
        return within and not (self.whole and number % 1)


_POSITIVE = Bounds("a finite number above 0", above=0)
_NOT_NEGATIVE = Bounds("a finite number that is not negative")
Positive = Annotated[float, _POSITIVE]
NotNegative = Annotated[float, _NOT_NEGATIVE]
Share = Annotated[float, Bounds("a number from 0 to below 1", below=1)]
Count = Annotated[int, Bounds("a whole number above 0", above=0, whole=True)]
Natural = Annotated[int, Bounds("a whole number that is not negative", whole=True)]
Seed = Annotated[int, Bounds("a whole number from 0 to below 2^32", below=2**32, whole=True)]


class Settings:
    """What methods are made of: a value that a field cannot have is refused by its name."""

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), kind))


def checked_damping(value: Any, name: str = "damping") -> float:
    """λ as a number, or `ValueError`."""
    return _NOT_NEGATIVE.checked(name, value)


@cache
def _kinds(method: type) -> dict[str, Any]:
    return get_type_hints(method, include_extras=True)


def _checked(name: str, value: Any, kind: Any) -> Any:
    """The value as a setting of this annotation has it; others than these are left alone."""
    if get_origin(kind) is Literal:
        check_known(name, value, get_args(kind))
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}; True or False is wanted")
        return value
    for part in (kind, *get_args(kind)):
        if get_origin(part) is Annotated and not (value is None and part is not kind):
            return get_args(part)[1].checked(name, value)
    return value
