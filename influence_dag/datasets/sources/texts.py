"""Cells as text: words, dates, bytes, truth values, and which of them stand for nothing."""

from datetime import date, datetime, time
from typing import Any

import numpy as np
import pandas as pd

TEXT_KINDS = "OTUSMm"  # of numpy types: anything but numbers and truth values

# What pandas takes for an empty cell when nothing is said; ids are spared it.
EMPTY_CELLS = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip


def is_text(values: np.ndarray) -> bool:
    """Whether it holds anything but numbers and truth values."""
    return values.dtype.kind in TEXT_KINDS


def texts(values: Any) -> np.ndarray:
    """Values as text, an object array: dates in ISO form, bytes as UTF-8; "" where one is missing.

    Bytes that are none are written as their numbers, so that different ones stay different.

    >>> texts(np.array(["2024-05-01", "NaT"], "datetime64[s]")).tolist()
    ['2024-05-01', '']
    """
    array = np.asarray(values)
    if array.dtype.kind in "Mm":
        array = pd.Series(array.ravel()).to_numpy(object).reshape(array.shape)
    plain = [_text(each) for each in array.ravel().tolist()]
    return np.array(plain, dtype=object).reshape(array.shape)


def _text(value: Any) -> str:
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, float) and np.isnan(value):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace").strip()
    if isinstance(value, datetime):
        midnight = value.time() == time() and value.tzinfo is None
        return value.date().isoformat() if midnight else value.isoformat()
    return value.isoformat() if isinstance(value, date) else str(value).strip()


def numbers_or_words(values: np.ndarray) -> np.ndarray:
    """An array of text as numbers if all of it is numbers, else as it is, in an object array."""
    if not is_text(values):
        return values
    words = texts(values)
    numbers = np.asarray(pd.to_numeric(pd.Series(words.ravel()), errors="coerce"))
    told = words.ravel() != ""
    if values.dtype.kind in "Mm" or not told.any() or np.isnan(numbers[told]).any():
        return words
    return numbers.reshape(words.shape)
