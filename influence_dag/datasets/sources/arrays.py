"""Arrays: .npz and .zarr, with the target, perhaps ids and weights, and one input or several."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from influence_dag.datasets.sources.base import INPUT, Source, chosen, demand, same_length, stacked
from influence_dag.datasets.sources.texts import is_text, numbers_or_words, texts
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings

ARCHIVE, ARRAY = b"PK\x03\x04", b"\x93NUMPY"  # how an .npz and an .npy begin


def read_npz(path: Path, name: str, data: DataSettings) -> Source:
    try:
        with path.open("rb") as content:
            begins = content.read(len(ARCHIVE))
        if begins and begins not in (ARCHIVE, ARRAY[: len(ARCHIVE)]):
            raise ValueError("it does not begin as one")
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array (.npy), not an archive of named ones")
        with file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # archives and headers fail in many types
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{name}: not a readable .npz of plain arrays: {said:.300}; write it again "
            "(numpy.savez, with arrays of numbers and text alone)"
        ) from error
    return array_source(arrays, name, data)


def read_zarr(path: Path, name: str, data: DataSettings) -> Source:
    from influence_dag.datasets.sources.zarr_groups import (
        read_group,  # here: most studies do not need it
    )

    arrays, labels = read_group(path, name, data)
    return labelled(array_source(arrays, name, data), labels)


def labelled(source: Source, labels: Mapping[str, Mapping[str, tuple[str, ...]]]) -> Source:
    """The source with what its format says of the axes of its inputs, which an order may follow.

    Along the one axis of a single input these are its columns.
    """
    of_inputs = {key: labels.get(key, {}) for key in source.read_from or source.inputs}
    only, *others = of_inputs.values()
    if not others and len(only) == 1 and source.inputs[INPUT].ndim == 2:
        columns = next(iter(only.values()))
        if columns and len({*columns}) == len(columns):
            return replace(source, columns=columns)
    labelled = {
        f"{key} along {dim}": names
        for key, of in of_inputs.items()
        for dim, names in of.items()
        if names
    }
    axes = dict(zip(source.inputs, map(tuple, of_inputs.values()), strict=True))
    return replace(source, axis_labels=labelled, axes=axes)


def columns_of_lists(frame: pd.DataFrame) -> list[str]:
    """Columns of a table whose cells are lists or arrays: embeddings, tokens."""
    if not len(frame):
        return []
    firsts = {str(column): pd.Series(frame[column]).dropna().iloc[:1] for column in frame}
    return [
        name
        for name, cells in firsts.items()
        if any(isinstance(cell, list | tuple | np.ndarray) for cell in cells)
    ]


def source_of_lists(frame: pd.DataFrame, wide: list[str], name: str, data: DataSettings) -> Source:
    arrays = {
        str(column): (
            stacked(name, str(column), _as_arrays(frame[column], name, str(column)))
            if str(column) in wide
            else frame[column].to_numpy()
        )
        for column in frame
    }
    return array_source(arrays, name, data)


def _as_arrays(cells: Iterable[Any], name: str, column: str) -> list[np.ndarray]:
    arrays = []
    for position, cell in enumerate(cells):
        try:
            arrays.append(np.asarray(_nested(cell)))
        except ValueError as error:
            raise DataError(
                f"{name}: row {position}, column {column!r}: lists of several lengths in one list; "
                "all rows need one shape: pad them"
            ) from error
    return arrays


def _nested(cell: Any) -> Any:
    """Lists of lists of numbers as such: Arrow has them as arrays of arrays."""
    is_outer = isinstance(cell, np.ndarray) and cell.dtype == object
    return list(map(_nested, cell)) if is_outer else cell


def array_source(arrays: dict[str, np.ndarray], name: str, data: DataSettings) -> Source:
    """The target, ids and weights where there are some, and every other array as an input."""
    named = data.features.columns or ()
    for key, values in arrays.items():
        if not isinstance(values, np.ndarray) and (not named or key in ("id", *data.roles, *named)):
            raise DataError(
                f"{name}: {key} is a file, not an array; take it out, or name the arrays to use in "
                "data.features.columns"
            )
    ids = arrays.pop("id", None) if data.id is None else None
    if data.id is not None:
        demand(name, arrays, data.id, "id", "data.id")
        ids = arrays.pop(data.id)
    demand(name, arrays, data.target, "target", "data.target")
    written = arrays.pop(data.target)
    demand_kept(name, arrays, data)
    kept = {column: kept_array(name, column, arrays[column]) for column in data.keep}
    arrays = {key: values for key, values in arrays.items() if key not in kept or key in named}
    weights = arrays.pop(data.weight, None) if data.weight is not None else None
    inputs = chosen(name, arrays, data.features.columns)
    read_from = tuple(inputs)
    if len(inputs) == 1:
        inputs = {INPUT: next(iter(inputs.values()))}
    target, text_of = numbers_or_words(written), (lambda: written) if is_text(written) else None
    return same_length(
        Source(
            name,
            inputs,
            target,
            ids,
            weights=weights,
            kept=kept,
            text_of_target=text_of,
            read_from=read_from,
        )
    )


def demand_kept(name: str, columns: Iterable[str], data: DataSettings) -> None:
    """A `DataError` for a column that is to travel along and is not there."""
    for column in data.keep:
        of_pictures = data.images is not None and column == data.images.path
        role, field = ("path", "data.images.path") if of_pictures else ("kept", "data.keep")
        demand(name, columns, column, role, field)


def kept_array(name: str, column: str, values: np.ndarray) -> np.ndarray:
    """An array that travels along: one number, truth value or text a row."""
    if values.ndim != 1:
        raise DataError(
            f"{name}: {column} has shape {values.shape}; what data.keep names is one value a row"
        )
    return texts(values) if is_text(values) else values
