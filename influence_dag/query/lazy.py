"""Arrays that are computed when sliced and never stored: dask blocks that call the kernels."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr
from dask.array.core import normalize_chunks
from dask.utils import SerializableLock

from influence_dag.query.holes import without_holes
from influence_dag.query.reopened import check_influences, workbench_of
from influence_dag.stages import methods, naming, reading
from influence_dag.stages.blocks import Tile
from influence_dag.stages.dampings import DAMPING, DampingAxis, of_method, stored
from influence_dag.stages.wording import wording_of
from influence_dag.store import Coordinate, Layout, Store, Variable

if TYPE_CHECKING:
    from influence_dag.solvers.blocks import Blocks
    from influence_dag.stages.workbench import Workbench

Block = Callable[[Tile], np.ndarray]

_ONE_AT_A_TIME = SerializableLock("influence_dag.query.lazy")
"""A module's parameters, and torch's modes, are swapped while it is evaluated: of all arrays."""


def lazy_perturbations(
    store: Store, method: str, project: Path | None = None
) -> dict[str, xr.DataArray]:
    """Perturbation influences, dims `(test, train, *features)`, computed on demand, by variable.

    One array for each input of the model. Each block differentiates the stored model at the stored
    training rows; the values equal the stored `perturbation_influences` where all are kept. The
    blocks are those that the store would use then.
    """
    from influence_dag.stages.derivatives import DerivativesOfPairs
    from influence_dag.stages.landing import landed
    from influence_dag.stages.perturbation import whole_layout

    bench = workbench_of(store, method, project)
    check_influences(bench, method, rows="dataset")
    with bench.modes():
        layout = whole_layout(bench, method)

    def block_of(variable: Variable) -> Block:
        with bench.modes():  # by the code that was looked at
            compute = DerivativesOfPairs.of(method, variable).at(bench)

        def block(tile: Tile) -> np.ndarray:
            cut = Tile(tile.start[:3], tile.stop[:3], ())  # features are whole
            _, arrays = next(landed([(cut, compute(cut))]))
            return arrays[variable.name]

        return block

    return {each.name: _labelled(bench, layout, each, block_of(each)) for each in layout.variables}


def parameter_influences(store: Store, method: str, project: Path | None = None) -> xr.DataArray:
    """`(H + λI)⁻¹ ∇L(z_i)` of each training row, dims `(train, param)`, computed on demand.

    Leaving out `z_i` moves the parameters by about `+1/weight_sum` of its row (without weights that
    is `n_train`). NaN where a solve missed its tolerance (`on_failure: warn`), as of
    self-influences.
    """
    bench = workbench_of(store, method, project)
    check_influences(bench, method)
    train = bench.axis(naming.GRADIENTS, "train")
    with bench.modes():
        factorization = methods.load_factorization(bench, method)
    dampings = of_method(bench, method)

    def block(tile: Tile) -> np.ndarray:
        places, slots, _ = tile.region
        present = np.flatnonzero(train.valid[slots])
        G = reading.load_gradients(bench, slots).dense()
        values = np.full(tile.shape, np.nan, variable.dtype)
        with reading.named_rows(train.ids[slots][present], f"{method}, training rows"):
            for rows, damping in zip(values, dampings[places], strict=True):
                solution = factorization.solve(G[present], damping=damping)
                x = solution.x.cpu().numpy()
                if (met := solution.info.get("converged")) is not None:
                    x[~met.cpu().numpy()] = np.nan
                rows[present] = x
        return values

    axis, size = DampingAxis.of(bench, method), bench.require("model").attrs["info"]["parameters"]
    dtype = np.dtype(bench.settings.compute.dtype)
    chunk = max(1, min(len(train), bench.settings.compute.block_bytes // (size * dtype.itemsize)))
    variable = axis.variable(
        "parameter_influences",
        *(("train", len(train), chunk), ("param", size, size)),
        dtype=dtype.name,
        about=wording_of(bench, method).parameter_influences(),
    )
    labels = (*train.coordinates, axis.coordinate)
    layout = Layout((variable,), labels, methods.method_attributes(bench, method))
    return _labelled(bench, layout, variable, block)


def block_influences(
    store: Store, method: str, blocks: "Blocks | None" = None, project: Path | None = None
) -> xr.DataArray:
    """The share of each block of parameters in the influences, dims `(block, …, test, train)`.

    Shares add up to the stored influences. `blocks` are those of the method's settings, or those
    that are asked for here: any factors can be cut, whatever the curvature couples.
    """
    from influence_dag.influence.upweighting import influences
    from influence_dag.solvers.blocks import parameter_blocks, split_by_block

    bench = workbench_of(store, method, project)
    check_influences(bench, method)
    if blocks is None:
        blocks = bench.settings.methods[method].blocks
    positions = parameter_blocks(reading.parameter_slices(bench), blocks)
    names = list(positions)

    def block(tile: Tile) -> np.ndarray:
        which, places, tests, trains = tile.region
        G = reading.load_gradients(bench, trains)
        index = {name: positions[name] for name in names[which]}
        values = []
        for k in range(places.start, places.stop):
            s = reading.load_factors(bench, method, tests, k)
            shares = split_by_block(s, index).values()
            values.append(np.stack([influences(share, G).cpu().numpy() for share in shares]))
        return np.stack(values, axis=1)

    test = bench.axis(naming.factors(method), "test")
    train = bench.axis(naming.GRADIENTS, "train")
    axis, entry = DampingAxis.of(bench, method), _entry(store, method)
    variable = Variable(
        "block_influences",
        ("block", DAMPING, "test", "train"),
        (len(names), len(axis), len(test), len(train)),
        entry.dtype,
        (1, 1, *entry.chunks[-2:]),
        wording_of(bench, method).block_influences(),
    )
    labels = Coordinate("block", ("block",), np.array(names, np.dtypes.StringDType()))
    coordinates = (labels, *test.coordinates, *train.coordinates, axis.coordinate)
    layout = Layout((variable,), coordinates, methods.method_attributes(bench, method))
    return _labelled(bench, layout, variable, block)


def position_influences(store: Store, method: str, project: Path | None = None) -> xr.DataArray:
    """The share of each position of a training row, dims `(…, test, train, position)`.

    Shares add up to the stored influences; 0 where a target is ignored. Computed on demand.
    """
    from influence_dag.influence.positions import position_influences, positions_of
    from influence_dag.stages.reading import load_objective, load_rows

    bench = workbench_of(store, method, project)
    check_influences(bench, method, rows="dataset")
    train = bench.axis("dataset", "train")
    with bench.modes():
        objective = load_objective(bench)
        shape = positions_of(objective, load_rows(bench, train, train.slots[:1]))

    def block(tile: Tile) -> np.ndarray:
        places, tests, slots, *_ = tile.region
        present = np.flatnonzero(train.valid[slots])
        rows = load_rows(bench, train, present + slots.start)
        values = np.full(tile.shape, np.nan, variable.dtype)
        for k, part in enumerate(values, places.start):
            s = reading.load_factors(bench, method, tests, k)
            part[:, present] = position_influences(s, objective, rows).cpu().numpy()
        return values

    test, axis = bench.axis(naming.factors(method), "test"), DampingAxis.of(bench, method)
    entry = _entry(store, method)
    names = ("position",) if len(shape) == 1 else tuple(f"position_{k}" for k in range(len(shape)))
    variable = axis.variable(
        "position_influences",
        *zip(("test", "train"), (len(test), len(train)), entry.chunks[-2:], strict=True),
        *zip(names, shape, shape, strict=True),
        dtype=entry.dtype,
        about=wording_of(bench, method).position_influences(),
    )
    places = (Coordinate(n, (n,), np.arange(k)) for n, k in zip(names, shape, strict=True))
    coordinates = (*test.coordinates, *train.coordinates, axis.coordinate, *places)
    layout = Layout((variable,), coordinates, methods.method_attributes(bench, method))
    return _labelled(bench, layout, variable, block)


def _entry(store: Store, method: str) -> Variable:
    """The stored influences, by which others are cut alike."""
    return store.version(naming.influences(method)).variables["influences"]


def _labelled(bench: "Workbench", layout: Layout, whole: Variable, compute: Block) -> xr.DataArray:
    """A dask array with a block for each chunk, and the labels; of one λ without its axis."""
    layout = stored(layout)
    variable, place = layout[whole.name], whole.dims.index(DAMPING)
    hidden = variable.dims != whole.dims

    def block(block_info: Mapping[Any, Any]) -> np.ndarray:
        where = list(block_info[None]["array-location"])
        where[place:place] = [(0, 1)] if hidden else []
        start, stop = zip(*where, strict=True)
        with _ONE_AT_A_TIME, bench.modes():
            values = compute(Tile(start, stop, ()))
        return values.squeeze(place) if hidden else values

    empty = np.empty((0,) * len(variable.shape), variable.dtype)
    sizes = normalize_chunks(variable.chunks, variable.shape)
    name = f"{variable.name}-{uuid4().hex}"  # else that of the code, which other arrays have too
    array = da.map_blocks(block, name=name, chunks=sizes, dtype=variable.dtype, meta=empty)
    coordinates = {item.name: (item.dims, item.values) for item in layout.coordinates}
    variables = {variable.name: (variable.dims, array, variable.attrs)}
    return without_holes(xr.Dataset(variables, coordinates, layout.attrs))[variable.name]
