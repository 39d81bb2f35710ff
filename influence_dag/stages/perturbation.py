"""Perturbation influences `∂/∂x (s_testᵀ ∇θ L(x, y))`, streamed to the store, whole or reduced."""

from typing import Any

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.errors import StudyError
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import methods, naming
from influence_dag.stages.dampings import DampingAxis, stored
from influence_dag.stages.derivatives import DerivativesOfPairs, axes, point
from influence_dag.stages.driver import Part, refresh_blocks
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.keys import model_key
from influence_dag.stages.naming import PERTURBATIONS
from influence_dag.stages.reading import load_rows, shared_objective
from influence_dag.stages.reduced import Form, Inputs
from influence_dag.stages.updates import Update
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Coordinate, Layout, Variable
from influence_dag.texts import readable_bytes

FORMULA = FORMULAS["perturbation"]


def refresh(bench: Workbench, method: str) -> Update:
    """Compute the blocks whose factors or training rows changed."""
    methods.check_factors(bench, method)
    test, train = axes(bench, method)
    form = _form(bench, method)
    layout = whole_layout(bench, method) if form is None else _reduced_layout(bench, method, form)
    _check_budget(bench, stored(layout))
    base = layout.attrs["base_key"]
    if form is None:
        parts = [_part(bench, method, variable, base) for variable in layout.variables]
    else:
        parts = [form.part(bench, layout.variables, base)]
    numbers = sum(int(np.prod(variable.shape)) for variable in layout.variables)
    info = {"method": method, "test_rows": test.count, "train_rows": train.count}
    info |= {"numbers": numbers}
    return refresh_blocks(bench, naming.perturbation(method), layout, parts, info=info)


def whole_layout(bench: Workbench, method: str) -> Layout:
    """Of all pairs and features: a variable for each input of the model."""
    test, train = axes(bench, method)
    axis, dtype = DampingAxis.of(bench, method), np.dtype(bench.settings.compute.dtype)
    pairs, at, variables = (len(test), len(train)), naming.perturbation(method), []
    for name, (dims, shape) in _inputs(bench).items():
        numbers = max(1, int(np.prod(shape)))
        chunks = bench.pair_chunks(at, name, pairs, dtype.itemsize, numbers)
        variable = axis.variable(
            name,
            *zip(("test", "train", *dims), (*pairs, *shape), (*chunks, *shape), strict=True),
            dtype=dtype.str,
            about=_words(bench, method),
            max_relative_error=bench.settings.store.max_relative_error,
        )
        variables.append(variable)
    labels = (*test.coordinates, *train.coordinates, *_feature_coordinates(bench))
    return _layout(bench, method, tuple(variables), labels, {})


def _form(bench: Workbench, method: str) -> Form | None:
    """The form that less than all is kept in; None: everything is."""
    assert bench.settings.perturbation is not None
    return Form.asked(bench.settings.perturbation, method, _inputs(bench))


def _reduced_layout(bench: Workbench, method: str, form: Form) -> Layout:
    variables = form.variables(bench, _words(bench, method))
    of_axes = [axis.coordinates for axis in axes(bench, method)]
    every = (*of_axes, _feature_coordinates(bench))
    chosen = zip(every, form.labelled, strict=True)
    labels = tuple(each for labels, is_kept in chosen if is_kept for each in labels)
    return _layout(bench, method, variables, labels, form.about)


def _layout(
    bench: Workbench,
    method: str,
    variables: tuple[Variable, ...],
    labels: tuple[Coordinate, ...],
    form: dict[str, Any],
) -> Layout:
    wrt = point(bench)
    about = {"scale": bench.settings.data.features.scale} if wrt is None else {"wrt": wrt}
    base = fingerprint(
        PERTURBATIONS, FORMULA, *_read(bench, method), *filter(None, [wrt]), *form.items()
    )
    attrs = methods.method_attributes(bench, method, base_key=base, **about, **form)
    coordinates = (*labels, DampingAxis.of(bench, method).coordinate)
    return Layout(variables, coordinates, attrs, provenance())


def _read(bench: Workbench, method: str) -> tuple[str, ...]:
    """Keys of what is read: of the factors, and of the code that differentiates the rows.

    Factors name the code that they were made with, which is that of now, unless it was edited in
    this run, that goes on with them.
    """
    made_with = bench.require(naming.factors(method)).attrs["base_key"]
    is_of_now = made_with == methods.factors_key(bench, method)
    return (made_with,) if is_of_now else (made_with, model_key(bench))


def _part(bench: Workbench, method: str, variable: Variable, base: str) -> Part:
    (test, train), axis = axes(bench, method), DampingAxis.of(bench, method)
    _, test_chunk, train_chunk, *_ = variable.chunks
    keys = axis.keys(base, test.digests(test_chunk), train.digests(train_chunk))
    return Part((variable.name,), keys, DerivativesOfPairs.of(method, variable))


_UNIT = "original units in one of the model's; divided by it, entries are per original unit"


def _inputs(bench: Workbench) -> Inputs:
    """Variable name → (feature dims, feature shape) of what the derivative is in."""
    dataset, wrt = bench.require("dataset"), point(bench)
    if wrt is not None:
        return _output(bench, bench.axis("dataset", "train"), wrt)
    names = list(dataset.attrs["inputs"])
    if len(names) == 1:
        shape = dataset.variables["train_x"].shape[1:]
        return {PERTURBATIONS: (tuple(dataset.attrs["feature_dims"]), shape)}
    stored = {name: dataset.variables[f"train_x_{name}"] for name in names}
    return {
        f"{PERTURBATIONS}_{name}": _numbered(name, each.shape[1:])
        for name, each in stored.items()
        if np.dtype(each.dtype).kind == "f"  # nothing can be differentiated by tokens
    } or {PERTURBATIONS: ((), ())}


def _numbered(name: str, shape: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return tuple(f"{name}_{k}" for k in range(len(shape))), shape


def _output(bench: Workbench, train: Axis, wrt: str) -> Inputs:
    """As `_inputs`, of what a module puts out for one row."""
    from influence_dag.influence.points import module_output

    rows = load_rows(bench, train, train.slots[:2])
    shape = tuple(module_output(shared_objective(bench), rows, wrt).shape[1:])
    return {PERTURBATIONS: _numbered(wrt.replace(".", "_"), shape)}


def _words(bench: Workbench, method: str) -> dict[str, str]:
    wrt, words = point(bench), wording_of(bench, method)
    if wrt is not None:
        return words.perturbation(f"the output of module {wrt!r} (a)", "component", "a")
    if bench.settings.data.features.standardise:
        seen = "the model's input ((column times `scale` - mean) / `feature_scale`)"
        return words.perturbation(seen, "feature")
    return words.perturbation("the model's input (the column times `scale`)", "feature")


def _feature_coordinates(bench: Workbench) -> list[Coordinate]:
    if point(bench) is not None:
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
            "keep less (perturbation.reduce, perturbation.pairs), use fewer rows, or slice the "
            "lazy form (open_study(...).lazy_perturbation(method)), which stores nothing"
        )
