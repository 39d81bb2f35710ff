"""Perturbation influences `∂/∂x (s_testᵀ ∇θ L(x, y))`, streamed to the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.errors import ModelError, StudyError
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import methods, naming, reading
from influence_dag.stages.blocks import Tile, pieces
from influence_dag.stages.dampings import DAMPING, DampingAxis, stored
from influence_dag.stages.driver import Part, refresh_blocks
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.reading import load_rows, shared_objective
from influence_dag.stages.tasks import Compute, Kernel
from influence_dag.stages.updates import Update
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Coordinate, Layout, Variable
from influence_dag.study.base import readable_bytes

FORMULA = FORMULAS["perturbation"]
NAME = "perturbation_influences"


def refresh(bench: Workbench, method: str) -> Update:
    """Compute the blocks whose factors or training rows changed."""
    test, train = _axes(bench, method)
    layout = layout_of(bench, method)
    _check_budget(bench, stored(layout))
    parts = [
        _part(bench, method, variable, layout.attrs["base_key"]) for variable in layout.variables
    ]
    numbers = sum(int(np.prod(variable.shape)) for variable in layout.variables)
    info = {
        "method": method,
        "test_rows": test.count,
        "train_rows": train.count,
        "numbers": numbers,
    }
    return refresh_blocks(bench, naming.perturbation(method), layout, parts, info=info)


def _axes(bench: Workbench, method: str) -> tuple[Axis, Axis]:
    return bench.axis(naming.factors(method), "test"), bench.axis("dataset", "train")


def layout_of(bench: Workbench, method: str) -> Layout:
    """What the artifact looks like: a variable for each input of the model."""
    test, train = _axes(bench, method)
    wrt = _point(bench)
    key = bench.require(naming.factors(method)).attrs["base_key"]
    base = fingerprint(NAME, FORMULA, key, *(() if wrt is None else (wrt,)))
    inputs = _inputs(bench) if wrt is None else _output(bench, train, wrt)
    return _layout(bench, method, test, train, base, inputs)


def _part(bench: Workbench, method: str, variable: Variable, base: str) -> Part:
    (test, train), axis = _axes(bench, method), DampingAxis.of(bench, method)
    _, test_chunk, train_chunk, *_ = variable.chunks
    keys = axis.keys(base, test.digests(test_chunk), train.digests(train_chunk))
    return Part((variable.name,), keys, DerivativesOfPairs.of(method, variable))


_UNIT = "original units in one of the model's; divided by it, entries are per original unit"

Inputs = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]


def _point(bench: Workbench) -> str | None:
    """The module in whose output the derivative is; None: in the inputs."""
    asked = bench.settings.perturbation
    return asked and asked.wrt


def _output(bench: Workbench, train: Axis, wrt: str) -> Inputs:
    """As `_inputs`, of what a module puts out for one row."""
    from influence_dag.influence.points import module_output

    rows = load_rows(bench, train, train.slots[:2])
    shape = tuple(module_output(shared_objective(bench), rows, wrt).shape[1:])
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
    axis = DampingAxis.of(bench, method)
    pairs = (len(test), len(train))
    variables = tuple(
        _variable(bench, method, name, len(axis), pairs, *feature)
        for name, feature in inputs.items()
    )
    wrt = _point(bench)
    about = {"scale": bench.settings.data.features.scale} if wrt is None else {"wrt": wrt}
    attrs = methods.method_attributes(bench, method, base_key=base, **about)
    labels = (*test.coordinates, *train.coordinates, axis.coordinate, *_feature_coordinates(bench))
    return Layout(variables, labels, attrs, provenance())


def _variable(bench, method, name, dampings, pairs, feature_dims, feature_shape) -> Variable:
    dtype = np.dtype(bench.settings.compute.dtype)
    values = max(1, int(np.prod(feature_shape)))
    chunks = bench.pair_chunks(naming.perturbation(method), name, pairs, dtype.itemsize, values)
    return Variable(
        name,
        (DAMPING, "test", "train", *feature_dims),
        (dampings, *pairs, *feature_shape),
        dtype.str,
        (1, *chunks, *feature_shape),
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


@dataclass(frozen=True)
class DerivativesOfPairs(Kernel):
    """Blocks of one variable: of each pair of rows, a derivative of shape `feature`."""

    method: str
    variable: str
    feature: tuple[int, ...]

    @classmethod
    def of(cls, method: str, variable: Variable) -> "DerivativesOfPairs":
        _, _, _, *feature = variable.shape
        return cls(method, variable.name, tuple(feature))

    def at(self, bench: Workbench) -> Compute:
        return _Derivatives(bench, self)


class _Derivatives:
    """Computes tiles of one variable; NaN where a row is missing."""

    def __init__(self, bench: Workbench, kernel: DerivativesOfPairs):
        self.bench, self.kernel, self.wrt = bench, kernel, _point(bench)
        self.test, self.train = _axes(bench, kernel.method)
        self.objective = shared_objective(bench)
        compute = bench.settings.compute
        row_bytes = self.objective.size * np.dtype(compute.dtype).itemsize
        self._rows_at_once = max(1, compute.block_bytes // row_bytes)  # factors in a block

    def __call__(self, tile: Tile) -> dict[str, np.ndarray]:
        places, tests, trains = tile.region
        blocks = [self._one(tests, trains, k) for k in range(places.start, places.stop)]
        return {self.kernel.variable: np.stack(blocks)}

    def _one(self, tests: slice, trains: slice, place: int) -> np.ndarray:
        from influence_dag.influence import perturbation_influences

        present = np.flatnonzero(self.train.valid[trains])
        shape = (tests.stop - tests.start, trains.stop - trains.start, *self.kernel.feature)
        block = np.full(shape, np.nan, self.bench.settings.compute.dtype)
        if not len(present):
            return block
        rows = load_rows(self.bench, self.train, trains.start + present)
        for test in pieces(tests.start, tests.stop, self._rows_at_once):
            asked = np.flatnonzero(self.test.valid[test])
            if not len(asked):
                continue
            s = reading.load_factors(self.bench, self.kernel.method, test, place)[asked]
            with self._named(trains.start + present):
                values = perturbation_influences(self.objective, s, rows, wrt=self.wrt)
            if isinstance(values, dict):
                values = values[self.kernel.variable.removeprefix(f"{NAME}_")]
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
                f"{naming.perturbation(self.kernel.method)}: {said}", row=error.row
            ) from error
