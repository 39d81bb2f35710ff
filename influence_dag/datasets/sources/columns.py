"""A column of a table: numbers as exact as they stand, or a label that travels along."""

import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from influence_dag.datasets.sources.base import Source
from influence_dag.datasets.sources.numbers import EXACT, from_text, rounded, whole
from influence_dag.datasets.sources.texts import texts
from influence_dag.errors import DataError


def kept_label(
    frame: pd.DataFrame, name: str, text_of: Callable[[str], np.ndarray] | None
) -> np.ndarray:
    """A column as a label: numbers and truth values as they are, anything else as text.

    So are whole numbers with a gap among them that decimals would round.
    """
    column = plain_categories(frame, name)
    if pd.api.types.is_bool_dtype(column) and not column.isna().any():
        return column.to_numpy(bool, copy=True)
    if pd.api.types.is_integer_dtype(column) and not column.isna().any():
        return _plain(column)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        numbers = column.to_numpy(np.float64, copy=True, na_value=np.nan)
        written = column.to_numpy(object)
        if text_of is not None and (np.abs(numbers) >= EXACT).any():
            written = text_of(name)
        if not rounded(written, numbers).any():
            return numbers
        return texts(written)
    return texts(column.to_numpy(object))


def plain_categories(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column; one of categories as what the categories are."""
    column = pd.Series(frame[name])
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return column
    return column.astype(object).infer_objects()


def told(source: Source, column: str) -> dict[str, Any]:
    """How an error names a column and a row of it."""
    return {"name": f"column {column!r}", "row_name": source.place_of}


def numbers_of(
    source: Source,
    frame: pd.DataFrame,
    text_of: Callable[[str], np.ndarray] | None,
    name: str,
    *,
    mark: str = ".",
) -> np.ndarray:
    """The column as int64 if all are whole numbers or booleans, else float64; empty is NaN.

    `mark` is what stands before decimals in texts.
    """
    column = plain_categories(frame, name)
    is_whole = pd.api.types.is_integer_dtype(column) or pd.api.types.is_bool_dtype(column)
    if is_whole and not column.isna().any():
        return whole(_plain(column), **told(source, name))
    if pd.api.types.is_complex_dtype(column):
        raise DataError(
            f"{source.name}: column {name!r} holds complex numbers; expected real numbers: split "
            "it into two columns (.real, .imag), or leave it out (data.features.columns)"
        )
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(np.float64, copy=True, na_value=np.nan)
        if text_of is not None and (np.abs(numbers) >= EXACT).any():
            from_text(text_of(name), numbers, **told(source, name))
        return numbers
    return _parsed(source, name, column, mark)


def _plain(column: pd.Series) -> np.ndarray:
    """Integers without a gap in the numpy type of their width."""
    unsigned = str(column.dtype).lower().startswith("uint64")
    return column.to_numpy(np.uint64 if unsigned else np.int64, copy=True)


def _parsed(source: Source, name: str, column: pd.Series, mark: str) -> np.ndarray:
    """The numbers that stand in a column of texts."""
    text = column.map(str, na_action="ignore")
    plain = text if mark == "." else text.str.replace(".", "?").str.replace(mark, ".")
    numbers = pd.Series(pd.to_numeric(plain, errors="coerce"))
    wrong = (numbers.isna() & text.notna()).to_numpy()
    if wrong.any():
        _not_a_number(source, name, text.to_numpy(object), wrong, mark)
    if pd.api.types.is_integer_dtype(numbers):
        return whole(numbers.to_numpy(), **told(source, name))
    values = numbers.to_numpy(np.float64, copy=True, na_value=np.nan)
    from_text(text.to_numpy(object), values, **told(source, name))
    return values


_WITH_COMMAS = re.compile(r"[-+]?\d+(,\d+)+(\.\d*)?")


def _not_a_number(
    source: Source, column: str, seen: np.ndarray, wrong: np.ndarray, mark: str
) -> NoReturn:
    first = int(np.argmax(wrong))
    cure = f"encode text as numbers first, or let the column travel along: data.keep: [{column}]"
    if mark != "." and "." in str(seen[first]):
        cure = f"decimals are written with {mark!r} (data.csv), at thousands stands nothing"
    elif _WITH_COMMAS.fullmatch(str(seen[first]).strip()):
        cure = "decimal commas: data.csv: {decimal: ','}; at thousands write none"
    raise DataError(
        f"{source.name}: {source.row_name(first)}, column {column!r}: seen {seen[first]!r}, "
        f"expected a number ({int(wrong.sum())} such rows); {cure}"
    )
