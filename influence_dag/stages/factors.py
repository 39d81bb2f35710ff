"""Influence factors `(H + λI)⁻¹ ∇θ L(z_test)`, one row a test row."""

import json
from collections.abc import Iterator

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import dampings, methods, naming, sampling
from influence_dag.stages.blocks import Tile
from influence_dag.stages.dampings import DampingAxis
from influence_dag.stages.driver import Part, refresh_blocks
from influence_dag.stages.methods import method_attributes
from influence_dag.stages.solving import SolvesOfRows, curve_steps
from influence_dag.stages.tasks import Arrays
from influence_dag.stages.updates import Update
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Coordinate, Layout

_CURVE = "relative residual by iteration; from where the row stopped, its last"
_OF_PLACES = ("compute", "store", "dagster", "refresh")
PER_ROW = {"niter": "iterations", "converged": "1 where the tolerance was met"}


def refresh(bench: Workbench, method: str) -> Update:
    """Solve for the test rows whose block is not stored under its key."""
    test, axis = bench.axis("dataset", "test"), DampingAxis.of(bench, method)
    size = bench.require("model").attrs["info"]["parameters"]
    methods.check_curvature(bench, method)
    base = methods.factors_key(bench, method)
    layout = _layout(bench, method, test, axis, size, base)
    names = tuple(variable.name for variable in layout.variables)
    keys = axis.keys(base, test.digests(layout.variables[0].chunks[-2]))

    def tell(tile: Tile, arrays: Arrays) -> None:
        for said in _late(method, test, tile, arrays):
            bench.report(said)

    part = Part(names, keys, SolvesOfRows(method, names), tell=tell)
    info, notes = _info(bench, method, test), {} if bench.plan_only else _settings_told(bench)
    return refresh_blocks(bench, naming.factors(method), layout, [part], info=info, notes=notes)


def _layout(
    bench: Workbench, method: str, test: Axis, axis: DampingAxis, size: int, base: str
) -> Layout:
    dtype, words = np.dtype(bench.settings.compute.dtype), wording_of(bench, method)
    name = naming.factors(method)
    chunk = bench.row_chunk(
        name, "influence_factors", "test", len(test), row_bytes=size * dtype.itemsize
    )
    rows, about = ("test", len(test), chunk), words.factors()
    factors = axis.variable(
        "influence_factors", rows, ("param", size, size), dtype=dtype.str, about=about
    )
    iterative = bench.settings.methods[method].is_iterative
    said = {"residual": words.residual(), **PER_ROW}
    sampled = sampling.of_method(bench, method).attributes
    per_row = tuple(
        axis.variable(
            info,
            rows,
            dtype="float32",
            about={"long_name": said[info], **(sampled if info == "residual" else {})},
            coordinate=True,
        )
        for info in ("residual", *(("niter", "converged") if iterative else ()))
    )
    coordinates: tuple[Coordinate, ...] = (*test.coordinates, axis.coordinate)
    if iterative:
        steps = curve_steps(bench, method, size)
        iterations, about = ("iteration", len(steps), len(steps)), {"long_name": _CURVE}
        per_row += (
            axis.variable(
                "residual_history", rows, iterations, dtype="float32", about=about, coordinate=True
            ),
        )
        about = {"long_name": "iteration, on a logarithmic scale"}
        coordinates += (Coordinate("iteration", ("iteration",), steps, about),)
    attrs = method_attributes(bench, method, base_key=base)
    known = {"settings": bench.settings.model_dump(mode="json")}
    made = {**provenance(), "study_settings": json.dumps(known)}
    return Layout((factors, *per_row), coordinates, attrs, made)


def _settings_told(bench: Workbench) -> dict[str, str]:
    """Stands for the settings that what is made from stored factors later depends on.

    A version that says others is followed by one that says those of now, with the same blocks: no
    reason for a run, which what depends on them is. Where and how fast things are computed, kept
    and shown is no part of it.
    """
    told = bench.settings.model_dump(mode="json", exclude={*_OF_PLACES})
    return {"settings_told": fingerprint(told | {"data": bench.settings.data.reading})}


def _info(bench: Workbench, method: str, test: Axis) -> dict:
    known = list(dampings.of_method(bench, method))
    return {"method": method, "test_rows": test.count, "damping": known}


def _late(method: str, test: Axis, tile: Tile, arrays: Arrays) -> Iterator[str]:
    """Name the rows that are kept although they missed the tolerance, for each λ."""
    if "converged" not in arrays:
        return
    present = test.valid[tile.start[-1] : tile.stop[-1]]
    for each in arrays["converged"].reshape(-1, len(present)):
        late = np.flatnonzero(present & (each == 0))
        if len(late):
            names = ", ".join(map(str, test.ids[tile.start[-1] + late]))
            yield (
                f"{naming.factors(method)}: {len(late)} of {present.sum()} rows missed the "
                f"tolerance and are marked in `converged`: {names}"
            )
