"""A study's rows: read from files or a callable, checked, hashed row by row.

Input problems end here, as a `DataError` that names the file, the row, the column, what was
seen and what would be right.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from influence_dag.datasets.sources import Source, files, read_source
from influence_dag.datasets.sources.base import listed, not_finite
from influence_dag.datasets.sources.digests import FileDigests
from influence_dag.datasets.sources.ids import checked_ids
from influence_dag.datasets.sources.numbers import canonical, check_precision, decimal, whole
from influence_dag.datasets.sources.on_demand import RowsOnDemand, Values, row_bytes, runs, seen
from influence_dag.datasets.sources.row_keys import input_keys, prepared
from influence_dag.datasets.sources.words import TRUTH, encoded
from influence_dag.datasets.standardising import Units
from influence_dag.errors import DataError
from influence_dag.fingerprints import fingerprint, row_fingerprints
from influence_dag.study.base import Split, is_callable_name
from influence_dag.study.data import DataSettings, FeatureSettings

SHOWN = 5  # how many columns an error lists
RESERVED_DIMS = ("test", "train", "param", "damping")  # names of other axes in the results


@dataclass(frozen=True, eq=False)
class SplitRows:
    """The rows of one split, in the order of its file or files.

    `x` maps input names to arrays `(n, *shape)`: `{"x": …}` for one input, the names of the
    module's arguments for several; of a callable's data set they are `RowsOnDemand`, with
    `known_keys`, the hashes of the inputs as they were when all of them were seen, and `close`
    lets go of what they are read from, until they are asked for again. `scale` is
    applied. Floating inputs stay floating, tables are float64, unscaled integer arrays are
    integers. `y` is int64 for whole-number columns.
    `feature_names` are a table's feature columns, row-major where the input has a shape.
    `units` are those of a standardised input, the same for both splits.
    `weights` (n,) are those of training rows, None where all count alike; test rows have none.
    Labels that were words are numbers in `y`, positions in `classes`, which are `ordered` as
    somebody said and not by the alphabet. `kept` are columns that
    travel along, one value a row.
    """

    ids: np.ndarray
    x: dict[str, Values]
    y: np.ndarray
    feature_names: tuple[str, ...] | None
    dims: tuple[str, ...]
    source: str
    weights: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    units: Units | None = None
    known_keys: np.ndarray | None = None
    ordered: bool = False
    close: Callable[[], None] = lambda: None

    @property
    def on_demand(self) -> bool:
        """Whether inputs are read when they are asked for, so that few are in memory."""
        return any(isinstance(values, RowsOnDemand) for values in self.x.values())

    @property
    def labels(self) -> np.ndarray | None:
        """Each row's target as it is shown: the name of its class, else the number."""
        if self.y.ndim != 1:
            return None
        if self.classes is None:
            return self.y
        return np.array(self.classes, np.dtypes.StringDType())[self.y]

    def __len__(self) -> int:
        return len(self.ids)

    def row_keys(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Hash of each row's inputs, target and weight, uint8 `(n, 16)`.

        Ids and order do not matter, nor does it whether 2 was written as 2.0.
        """
        columns = {"x": self._input_keys(rows), "y": canonical(self.y[rows])}
        if self.weights is not None:
            columns["weight"] = canonical(self.weights[rows])
        return row_fingerprints(columns)

    def _input_keys(self, rows: np.ndarray | slice) -> np.ndarray:
        if self.known_keys is not None:
            return self.known_keys[rows]
        if self.on_demand:
            return input_keys(self.x)[rows]
        return input_keys({name: values[rows] for name, values in self.x.items()})


def load_split(
    data: DataSettings, which: Split, root: Path, classes: tuple[str, ...] | None = None
) -> SplitRows:
    """Read and check one split; relative paths start at `root`.

    Labels that are words become positions in `data.classes`, else in `classes` (those of the
    training rows), else in the sorted distinct labels of the split itself.

    Raises `DataError` naming file, row, column, what was seen and what would be right.
    """
    source = read_source(data, which, root)
    if not len(source.target):
        raise DataError(f"{source.name}: the {which} split has no rows; at least one is needed")
    ids = checked_ids(source)
    _check_finite(source)
    x = {name: _scaled(source, name, data.features) for name in source.inputs}
    dims = _dims(source, data.features, x)
    weights = _weights(source, data) if which == "train" else None
    named = data.classes or source.classes
    values, names = encoded(source, data.target, named or classes, given=named is not None)
    y = _target(replace(source, target=values))
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
        close=source.close,
    )


def load_splits(data: DataSettings, root: Path) -> tuple[SplitRows, SplitRows]:
    """The training and the test rows, checked against each other."""
    train = load_split(data, "train", root)
    test = load_split(data, "test", root, train.classes)
    check_alike(train, test)
    if train.classes != test.classes:  # truth values in one split, the numbers 0 and 1 in the other
        train, test = replace(train, classes=None), replace(test, classes=None)
    pair = _of_one_type(train, test), _of_one_type(test, train)
    return _standardised(*pair) if data.features.standardise else pair


def _standardised(train: SplitRows, test: SplitRows) -> tuple[SplitRows, SplitRows]:
    """Both splits in the units of the training rows."""
    if len(train.x) > 1:
        raise DataError(
            f"{train.source}: data.features.standardise is for one input, not for {list(train.x)}"
        )
    ((name, values),) = train.x.items()
    units = Units.of(values, train.source)
    first, second = (_in_units(split, name, units) for split in (train, test))
    return first, second


def _in_units(split: SplitRows, name: str, units: Units) -> SplitRows:
    return replace(split, x={name: seen(split.x[name], units.apply)}, units=units, known_keys=None)


def check_alike(train: SplitRows, test: SplitRows) -> None:
    """Raise `DataError` unless both splits have the same columns, inputs, shapes and target."""
    pair = f"{test.source} and {train.source}"
    _check_columns(train, test, pair)
    if list(train.x) != list(test.x):
        raise DataError(f"{pair} disagree on the inputs: {list(test.x)} and {list(train.x)}")
    for name in train.x:
        seen, wanted = test.x[name].shape[1:], train.x[name].shape[1:]
        if seen != wanted:
            raise DataError(f"{pair} disagree on the shape of {name}: {seen} and {wanted} a row")
    if train.classes is None and test.classes not in (None, TRUTH):
        raise DataError(
            f"{pair} disagree on the target: the training rows have numbers, the test rows words "
            f"({', '.join(map(repr, test.classes[:SHOWN]))})"
        )
    if set(train.kept) != set(test.kept):
        differing = sorted(set(train.kept) ^ set(test.kept))
        raise DataError(
            f"{pair} disagree on the columns that travel along: only one of them has the text "
            f"{differing[:SHOWN]}; data.keep can name those to keep"
        )
    if train.y.shape[1:] != test.y.shape[1:]:
        raise DataError(
            f"{pair} disagree on the target: {test.y.dtype} of shape {test.y.shape[1:]} and "
            f"{train.y.dtype} of shape {train.y.shape[1:]} a row"
        )


def _of_one_type(split: SplitRows, other: SplitRows) -> SplitRows:
    """The split, its whole numbers as decimals where the other split has decimals.

    2 and 2.0 are the same target: what one file happens to hold does not decide a type.
    """

    def place(values: Values, row: int) -> str:
        if isinstance(values, RowsOnDemand):  # `row` is one of a block
            return split.source
        return f"{split.source}: id {split.ids[row]!r}"

    def alike(values: Values, others: Values, name: str) -> Any:
        if values.dtype.kind == "f" or others.dtype.kind != "f":
            return values
        return seen(values, partial(decimal, name=name, row_name=partial(place, values)))

    x = {name: alike(values, other.x[name], name) for name, values in split.x.items()}
    return replace(split, x=x, y=alike(split.y, other.y, "target"))


def check_precisions(splits: Iterable[SplitRows], dtype: str) -> None:
    """Raise `DataError` for a number that is infinite in `compute.dtype`."""
    for split in splits:
        for name, values in {**split.x, "target": split.y}.items():
            if values.dtype.itemsize <= np.dtype(dtype).itemsize:
                continue
            for rows in runs(len(values), row_bytes(values)):
                of_id = partial(_of_id, split, rows.start)
                check_precision(values[rows], dtype, name=name, row_name=of_id)


def _of_id(split: SplitRows, start: int, row: int) -> str:
    return f"{split.source}: id {str(split.ids[start + row])!r}"


def _check_columns(train: SplitRows, test: SplitRows, pair: str) -> None:
    seen, wanted = test.feature_names or (), train.feature_names or ()
    if seen == wanted:
        return
    missing = [name for name in wanted if name not in seen]
    extra = [name for name in seen if name not in wanted]
    if not missing and not extra:
        raise DataError(
            f"{pair} have the same feature columns in different orders; "
            "fix the order with data.features.columns"
        )
    alone = ", ".join(
        f"only {split.source} has {listed(names)}"
        for split, names in ((train, missing), (test, extra))
        if names
    )
    raise DataError(
        f"{pair} disagree on the feature columns: {alone}; data.features.columns can name those to "
        "use"
    )


def source_fingerprint(
    data: DataSettings,
    root: Path,
    *,
    remembered: Path | None = None,
    made: tuple[SplitRows, SplitRows] | None = None,
) -> str:
    """Content hash of all files, byte for byte; of the rows where a callable makes them.

    A file that joins those that match a pattern is another content.

    `remembered` is a file that keeps the hashes by size and time of modification, so that files
    that were not touched are not read again. `made` are the rows, where a callable makes some and
    they have been read.
    """
    if made is None and makes_rows(data):
        made = load_splits(data, root)
    digests = FileDigests(remembered)
    train, test = made or (None, None)
    found = fingerprint(
        _content(data, "train", root, digests, train), _content(data, "test", root, digests, test)
    )
    digests.save()
    return found


def makes_rows(data: DataSettings) -> bool:
    """Whether a callable makes the rows of a split."""
    return any(is_callable_name(data.names(which)[0]) for which in ("train", "test"))


def _content(
    data: DataSettings, which: Split, root: Path, digests: FileDigests, split: SplitRows | None
) -> str:
    if split is not None and is_callable_name(data.names(which)[0]):
        kept = {name: list(map(str, values)) for name, values in split.kept.items()}
        return fingerprint(list(map(str, split.ids)), split.row_keys(), split.classes, kept)
    beside = {}
    if data.images is not None and data.images.root is not None:
        beside = {"images.root": root / Path(data.images.root).expanduser()}
    return fingerprint(
        {
            f"{name}/{inside.relative_to(path)}": digests[inside]
            for name, path in (files(data, which, root) | beside).items()
            for inside in (sorted(path.rglob("*")) if path.is_dir() else [path])
            if inside.is_file()
        }
    )


_TYPES = {"U": "text", "S": "bytes", "O": "objects", "M": "times", "m": "durations"}
_TYPES |= {"c": "complex numbers", "V": "records"}


def _check_finite(source: Source) -> None:
    for name, values in {**source.inputs, "target": source.target}.items():
        if name == "target" and values.dtype.kind == "O":
            continue  # words
        if values.dtype.kind not in "fiub":
            held = _TYPES.get(values.dtype.kind, values.dtype)
            raise DataError(
                f"{source.name}: {name} holds {held}; expected real numbers: encode it, leave it "
                "out (data.features.columns), or let it travel along (data.keep)"
            )
        known = isinstance(values, RowsOnDemand)
        found = source.not_finite.get(name) if known else not_finite(values)
        if found:
            place = f"{source.row_name(found.row)}, {_place(source, name, found.column)}"
            raise DataError(
                f"{source.name}: {place}: seen {_seen(source, found.value)}, expected a finite "
                f"number ({found.rows} such rows); repair or drop them"
            )


def _place(source: Source, name: str, column: int) -> str:
    if name == "target":
        return "target"
    if source.columns is not None:
        return f"column {source.columns[column]!r}"
    index = np.unravel_index(column, source.inputs[name].shape[1:])
    return f"{name}[{', '.join(map(str, index))}]"


def _seen(source: Source, value: float) -> str:
    return "an empty cell or NaN" if source.columns is not None and np.isnan(value) else str(value)


def _scaled(source: Source, name: str, features: FeatureSettings) -> Values:
    """The input in the study's shape, times its scale."""
    values = source.inputs[name]
    if values.dtype == np.uint64:
        values = seen(values, partial(whole, name=name, row_name=source.place_of))
    if features.shape is not None:
        _check_shape(source, values, features.shape)
    elif source.columns is not None and not source.columns:
        raise DataError(f"{source.name}: no feature columns beside the id and the target; add some")
    of = f"{source.name}: {name}"
    return seen(values, partial(prepared, features=features, name=of))


def _check_shape(source: Source, values: Values, shape: tuple[int, ...]) -> None:
    if len(source.inputs) > 1:
        raise DataError(
            f"{source.name}: data.features.shape is for one input; this has {list(source.inputs)}"
        )
    found, wanted = int(np.prod(values.shape[1:])), int(np.prod(shape))
    if found != wanted:
        columns = source.columns or ()
        span = f" ({columns[0]} … {columns[-1]})" if columns else ""
        raise DataError(
            f"{source.name}: {found} features a row{span}, but data.features.shape {list(shape)} "
            f"has {wanted} places; correct the shape or name data.features.columns"
        )


def _dims(source: Source, features: FeatureSettings, x: dict[str, Values]) -> tuple[str, ...]:
    """Names of the feature axes of a single input; several inputs have none."""
    if len(x) > 1:
        if features.dims is not None:
            raise DataError(
                f"{source.name}: data.features.dims is for one input, not for {list(x)}"
            )
        return ()
    axes = next(iter(x.values())).ndim - 1
    numbered = tuple(f"feature_{axis}" for axis in range(axes))
    named = source.dims if features.shape is None else None
    dims = features.dims or named or (("feature",) if axes == 1 else numbered)
    if len(dims) != axes:
        raise DataError(
            f"{source.name}: data.features.dims {list(dims)} names {len(dims)} axes, "
            f"a row has {axes}; give data.features.shape or as many names"
        )
    taken = [dim for dim in dims if dim in RESERVED_DIMS]
    if taken:
        raise DataError(
            f"data.features.dims: {taken[0]!r} is the name of another axis; choose another"
        )
    return dims


def _target(source: Source) -> np.ndarray:
    if source.target.dtype.kind == "f":
        return source.target
    return whole(source.target, name="target", row_name=source.place_of)


def _weights(source: Source, data: DataSettings) -> np.ndarray | None:
    """How often each training row counts, float64 `(n,)`."""
    if data.weight is None:
        return None
    if source.weights is None:
        raise DataError(f"{source.name}: no weight column {data.weight!r} (data.weight)")
    if source.weights.ndim != 1 or source.weights.dtype.kind not in "fiub":
        raise DataError(
            f"{source.name}: the weights ({data.weight}) are {source.weights.dtype} of shape "
            f"{source.weights.shape}; expected one number a row"
        )
    weights = source.weights.astype(np.float64)
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{source.place_of(row)}, weight {data.weight!r}: seen {weights[row]}, expected a "
            f"finite number that is not negative ({int(wrong.sum())} such rows); repair or "
            "drop them"
        )
    if not weights.any():
        raise DataError(
            f"{source.name}: the weights ({data.weight}) are all 0; at least one row has to count"
        )
    return weights
