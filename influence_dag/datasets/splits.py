"""A study's rows: read from files or a callable, and checked.

Input problems end here, as a `DataError` that names the file, the row, the column, what was
seen and what would be right.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from influence_dag.datasets import roles
from influence_dag.datasets.alike import check_alike, of_one_type
from influence_dag.datasets.sources import check_read, read_source
from influence_dag.datasets.sources.ids import checked_ids
from influence_dag.datasets.sources.numbers import check_precision, check_weights_held
from influence_dag.datasets.sources.on_demand import row_bytes, runs, seen
from influence_dag.datasets.sources.words import count_outputs, encoded
from influence_dag.datasets.split_rows import SplitRows
from influence_dag.datasets.standardising import Units
from influence_dag.errors import DataError
from influence_dag.study.base import Split
from influence_dag.study.data import DataSettings


def load_split(
    data: DataSettings, which: Split, root: Path, classes: tuple[str, ...] | None = None
) -> SplitRows:
    """Read and check one split; relative paths start at `root`.

    Labels that are words become positions in `data.classes`, else in `classes` (those of the
    training rows), else in what the source says, else in the sorted distinct labels of the split.

    Raises `DataError` naming file, row, column, what was seen and what would be right.
    """
    source = roles.native(read_source(data, which, root))
    if not len(source.target):
        raise DataError(f"{source.name}: the {which} split has no rows; at least one is needed")
    ids = checked_ids(source)
    roles.check_finite(source)
    x = {name: roles.scaled(source, name, data.features) for name in source.inputs}
    dims = roles.dims(source, data.features, x)
    weights = roles.weights(source, data) if which == "train" else None
    named = data.classes or source.classes
    order = data.classes or classes or source.classes
    values, names = encoded(source, data.target, order, given=named is not None)
    y = roles.target(replace(source, target=values))
    return SplitRows(
        ids,
        x,
        y,
        source.columns,
        dims,
        source.name,
        weights,
        names,
        source.kept,
        known_keys=source.input_keys,
        ordered=named is not None,
        counted=count_outputs(source, named) if named else None,
        close=source.close,
        axis_labels=source.axis_labels,
        axes=source.axes,
    )


def load_splits(data: DataSettings, root: Path) -> tuple[SplitRows, SplitRows]:
    """The training and the test rows, checked against each other."""
    check_read(data, root)
    train = load_split(data, "train", root)
    test = load_split(data, "test", root, train.classes)
    check_alike(train, test)
    if train.classes != test.classes:  # truth values in one split, the numbers 0 and 1 in the other
        train, test = replace(train, classes=None), replace(test, classes=None)
    pair = of_one_type(train, test), of_one_type(test, train)
    return _standardised(*pair) if data.features.standardise else pair


def _standardised(train: SplitRows, test: SplitRows) -> tuple[SplitRows, SplitRows]:
    """Both splits in the units of the training rows."""
    if len(train.x) > 1:
        raise DataError(
            f"{train.source}: data.features.standardise is for one input, not for {list(train.x)}"
        )
    ((name, values),) = train.x.items()
    units = Units.of(values, train.source, train.weights)
    first, second = (_in_units(split, name, units) for split in (train, test))
    return first, second


def _in_units(split: SplitRows, name: str, units: Units) -> SplitRows:
    return replace(split, x={name: seen(split.x[name], units.apply)}, units=units, known_keys=None)


def check_precisions(splits: Iterable[SplitRows], dtype: str) -> None:
    """Raise `DataError` for a number that is infinite in `compute.dtype`, or a weight that is 0."""
    for split in splits:
        if split.weights is not None:
            about = {"name": "weight", "row_name": partial(_of_id, split, 0)}
            check_precision(split.weights, dtype, **about)
            check_weights_held(split.weights, dtype, largest=split.weights.max(), **about)
        for name, values in {**split.x, "target": split.y}.items():
            if values.dtype.itemsize <= np.dtype(dtype).itemsize:
                continue
            for rows in runs(len(values), row_bytes(values)):
                of_id = partial(_of_id, split, rows.start)
                check_precision(values[rows], dtype, name=name, row_name=of_id)


def _of_id(split: SplitRows, start: int, row: int) -> str:
    return f"{split.source}: id {str(split.ids[start + row])!r}"
