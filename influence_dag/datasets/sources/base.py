"""What every format comes out as, and the words in which a file's faults are told."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from influence_dag.datasets.sources.numbers import of_one_type
from influence_dag.datasets.sources.on_demand import Values
from influence_dag.datasets.sources.texts import texts
from influence_dag.errors import DataError
from influence_dag.texts import did_you_mean, listed

Array = TypeVar("Array")
INPUT = "x"  # the name of the input when there is only one


@dataclass(frozen=True)
class NotFinite:
    """The first number of an array that is not finite, and how many rows have one."""

    row: int
    column: int
    value: float
    rows: int


def not_finite(values: np.ndarray, start: int = 0) -> NotFinite | None:
    """NaN or infinity among rows that begin at row `start`; None where all numbers are finite."""
    if values.dtype.kind not in "fiub" or not len(values):
        return None
    flat = values.reshape(len(values), -1)
    wrong = ~np.isfinite(flat)
    if not wrong.any():
        return None
    row, column = map(int, np.unravel_index(np.argmax(wrong), wrong.shape))
    return NotFinite(start + row, column, flat[row, column], int(wrong.any(axis=1).sum()))


@dataclass(frozen=True, eq=False)
class Source:
    """What one split's files hold: inputs and target with the row as leading axis.

    `columns` are the feature columns of a table, `ids` is None where the position is the id,
    `weights` is None where rows count alike, or where `no_weights` says what is wrong with them (it
    is raised of rows whose weights are used), and `line_of(position)` is where a person finds a
    row, for example `"line 7"`. A target of words is an object array; `text_of_target` has a target
    of numbers as it is written, where that can be told. `kept` are columns that travel along,
    `dims` the names of an input's axes where the format has some, `classes` the labels in the order
    of their numbers where it has these. `read_from` are the arrays that inputs are, `axes` what
    their axes behind the rows are called, and `axis_labels` what stands along these, where that is
    no column.

    Inputs that code makes are read when they are asked for; what was found of them when all rows
    were seen is in `input_keys` (hashes of the rows as the model sees them) and `not_finite`, and
    `close` lets go of what they are read from, until they are asked for again.
    """

    name: str
    inputs: Mapping[str, Values]
    target: np.ndarray
    ids: np.ndarray | None = None
    columns: tuple[str, ...] | None = None
    line_of: Callable[[int], str] = "row {}".format
    weights: np.ndarray | None = None
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    text_of_target: Callable[[], np.ndarray] | None = None
    dims: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    read_from: tuple[str, ...] = ()
    axis_labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    input_keys: np.ndarray | None = None
    not_finite: Mapping[str, NotFinite] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None
    no_weights: DataError | None = None

    def words(self) -> np.ndarray:
        """The target as text without the space around it, an object array."""
        return texts(self.target if self.text_of_target is None else self.text_of_target())

    def row_name(self, position: int) -> str:
        """`line 7 (id 'train-0005')`."""
        identity = "" if self.ids is None else f" (id {str(self.ids[position])!r})"
        return f"{self.line_of(position)}{identity}"

    def place_of(self, position: int) -> str:
        """`train.csv: line 7 (id 'train-0005')`."""
        return f"{self.name}: {self.row_name(position)}"


def same_length(source: Source) -> Source:
    arrays = {**source.inputs, "target": source.target}
    if source.ids is not None:
        arrays["id"] = source.ids
    if source.weights is not None:
        arrays["weight"] = source.weights
    arrays |= source.kept
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        told = [f"{name} {'is one number' if n is None else n}" for name, n in lengths.items()]
        raise DataError(
            f"{source.name}: the arrays disagree on the number of rows: {', '.join(told)}; each "
            "needs one entry a row"
        )
    return source


def chosen(
    name: str, arrays: Mapping[str, Array], columns: Iterable[str] | None
) -> dict[str, Array]:
    for column in columns or ():
        demand(name, arrays, column, "input", "data.features.columns")
    if not arrays:
        raise DataError(f"{name}: no array of inputs beside the target and the ids; add one")
    return {column: arrays[column] for column in columns or arrays}


def stacked(
    name: str,
    key: str,
    rows: Sequence[np.ndarray],
    positions: Sequence[int] | None = None,
    shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Rows as one array. Raises `DataError` for the first of another shape than row 0 has."""
    wanted = rows[0].shape if shape is None else shape
    places = positions or range(len(rows))
    for position, row in zip(places, rows, strict=True):
        if row.shape != wanted:
            raise DataError(
                f"{name}: row {position} has {key} of shape {row.shape}, row 0 has {wanted}; all "
                "rows need one shape"
            )
    parts = of_one_type(
        [row[None] for row in rows], name=key, row_name=lambda k, _: f"{name}: row {places[k]}"
    )
    return np.concatenate(parts)


def demand(name: str, columns: Iterable[str], column: str, role: str, field: str) -> None:
    if column not in columns:
        raise DataError(
            f"{name}: no {role} column {column!r} ({field})"
            f"{did_you_mean(column, columns)}; it has {listed(columns)}"
        )
