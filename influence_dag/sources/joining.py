"""Several files of one split: their rows as those of one file."""

from collections.abc import Sequence

import numpy as np

from influence_dag.errors import DataError
from influence_dag.sources.base import Source, listed


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
    return Source(
        name,
        {key: np.concatenate([source.inputs[key] for source in sources]) for key in first.inputs},
        np.concatenate([source.target for source in sources]),
        np.concatenate(ids) if len(ids) > 1 else first.ids,
        first.columns,
        line_of,
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
    for key in (*first.inputs, "target"):
        a, b = ({**s.inputs, "target": s.target}[key].shape[1:] for s in (other, first))
        if a != b:
            raise DataError(f"{pair} differ in the shape of {key}: {a} and {b} a row")
