"""Several files of one split: their rows as those of one file."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.datasets.sources.base import Source
from influence_dag.datasets.sources.numbers import beyond, decimal, whole
from influence_dag.datasets.sources.texts import texts
from influence_dag.errors import DataError
from influence_dag.texts import listed

if TYPE_CHECKING:
    from influence_dag.datasets.split_rows import SplitRows


def joined(name: str, sources: Sequence[Source]) -> Source:
    """The rows of several files in the files' order; lines keep the name of their file.

    A file without rows only has to have the right columns.
    """
    for source in sources:
        _check_alike(sources[0], source)
    sources = [source for source in sources if len(source.target)] or list(sources[:1])
    first, starts = sources[0], np.cumsum([0, *(len(source.target) for source in sources)])

    def line_of(position: int) -> str:
        file = int(np.searchsorted(starts, position, side="right")) - 1
        return f"{sources[file].name} {sources[file].line_of(position - int(starts[file]))}"

    ids = [np.asarray(source.ids, object) for source in sources]
    weights = [source.weights for source in sources if source.weights is not None]
    return Source(
        name,
        {key: _together(sources, key, lambda s, key=key: s.inputs[key]) for key in first.inputs},
        _target(sources),
        np.concatenate(ids) if len(ids) > 1 else first.ids,
        first.columns,
        line_of,
        np.concatenate(weights) if len(weights) == len(sources) else None,
        {name: _column(sources, name) for name in first.kept},
        lambda: np.concatenate([source.words() for source in sources]),
        first.dims,
        axis_labels=first.axis_labels,
        axes=first.axes,
        no_weights=next(filter(None, (source.no_weights for source in sources)), None),
    )


def _target(sources: Sequence[Source]) -> np.ndarray:
    """The files' targets as one: all as words where one has words, as numbers otherwise."""
    kinds = {source.target.dtype.kind for source in sources}
    if "O" in kinds and len(kinds) > 1:
        return np.concatenate([source.words() for source in sources])
    if kinds == {"b"}:
        return np.concatenate([source.target for source in sources])
    return _together(sources, "target", lambda source: source.target)


def _column(sources: Sequence[Source], name: str) -> np.ndarray:
    """A column that travels along: as text where the files disagree on what it is.

    Whole numbers in some and decimals in others are numbers, unless that would round any.
    """
    parts = [source.kept[name] for source in sources]
    kinds = {part.dtype.kind for part in parts}
    exact = kinds <= set("iuf") and not any(beyond(part).any() for part in parts)
    return np.concatenate(parts if len(kinds) == 1 or exact else [texts(part) for part in parts])


def _together(sources: Sequence[Source], name: str, of: Callable[[Source], Any]) -> np.ndarray:
    """The files' arrays as one: whole numbers in some and decimals in others are decimals."""
    kinds = {of(source).dtype.kind for source in sources}
    if len(sources) == 1 or not kinds <= set("fiub"):
        return np.concatenate([of(source) for source in sources])
    as_one = decimal if "f" in kinds else whole
    if kinds == {"f"}:
        return np.concatenate([of(source) for source in sources])
    return np.concatenate(
        [as_one(of(source), name=name, row_name=source.place_of) for source in sources]
    )


def check_axes(pair: str, other: "Source | SplitRows", first: "Source | SplitRows") -> None:
    """A `DataError` where axes or their labels are in another order: numbers would change places.

    Names alone may differ, or be missing in one of them.
    """
    for what, seen, wanted in (
        ("axes", other.axes, first.axes),
        ("labels", other.axis_labels, first.axis_labels),
    ):
        for axis in dict.fromkeys([*wanted, *seen]):
            a, b = seen.get(axis, ()), wanted.get(axis, ())
            if a != b and (what == "labels" or sorted(a) == sorted(b)):
                raise DataError(
                    f"{pair} disagree on the {what} of {axis}: {listed(a)} and {listed(b)}; write "
                    "both in one order"
                )


def _check_alike(first: Source, other: Source) -> None:
    """A `DataError` unless the rows of two files can stand in one table."""
    if other.ids is None:
        raise DataError(
            f"{other.name}: several files need `data.id`: a position is no id among the rows of "
            "more than one file"
        )
    pair = f"{other.name} and {first.name}"
    seen, wanted = other.columns or list(other.inputs), first.columns or list(first.inputs)
    if seen != wanted:
        own = [[name for name in a if name not in b] for a, b in ((seen, wanted), (wanted, seen))]
        raise DataError(
            f"{pair} differ in their feature columns: "
            f"{f'{listed(own[0] + own[1])} in one alone' if any(own) else 'their order'}; "
            "data.features.columns can name those to use, in order"
        )
    check_axes(pair, other, first)
    if set(other.kept) != set(first.kept):
        differing = sorted(set(other.kept) ^ set(first.kept))
        raise DataError(f"{pair} differ: only one of them has the text {listed(differing)}")
    if len({s.weights is None and s.no_weights is None for s in (first, other)}) > 1:
        raise DataError(f"{pair} differ: only one of them has the weights that data.weight names")
    for key in (*first.inputs, "target"):
        a, b = ({**s.inputs, "target": s.target}[key].shape[1:] for s in (other, first))
        if a != b:
            raise DataError(f"{pair} differ in the shape of {key}: {a} and {b} a row")
