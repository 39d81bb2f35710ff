"""How the rows of a study are laid out: variables by split, what labels them, what they say."""

import numpy as np

from influence_dag.datasets.slots import Axis, Split
from influence_dag.datasets.sources.on_demand import Values
from influence_dag.datasets.split_rows import SplitRows
from influence_dag.stages import naming
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Coordinate, Layout, Variable

FORMULA = FORMULAS["dataset"]


def arrays_of(table: SplitRows, split: Split) -> dict[str, Values]:
    """What is stored of a split, by variable."""
    inputs = {variable: table.x[name] for name, variable in _input_names(table, split).items()}
    weights = {} if table.weights is None else {f"{split}_weight": table.weights}
    return {**inputs, f"{split}_y": table.y, **weights}


def _input_names(table: SplitRows, split: Split) -> dict[str, str]:
    """Input name → variable name: `train_x`, or `train_x_<name>` when there are several."""
    return {name: f"{split}_x" if len(table.x) == 1 else f"{split}_x_{name}" for name in table.x}


def layout_of(bench: Workbench, tables: dict, axes: dict[Split, Axis], source: str) -> Layout:
    variables, coordinates = [], []
    for split, axis in axes.items():
        coordinates += axis.coordinates
        variables += _variables(bench, split, tables[split], len(axis))
    coordinates += _feature_coordinates(tables["train"])
    attrs = bench.attributes(
        scale=bench.settings.data.features.scale,
        inputs=list(tables["train"].x),
        feature_dims=list(_dims(tables["train"], next(iter(tables["train"].x)))),
        weights=bench.settings.data.weight or "none",
        note=_seen(tables["train"]),
        classes=list(tables["train"].classes or ()),
        **_columns_of_shape(tables["train"]),
    )
    made = {f"{split}_source": tables[split].source for split in tables}
    made = {**provenance(), **made, "source_key": source, "rows_formula": FORMULA}
    return Layout(tuple(variables), tuple(coordinates), attrs, made)


def _dims(table: SplitRows, name: str) -> tuple[str, ...]:
    if len(table.x) == 1:
        return table.dims
    return tuple(f"{name}_{k}" for k in range(table.x[name].ndim - 1))


def _feature_coordinates(table: SplitRows) -> list[Coordinate]:
    """Names along a single feature axis, positions along the others."""
    if len(table.x) > 1:
        return []
    (values,) = table.x.values()
    of_units = _unit_coordinates(table)
    if table.feature_names and len(table.dims) == 1:
        names = np.array(table.feature_names, dtype=np.dtypes.StringDType())
        named = Coordinate(table.dims[0], table.dims, names, {"long_name": "name of the feature"})
        return [named, *of_units]
    return of_units + [
        Coordinate(dim, (dim,), np.arange(size), {"long_name": f"position along {dim}"})
        for dim, size in zip(table.dims, values.shape[1:], strict=True)
    ]


def _columns_of_shape(table: SplitRows) -> dict[str, list[str]]:
    """The feature columns, row-major, where no coordinate has them."""
    shaped = table.feature_names and len(table.dims) > 1
    return {"feature_columns": list(table.feature_names or ())} if shaped else {}


def _unit_coordinates(table: SplitRows) -> list[Coordinate]:
    """The mean and the scale of each feature of a standardised input."""
    if table.units is None:
        return []
    note = "power of two and quarter of it nearest to those of the training rows, as they are now"
    words = {"feature_mean": "what was subtracted", "feature_scale": "what was divided by"}
    values = {"feature_mean": table.units.mean, "feature_scale": table.units.scale}
    return [
        Coordinate(name, table.dims, values[name], {"long_name": words[name], "note": note})
        for name in words
    ]


def _seen(table: SplitRows) -> str:
    if table.units is None:
        return "x is what the model sees: the file's columns times `scale`"
    return (
        "x is what the model sees: the file's columns times `scale`, less `feature_mean`, over "
        "`feature_scale`"
    )


def stored_dtype(values: Values) -> np.dtype:
    """Floats are kept in float64 (the fit runs in it); integers stay integers."""
    return np.dtype(np.float64) if values.dtype.kind == "f" else np.dtype(np.int64)


_WEIGHT = {
    "long_name": "weight of the row in sums and means over training rows",
    "note": "2 counts as the row twice",
}


def _variables(bench: Workbench, split: Split, table: SplitRows, slots: int) -> list[Variable]:
    """Inputs and target of a split, all cut alike: they are read and keyed together."""
    arrays = {
        variable: (_dims(table, name), table.x[name])
        for name, variable in _input_names(table, split).items()
    }
    arrays[f"{split}_y"] = (tuple(f"target_{k}" for k in range(table.y.ndim - 1)), table.y)
    if table.weights is not None:
        arrays[f"{split}_weight"] = ((), table.weights)
    dtypes = {name: stored_dtype(values) for name, (_, values) in arrays.items()}
    row_bytes = max(
        int(np.prod(values.shape[1:])) * dtypes[name].itemsize
        for name, (_, values) in arrays.items()
    )
    chunk = bench.row_chunk(naming.DATASET, next(iter(arrays)), split, slots, row_bytes=row_bytes)
    return [
        Variable(
            name,
            (split, *dims),
            (slots, *values.shape[1:]),
            dtypes[name].str,
            (chunk, *values.shape[1:]),
            _WEIGHT if name == f"{split}_weight" else {},
        )
        for name, (dims, values) in arrays.items()
    ]
