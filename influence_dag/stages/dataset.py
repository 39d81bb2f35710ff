"""The rows of a study, checked, labelled and given slots."""

import numpy as np

from influence_dag.datasets import Split as TableSplit
from influence_dag.datasets import load_splits
from influence_dag.errors import StoreError
from influence_dag.labelled import Axis, AxisChange, Split, assign_slots, fresh_axis
from influence_dag.stages.base import Part, Update, Workbench, provenance, refresh_blocks
from influence_dag.store import Coordinate, Layout, Variable, Version
from influence_dag.store.fingerprints import fingerprint, grid_keys
from influence_dag.store.layout import row_chunks

ARTIFACT = "dataset"
FORMULA = 1  # raise when stored values would come out differently


def refresh(bench: Workbench) -> Update:
    """Read both files, give every row a slot, store what changed."""
    data = bench.settings.data
    train, test = load_splits(data, bench.study.root)
    tables: dict[Split, TableSplit] = {"train": train, "test": test}
    current = bench.store.current(ARTIFACT)
    slotted = {}
    for split, table in tables.items():
        previous = _slots_before(current, split)
        slotted[split] = _slots(previous, split, table)
    layout = _layout(bench, tables, {split: axis for split, (axis, _, _) in slotted.items()})
    parts = [
        _part(bench, layout, split, tables[split], axis, source)
        for split, (axis, source, _) in slotted.items()
    ]
    info = {split: vars(change) for split, (_, _, change) in slotted.items()}
    info["rows"] = {split: axis.count for split, (axis, _, _) in slotted.items()}
    return refresh_blocks(bench, ARTIFACT, layout, parts, info=info)


def _slots_before(current: Version | None, split: Split) -> Axis | None:
    """The slots that rows have; None before the first version, or when its labels are damaged."""
    try:
        return Axis.read(current, split) if current else None
    except StoreError:
        return None


def _slots(
    previous: Axis | None, split: Split, table: TableSplit
) -> tuple[Axis, np.ndarray, AxisChange]:
    keys = np.ascontiguousarray(table.row_keys()[:, :8]).view("<u8").ravel()
    keys = np.where(keys == 0, np.uint64(1), keys)  # 0 marks a hole
    labels = table.y if table.y.ndim == 1 else None
    if previous is None:
        axis, source = fresh_axis(split, table.ids, keys, labels)
        return axis, source, AxisChange(added=len(axis))
    return assign_slots(previous, table.ids, keys, labels)


def input_names(table: TableSplit, split: Split) -> dict[str, str]:
    """Input name → variable name: `train_x`, or `train_x_<name>` when there are several."""
    return {name: f"{split}_x" if len(table.x) == 1 else f"{split}_x_{name}" for name in table.x}


def _layout(bench: Workbench, tables: dict, axes: dict[Split, Axis]) -> Layout:
    variables, coordinates = [], []
    for split, axis in axes.items():
        coordinates += axis.coordinates()
        table = tables[split]
        for name, variable in input_names(table, split).items():
            variables.append(
                _variable(bench, variable, split, _dims(table, name), table.x[name], len(axis))
            )
        dims = tuple(f"target_{k}" for k in range(table.y.ndim - 1))
        variables.append(_variable(bench, f"{split}_y", split, dims, table.y, len(axis)))
    coordinates += feature_coordinates(tables["train"])
    attrs = bench.attributes(
        scale=bench.settings.data.features.scale,
        inputs=list(tables["train"].x),
        feature_dims=list(_dims(tables["train"], next(iter(tables["train"].x)))),
        note="x is what the model sees: the file's columns times `scale`",
    )
    sources = {f"{split}_source": tables[split].source for split in tables}
    return Layout(tuple(variables), tuple(coordinates), attrs, {**provenance(), **sources})


def _dims(table: TableSplit, name: str) -> tuple[str, ...]:
    if len(table.x) == 1:
        return table.dims
    return tuple(f"{name}_{k}" for k in range(table.x[name].ndim - 1))


def feature_coordinates(table: TableSplit) -> list[Coordinate]:
    """Names along a single feature axis, positions along the others."""
    if len(table.x) > 1:
        return []
    (values,) = table.x.values()
    if table.feature_names and len(table.dims) == 1:
        names = np.array(table.feature_names, dtype=np.dtypes.StringDType())
        return [Coordinate(table.dims[0], table.dims, names, {"long_name": "name of the feature"})]
    return [
        Coordinate(dim, (dim,), np.arange(size), {"long_name": f"position along {dim}"})
        for dim, size in zip(table.dims, values.shape[1:], strict=True)
    ]


def _stored_dtype(bench: Workbench, values: np.ndarray) -> np.dtype:
    """Floats are kept in float64 (the fit runs in it); integers stay integers."""
    return np.dtype(np.float64) if values.dtype.kind == "f" else np.dtype(np.int64)


def _variable(
    bench: Workbench, name: str, split: Split, dims: tuple[str, ...], values: np.ndarray, slots: int
) -> Variable:
    dtype = _stored_dtype(bench, values)
    row_bytes = max(1, int(np.prod(values.shape[1:]))) * dtype.itemsize
    chunk = bench.stable_chunks(ARTIFACT, name, (row_chunks(slots, row_bytes),))[0]
    return Variable(
        name, (split, *dims), (slots, *values.shape[1:]), dtype.str, (chunk, *values.shape[1:]), {}
    )


def _part(
    bench: Workbench,
    layout: Layout,
    split: Split,
    table: TableSplit,
    axis: Axis,
    source: np.ndarray,
) -> Part:
    arrays = {variable: table.x[name] for name, variable in input_names(table, split).items()}
    arrays[f"{split}_y"] = table.y
    chunk = next(variable.chunks[0] for variable in layout.variables if variable.name in arrays)

    def compute(tile) -> dict[str, np.ndarray]:
        rows = source[tile.start[0] : tile.stop[0]]
        return {
            name: _pick(values, rows, _stored_dtype(bench, values))
            for name, values in arrays.items()
        }

    base = fingerprint(ARTIFACT, FORMULA, bench.settings.data.features.scale)
    return Part(tuple(arrays), grid_keys(base, axis.digests(chunk)), compute)


def _pick(values: np.ndarray, rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rows by position; holes (−1) are NaN, or 0 for integers."""
    picked = values[np.maximum(rows, 0)].astype(dtype)
    picked[rows < 0] = np.nan if dtype.kind == "f" else 0
    return picked
