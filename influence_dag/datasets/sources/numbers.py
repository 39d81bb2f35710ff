"""Whole numbers and decimals: kept exactly, or refused with the row that cannot be."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from influence_dag.errors import DataError

EXACT = 2**53
"""Every whole number below is a float64 as well; of those from here on only some are."""

_WHOLE = re.compile(r"\s*[+-]?\d+\s*")
_LIMIT = np.iinfo(np.int64)
RowName = Callable[[int], str]


def canonical(values: np.ndarray) -> np.ndarray:
    """The same numbers in the one type in which they are compared and hashed.

    That is float64, so that 2 and 2.0 are equal whatever the file, or an edit of another row, made
    of the column; and int64 for whole numbers that float64 cannot tell apart.
    """
    if values.dtype.kind == "f" or not values.size:
        return values.astype(np.float64)
    if beyond(values).any():
        return values.astype(np.int64)
    return values.astype(np.float64)


def whole(values: np.ndarray, *, name: str, row_name: RowName) -> np.ndarray:
    """Integers or truth values as int64; a `DataError` for those from 2⁶³ on, which would wrap."""
    if values.dtype == np.uint64:
        _refuse(values, values > np.uint64(_LIMIT.max), "an int64", name, row_name)
    return values.astype(np.int64)


def decimal(values: np.ndarray, *, name: str, row_name: RowName) -> np.ndarray:
    """Numbers as float64; a `DataError` for a whole number that float64 would round."""
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    large = beyond(values)
    if large.any():
        inexact = np.zeros(values.shape, bool)
        inexact[large] = [int(float(each)) != each for each in values[large].tolist()]
        _refuse(values, inexact, "a float64", name, row_name)
    return values.astype(np.float64)


def of_one_type(
    parts: Sequence[np.ndarray], *, name: str, row_name: Callable[[int, int], str]
) -> Sequence[np.ndarray]:
    """Arrays of rows of which numpy would make decimals together, as such: exactly, or refused.

    Others are left as they are. `row_name` is of a part and a row of it.
    """
    are_numbers = all(part.dtype.kind in "fiub" for part in parts)
    types = {part.dtype for part in parts}
    if len(types) == 1 or not are_numbers or np.result_type(*types).kind != "f":
        return parts
    return [
        decimal(part, name=name, row_name=partial(row_name, place))
        if part.dtype.kind in "iu"
        else part
        for place, part in enumerate(parts)
    ]


def from_text(texts: np.ndarray, numbers: np.ndarray, *, name: str, row_name: RowName) -> None:
    """A `DataError` where digits alone stood in a file and a float64 has rounded them."""
    _refuse(np.asarray(texts, object), rounded(texts, numbers), "a float64", name, row_name)


def rounded(texts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which of what is written is a whole number that the float64 beside it is not."""
    wrong = np.zeros(len(texts), bool)
    for row in np.flatnonzero((np.abs(numbers) >= EXACT) & np.isfinite(numbers)).tolist():
        whole = _WHOLE.fullmatch(str(texts[row]))
        wrong[row] = whole is not None and int(texts[row]) != int(numbers[row])
    return wrong


def check_precision(values: np.ndarray, dtype: str, *, name: str, row_name: RowName) -> None:
    """A `DataError` for a number that is infinite in the precision in which is computed."""
    if values.dtype.kind != "f":
        return
    wrong = np.abs(values) > np.finfo(dtype).max
    if wrong.any():
        position = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        raise DataError(
            f"{row_name(int(position[0]))}, {name}: seen {values[position]:g}, which is infinite "
            f"in {dtype} ({int(wrong.sum())} such); scale it down, or set compute.dtype: float64"
        )


def check_weights_held(
    weights: np.ndarray, dtype: str, *, name: str, largest: float, row_name: RowName
) -> None:
    """A `DataError` for a weight that counts beside the `largest`, and is 0 in `dtype`."""
    limits = np.finfo(dtype)
    lost = (weights > limits.eps * largest) & (weights < limits.tiny)
    if lost.any():
        row = int(np.argmax(lost))
        raise DataError(
            f"{row_name(row)}, {name}: seen {weights[row]:g}, which is 0 in {dtype} "
            f"({int(lost.sum())} such); multiply all weights by one number (their ratios are "
            "what counts), or set compute.dtype: float64"
        )


def beyond(values: np.ndarray) -> np.ndarray:
    """Which numbers are whole and so large that float64 may not tell them apart."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
        return np.zeros(values.shape, bool)
    above = values > EXACT
    return above | (values < -EXACT) if values.dtype.kind == "i" else above


def _refuse(
    values: np.ndarray, wrong: np.ndarray, type_: str, name: str, row_name: RowName
) -> None:
    """Raise for the first row in which something is wrong, if there is one."""
    if not wrong.any():
        return
    position = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    raise DataError(
        f"{row_name(int(position[0]))}, {name}: seen {values[position]}, a whole number that "
        f"{type_} cannot hold exactly ({int(wrong.sum())} such); numbers of identification belong "
        "into the id, others can be made smaller or written as decimals"
    )
