"""The errors of this package: one family, each saying what was seen, the limit and the cure."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any


class InfluenceDagError(Exception):
    """Base of every error that this package raises on purpose."""


class DataError(InfluenceDagError):
    """An input file, row or column is not what the study says it is."""


class StudyError(InfluenceDagError):
    """A study's settings are wrong, or name something that does not exist."""


class ModelError(InfluenceDagError):
    """A model, loss or checkpoint cannot be used for influence functions as it is.

    `row` is the position of the row that shows it, where it is one row's.
    """

    def __init__(self, message: str, *, row: int | None = None):
        super().__init__(message)
        self.row = row


class NotConvergedError(InfluenceDagError):
    """An iterative solve missed its tolerance.

    `rows` are the positions of the right-hand sides that did, `{rows}` in `message` stands for
    them; `named` says the same with the names that a caller has for them.
    """

    def __init__(self, message: str, *, rows: Sequence[int] = (), names: Sequence[object] = ()):
        self.message, self.rows = message, tuple(rows)
        super().__init__(message.replace("{rows}", _listed(names or self.rows)))

    def named(self, names: Sequence[object]) -> "NotConvergedError":
        """The same error; `names` has one for each right-hand side."""
        return NotConvergedError(
            self.message, rows=self.rows, names=[names[row] for row in self.rows]
        )


class IndefiniteError(InfluenceDagError):
    """`H + λI` is not positive definite.

    `smallest_eigenvalue` is that of `H`; `suggested_damping` is a λ that would do.
    """

    def __init__(self, message: str, *, smallest_eigenvalue: float, suggested_damping: float):
        super().__init__(message)
        self.smallest_eigenvalue = smallest_eigenvalue
        self.suggested_damping = suggested_damping

    def __reduce__(self) -> tuple[Callable[..., "IndefiniteError"], tuple[Any, ...], dict]:
        """As it travels from one process to another: both numbers are asked for by name."""
        again = partial(
            type(self),
            smallest_eigenvalue=self.smallest_eigenvalue,
            suggested_damping=self.suggested_damping,
        )
        return again, self.args, vars(self)


class StoreError(InfluenceDagError):
    """The array store is locked, read-only, damaged or lacks what was asked for."""


class UnreachableError(StoreError):
    """A file of the store cannot be read now; whether it is sound nobody knows."""


def check_known(name: str, value: object, known: Iterable[str]) -> None:
    """Raise `ValueError` for a word that an option does not know."""
    if value not in (known := tuple(known)):
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")


def _listed(names: Sequence[object], most: int = 10) -> str:
    return ", ".join(map(str, names[:most])) + (", …" if len(names) > most else "")


def interrupt_behind(error: BaseException) -> BaseException | None:
    """The interrupt (`KeyboardInterrupt`, Dagster's own) in whose course an error was raised."""
    behind = error.__context__
    while isinstance(behind, Exception | GeneratorExit):
        behind = behind.__context__
    return behind
