"""Labels that are words, truth values or dates: numbered as the model's outputs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from influence_dag.datasets.sources.base import Source
from influence_dag.datasets.sources.texts import EMPTY_CELLS
from influence_dag.errors import DataError
from influence_dag.texts import did_you_mean, listed

TRUTH = ("False", "True")


def encoded(
    source: Source, target: str, classes: Sequence[str] | None, *, given: bool = False
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The target as numbers, and the names of the classes that they stand for.

    Numbers stay numbers and have no names. Words become their positions in `classes`, by default
    in the sorted distinct words of the source. `given` says that `classes` are the settings', where
    whole numbers that are none of the names are positions already. Raises `DataError` naming the
    first row whose label is missing or none of `classes`.
    """
    values = source.target
    if values.dtype.kind == "b" and not given and classes in (None, TRUTH):
        return values.astype(np.int64), TRUTH
    if values.dtype.kind in "fiu" and not given:
        if classes is not None and classes != TRUTH:
            return _positions(source, target, source.words(), tuple(classes))
        return values, None
    if values.ndim != 1:
        raise DataError(
            f"{source.name}: the target holds text of shape {values.shape[1:]} a row; labels that "
            "are words are one a row"
        )
    words = source.words()
    if given and classes is not None and count_outputs(source, classes):
        outside = (values < 0) | (values >= len(classes))
        if outside.any():
            raise _unknown(source, target, words, outside, classes)
        return values.astype(np.int64), tuple(classes)
    if classes is None:
        _check_words(source, target, words)
        classes = sorted(set(words.tolist()))
    return _positions(source, target, words, tuple(classes))


def count_outputs(source: Source, classes: Sequence[str]) -> bool | None:
    """Whether whole numbers, or some of them, count the outputs, being none of their names.

    None where no label is a whole number.
    """
    values = source.target
    if values.ndim != 1:
        return None
    named = set(source.words().tolist()).intersection(classes)
    if values.dtype.kind not in "iub":
        return False if any(map(str.isdecimal, named)) else None
    return not named and bool(((values >= 0) & (values < len(classes))).any())


def _positions(
    source: Source, target: str, words: np.ndarray, classes: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    position = {name: k for k, name in enumerate(classes)}
    unknown = np.array([word not in position for word in words.tolist()], bool)
    if unknown.any():
        raise _unknown(source, target, words, unknown, classes)
    return np.array([position[word] for word in words.tolist()], np.int64), classes


def _unknown(
    source: Source, target: str, words: np.ndarray, unknown: np.ndarray, classes: Sequence[str]
) -> DataError:
    """The refusal of labels that are no classes."""
    row = int(np.argmax(unknown))
    word = words[row]
    seen = f"seen {word!r}" if word else "seen an empty cell"
    return DataError(
        f"{source.name}: {source.row_name(row)}, column {target!r}: {seen}, which is none of the "
        f"classes ({listed(classes)}){did_you_mean(word, classes)} "
        f"({int(unknown.sum())} such rows): classes are the distinct labels of the training rows, "
        "or those that data.classes lists in the order of the model's outputs"
    )


def _check_words(source: Source, target: str, words: np.ndarray) -> None:
    """A `DataError` for empty cells among words, and for words among numbers."""
    place = f"column {target!r}"
    empty = np.isin(words, EMPTY_CELLS)
    if empty.any():
        row = int(np.argmax(empty))
        seen = "an empty cell" if not words[row] else f"{words[row]!r}, as empty cells are written"
        raise DataError(
            f"{source.name}: {source.row_name(row)}, {place}: seen {seen}, expected a label "
            f"({int(empty.sum())} such rows); repair or drop them (a class of that name has to "
            "stand in data.classes)"
        )
    numbers = np.asarray(pd.to_numeric(pd.Series(words), errors="coerce"), np.float64)
    numeric = ~np.isnan(numbers)
    if numeric.any():
        row = int(np.argmax(~numeric))
        raise DataError(
            f"{source.name}: {source.row_name(row)}, {place}: seen {words[row]!r}, expected a "
            f"number, as {int(numeric.sum())} other rows have ({int((~numeric).sum())} such rows); "
            "if all of them are names of classes, list them in data.classes"
        )
