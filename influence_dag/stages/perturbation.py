"""Perturbation influences `∂/∂x (s_testᵀ ∇θ L(x, y))`, streamed to the store."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.errors import ModelError, StudyError
from influence_dag.fingerprints import fingerprint, grid_keys
from influence_dag.influence.points import module_output
from influence_dag.influence.upweighting import perturbation_influences
from influence_dag.objective.objective import Objective
from influence_dag.stages import methods, naming, reading
from influence_dag.stages.blocks import pieces
from influence_dag.stages.dampings import damping_axis, damping_digests
from influence_dag.stages.driver import Part, refresh_blocks
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.reading import load_objective, load_rows
from influence_dag.stages.updates import Update
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Coordinate, Layout, Variable
from influence_dag.store.layout import pair_chunks
from influence_dag.study.base import readable_bytes

FORMULA = FORMULAS["perturbation"]
NAME = "perturbation_influences"


def refresh(bench: Workbench, method: str) -> Update:
    """Compute the blocks whose factors or training rows changed."""
    layout, kernel = prepare(bench, method)
    _check_budget(bench, layout)
    parts = [
        _part(bench, kernel, variable, layout.attrs["base_key"]) for variable in layout.variables
    ]
    numbers = sum(int(np.prod(variable.shape)) for variable in layout.variables)
    info = {
        "method": method,
        "test_rows": kernel.test.count,
        "train_rows": kernel.train.count,
        "numbers": numbers,
    }
    return refresh_blocks(bench, naming.perturbation(method), layout, parts, info=info)


def prepare(bench: Workbench, method: str) -> tuple[Layout, "Kernel"]:
    """What the artifact looks like, and what computes its blocks."""
    test, train = bench.axis(naming.factors(method), "test"), bench.axis("dataset", "train")
    wrt = _point(bench)
    key = bench.require(naming.factors(method)).attrs["base_key"]
    base = fingerprint(NAME, FORMULA, key, *(() if wrt is None else (wrt,)))
    inputs = _inputs(bench) if wrt is None else _output(bench, train, wrt)
    layout = _layout(bench, method, test, train, base, inputs)
    shapes = {name: shape for name, (_, shape) in inputs.items()}
    return layout, Kernel(bench, method, test, train, shapes, wrt)


def _part(bench: Workbench, kernel: "Kernel", variable: Variable, base: str) -> Part:
    digests = damping_digests(bench)
    test_chunk, train_chunk = variable.chunks[len(digests) : len(digests) + 2]
    keys = grid_keys(
        base, *digests, kernel.test.digests(test_chunk), kernel.train.digests(train_chunk)
    )
    return Part(
        (variable.name,),
        keys,
        lambda tile: {variable.name: kernel.block(variable.name, tile.start, tile.stop)},
    )


_UNIT = "original units in one of the model's; divided by it, entries are per original unit"

Inputs = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]


def _point(bench: Workbench) -> str | None:
    """The module in whose output the derivative is; None: in the inputs."""
    asked = bench.settings.perturbation
    return asked and asked.wrt


def _output(bench: Workbench, train: Axis, wrt: str) -> Inputs:
    """As `_inputs`, of what a module puts out for one row."""
    rows = load_rows(bench, train, train.slots[:2])
    shape = tuple(module_output(load_objective(bench), rows, wrt).shape[1:])
    name = wrt.replace(".", "_")
    return {NAME: (tuple(f"{name}_{k}" for k in range(len(shape))), shape)}


def _inputs(bench: Workbench) -> Inputs:
    """Variable name → (feature dims, feature shape) of each input of the model."""
    dataset = bench.require("dataset")
    names = list(dataset.attrs["inputs"])
    if len(names) == 1:
        return {
            NAME: (tuple(dataset.attrs["feature_dims"]), dataset.variables["train_x"].shape[1:])
        }
    shapes = {name: dataset.variables[f"train_x_{name}"].shape[1:] for name in names}
    return {
        f"{NAME}_{name}": (tuple(f"{name}_{k}" for k in range(len(shape))), shape)
        for name, shape in shapes.items()
    }


def _layout(
    bench: Workbench, method: str, test: Axis, train: Axis, base: str, inputs: Inputs
) -> Layout:
    dims, sizes, coordinates = damping_axis(bench, method)
    variables = tuple(
        _variable(bench, method, name, dims, sizes, (len(test), len(train)), *feature)
        for name, feature in inputs.items()
    )
    wrt = _point(bench)
    about = {"scale": bench.settings.data.features.scale} if wrt is None else {"wrt": wrt}
    attrs = methods.method_attributes(bench, method, base_key=base, **about)
    labels = (*test.coordinates, *train.coordinates, *coordinates, *_feature_coordinates(bench))
    return Layout(variables, labels, attrs, provenance())


def _variable(bench, method, name, dims, sizes, pair, feature_dims, feature_shape) -> Variable:
    dtype = np.dtype(bench.settings.compute.dtype)
    override = bench.chunk_override
    values = max(1, int(np.prod(feature_shape)))
    chunks = pair_chunks(*pair, itemsize=dtype.itemsize, values_per_pair=values, override=override)
    ones = (1,) * len(sizes)
    if not override:
        chunks = bench.stable_chunks(naming.perturbation(method), name, (*ones, *chunks))[-2:]
    return Variable(
        name,
        (*dims, "test", "train", *feature_dims),
        (*sizes, *pair, *feature_shape),
        dtype.str,
        (*ones, *chunks, *feature_shape),
        _words(bench, method),
        max_relative_error=bench.settings.store.max_relative_error,
    )


def _words(bench: Workbench, method: str) -> dict[str, str]:
    wrt, words = _point(bench), wording_of(bench, method)
    if wrt is not None:
        return words.perturbation(f"the output of module {wrt!r} (a)", "component", "a")
    if bench.settings.data.features.standardise:
        seen = "the model's input ((column times `scale` - mean) / `feature_scale`)"
        return words.perturbation(seen, "feature")
    return words.perturbation("the model's input (the column times `scale`)", "feature")


def _feature_coordinates(bench: Workbench) -> list[Coordinate]:
    if _point(bench) is not None:
        return []
    dataset = bench.require("dataset")
    dims = dataset.attrs["feature_dims"] if len(dataset.attrs["inputs"]) == 1 else []
    return [
        Coordinate(
            dim, (dim,), dataset.coordinate(dim), {"long_name": f"{dim} of the model's input"}
        )
        for dim in dims
        if dim in dataset.coordinates
    ] + _units(bench)


def _units(bench: Workbench) -> list[Coordinate]:
    """Of a standardised input, what one of the model's units is in the file's."""
    dataset = bench.require("dataset")
    if "feature_scale" not in dataset.coordinates:
        return []
    values = dataset.coordinate("feature_scale") / bench.settings.data.features.scale
    dims = tuple(dataset.attrs["feature_dims"])
    return [Coordinate("feature_unit", dims, values, {"long_name": _UNIT})]


def _check_budget(bench: Workbench, layout: Layout) -> None:
    assert bench.settings.perturbation is not None
    limit = bench.settings.perturbation.max_bytes
    size = sum(
        int(np.prod(v.shape, dtype=np.int64)) * np.dtype(v.dtype).itemsize for v in layout.variables
    )
    if size > limit:
        shapes = ", ".join(" × ".join(f"{n:,}" for n in v.shape) for v in layout.variables)
        raise StudyError(
            f"{bench.study.name}: perturbation influences would take {readable_bytes(size)} "
            f"({shapes}), the limit perturbation.max_bytes is {readable_bytes(limit)}; raise it, "
            "use fewer rows, or slice the lazy form (open_study(...).lazy_perturbation(method)), "
            "which stores nothing"
        )


class Kernel:
    """Computes blocks; the model is loaded when the first one is asked for."""

    def __init__(
        self,
        bench: Workbench,
        method: str,
        test: Axis,
        train: Axis,
        shapes: Mapping[str, tuple[int, ...]],
        wrt: str | None,
    ):
        self.bench, self.method, self.test, self.train = bench, method, test, train
        self.shapes, self.wrt = shapes, wrt

    @cached_property
    def objective(self) -> Objective:
        return load_objective(self.bench)

    @cached_property
    def _rows_at_once(self) -> int:
        """Factors that fit into a block."""
        itemsize = np.dtype(self.bench.settings.compute.dtype).itemsize
        return max(1, self.bench.settings.compute.block_bytes // (self.objective.size * itemsize))

    def block(self, name: str, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """One rectangle of the array `name`; NaN where a row is missing."""
        lead = len(damping_digests(self.bench))
        tests, trains = (slice(start[lead + k], stop[lead + k]) for k in (0, 1))
        dampings = range(start[0], stop[0]) if lead else [None]
        blocks = [self._one(tests, trains, damping, name) for damping in dampings]
        return np.stack(blocks) if lead else blocks[0]

    def _one(self, tests: slice, trains: slice, damping: int | None, name: str) -> np.ndarray:
        present = np.flatnonzero(self.train.valid[trains])
        shape = (
            tests.stop - tests.start,
            trains.stop - trains.start,
            *self.shapes[name],
        )
        block = np.full(shape, np.nan, self.bench.settings.compute.dtype)
        if not len(present):
            return block
        rows = load_rows(self.bench, self.train, trains.start + present)
        for test in pieces(tests.start, tests.stop, self._rows_at_once):
            asked = np.flatnonzero(self.test.valid[test])
            if not len(asked):
                continue
            s = reading.load_factors(self.bench, self.method, test, damping)[asked]
            with self._named(trains.start + present):
                values = perturbation_influences(self.objective, s, rows, wrt=self.wrt)
            if isinstance(values, dict):
                values = values[name.removeprefix(f"{NAME}_")]
            at = test.start - tests.start + asked
            block[np.ix_(at, present)] = values.cpu().numpy()
        return block

    @contextmanager
    def _named(self, slots: np.ndarray) -> Iterator[None]:
        """What is said of a training row inside is said with its id."""
        try:
            yield
        except ModelError as error:
            if error.row is None:
                raise
            row = repr(str(self.train.ids[slots[error.row]]))
            said = str(error).replace(f"training row {error.row} ", f"training row {row} ")
            raise ModelError(
                f"{naming.perturbation(self.method)}: {said}", row=error.row
            ) from error
