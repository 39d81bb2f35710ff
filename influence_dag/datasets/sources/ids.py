"""The ids of rows as text: one rule for every format."""

from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd

from influence_dag.datasets.sources.base import Source
from influence_dag.errors import DataError
from influence_dag.texts import listed

SHOWN = 5  # how many offending rows an error lists


def checked_ids(source: Source) -> np.ndarray:
    """Each row's id: text, bytes in UTF-8 or a whole number, as text without the space around it.

    Raises `DataError` for ids that are missing, that repeat, or that are of another kind: decimals
    (`1.0` is what a column of whole numbers with a gap becomes), truth values, dates. Without ids
    the position is the id.
    """
    if source.ids is None:
        return np.arange(len(source.target)).astype(np.dtypes.StringDType())
    if source.ids.ndim != 1 or source.ids.dtype.kind in "fcbmM":
        seen = f"{source.ids.dtype} of shape {source.ids.shape}"
        raise DataError(_other_kind(source, seen))
    ids = [_as_text(source, position, each) for position, each in enumerate(source.ids.tolist())]
    if empty := [position for position, identity in enumerate(ids) if not identity]:
        raise DataError(f"{source.name}: no id at {_lines(source, empty)}; every row needs its own")
    if len(set(ids)) < len(ids):
        raise DataError(_repeated(source, ids))
    return np.array(ids, dtype=np.dtypes.StringDType())


def _as_text(source: Source, position: int, identity: Any) -> str:
    """Empty where it is missing."""
    if identity is None or identity is pd.NA or identity is pd.NaT or identity is np.ma.masked:
        return ""
    if isinstance(identity, float) and np.isnan(identity):
        return ""
    if isinstance(identity, bytes):
        return _decoded(source, position, identity)
    if isinstance(identity, str):
        return _printable(source, position, identity.strip())
    if isinstance(identity, Integral) and not isinstance(identity, bool | np.bool_):
        return str(int(identity))
    kind = "decimals" if isinstance(identity, float) else f"of type {type(identity).__name__}"
    seen = f" ({identity!r:.80} at {source.line_of(position)})"
    raise DataError(_other_kind(source, kind + seen))


def _decoded(source: Source, position: int, identity: bytes) -> str:
    try:
        return _printable(source, position, identity.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source.name}: the id at {source.line_of(position)} is bytes that are not UTF-8 "
            f"({identity!r:.80}); write ids as text"
        ) from error


def _printable(source: Source, position: int, identity: str) -> str:
    """The same; a `DataError` for what no file or table takes: NUL, halves of surrogate pairs."""
    try:
        identity.encode()
    except UnicodeEncodeError:
        unprintable = True
    else:
        unprintable = "\0" in identity
    if unprintable:
        raise DataError(
            f"{source.name}: the id at {source.line_of(position)} is {identity!a:.80}, which "
            "has a character that text files cannot hold; write ids as printable text"
        )
    return identity


def _other_kind(source: Source, seen: str) -> str:
    return (
        f"{source.name}: ids are {seen}; expected one text or whole number a row (whole numbers "
        "with a gap become decimals: fill the gap, or write them as text)"
    )


def _repeated(source: Source, ids: list[str]) -> str:
    positions: dict[str, list[int]] = {}
    for position, identity in enumerate(ids):
        positions.setdefault(identity, []).append(position)
    repeated = [(identity, at) for identity, at in positions.items() if len(at) > 1]
    shown = "; ".join(f"{name!r} at {_lines(source, at)}" for name, at in repeated[:SHOWN])
    return f"{source.name}: {len(repeated)} ids appear more than once: {shown}; ids must be unique"


def _lines(source: Source, positions: list[int]) -> str:
    return listed(positions, SHOWN, shown=source.line_of)
