"""Layers that a batch shows not to be captured, and what is made without them. No torch."""

import warnings
from collections.abc import Callable, Iterable
from typing import TypeVar

_Result = TypeVar("_Result")


class NotCaptured(Exception):  # noqa: N818 - a signal between rooms, never seen by a user
    """On some batch, the gradients of these layers are not sums of products of their pairs."""

    def __init__(self, layers: set[str]):
        super().__init__(layers)  # alone: from it the same error is made in another process
        self.layers = layers

    def __str__(self) -> str:
        return (
            f"the gradients of {', '.join(map(repr, sorted(self.layers)))} are not sums of "
            "products of what one call of the layer takes and passes back for each row (rows that "
            "change places, further calls, hooks): they are differentiated row by row"
        )


def without_uncaptured(
    compute: Callable[[frozenset[str]], _Result],
    *,
    without: Iterable[str] = (),
    report: Callable[[str], None] | None = None,
) -> _Result:
    """What `compute` makes without the layers that a batch shows not to be captured.

    `compute` is given the names of layers to leave to differentiation row by row, `without` at
    first, and is called again when it raises `NotCaptured`, which is reported (warned of).
    """
    names = frozenset(without)
    while True:
        try:
            return compute(names)
        except NotCaptured as error:
            (report or _warned)(str(error))
            names |= error.layers


def _warned(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
