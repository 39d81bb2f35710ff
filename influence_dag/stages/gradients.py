"""Per-sample gradients of the training rows, factored per layer."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.fingerprints import fingerprint, grid_keys
from influence_dag.gradients.layouts import GradientLayout
from influence_dag.gradients.uncaptured import without_uncaptured
from influence_dag.stages import naming
from influence_dag.stages.blocks import Tile
from influence_dag.stages.driver import Part, refresh_blocks
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.keys import model_key, were_met
from influence_dag.stages.reading import check_rows, load_rows, shared_objective
from influence_dag.stages.symbols import gradients_formula
from influence_dag.stages.tasks import Compute, Kernel
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Layout, Variable

if TYPE_CHECKING:
    from torch import Tensor

    from influence_dag.objective import Objective

FORMULA = FORMULAS["gradients"]


def refresh(bench: Workbench) -> Update:
    """∇θ L(z_i, θ) of every training row, as pairs (layer input, output gradient).

    A layer that some rows show not to be captured is kept dense for all of them, and stays so
    while θ and its code are the same.
    """
    known = _uncaptured(bench)
    return without_uncaptured(
        lambda names: _refresh(bench, names), without=known, report=bench.report
    )


def _uncaptured(bench: Workbench) -> list[str]:
    """Layers that rows of the stored version have shown not to be captured, with the same θ."""
    stored = bench.undamaged(naming.GRADIENTS)
    if stored is None or stored.attrs.get("model_key") != model_key(bench):
        return []
    return stored.attrs.get("uncaptured_layers", [])


def _refresh(bench: Workbench, without: frozenset[str]) -> Update:
    train = bench.axis("dataset", "train")
    captured = _known_layout(bench, without) or _found_layout(bench, without)
    base = fingerprint(naming.GRADIENTS, FORMULA, model_key(bench), captured.to_json())
    layout = _layout(bench, train, captured, base, without)
    keys = grid_keys(base, train.digests(layout.variables[0].chunks[0]))
    names = tuple(map(naming.array_name, captured.row_shapes))
    part = Part(names, keys, GradientsOfRows.of(captured))
    numbers = sum(int(np.prod(shape)) for shape in captured.row_shapes.values())
    info: dict[str, Any] = {
        "rows": train.count,
        "numbers_per_row": numbers,
        "parameters": captured.size,
    }
    if without:
        info["layers_row_by_row"] = ", ".join(sorted(without))
    return refresh_blocks(bench, naming.GRADIENTS, layout, [part], info=info)


def _known_layout(bench: Workbench, without: frozenset[str]) -> GradientLayout | None:
    """The stored version's layout, if it was found in the same way for rows of the same shape."""
    stored = bench.undamaged(naming.GRADIENTS)
    if stored is None or stored.attrs.get("layout_key") != _layout_key(bench, without):
        return None
    return GradientLayout.from_json(stored.attrs["gradient_layout"])


def _found_layout(bench: Workbench, without: frozenset[str]) -> GradientLayout:
    """The layout that the model shows for a few rows, stored ones while newer ones are planned."""
    from influence_dag.gradients import gradient_layout

    version = bench.store.version("dataset")
    axis = bench.axis_of(version, "train")
    few = load_rows(bench, axis, axis.slots[:2], version=version)
    return gradient_layout(shared_objective(bench), few, without=without)


def _layout_key(bench: Workbench, without: frozenset[str]) -> str:
    """What it depends on as what a layer is kept: formula, θ and code, and the shape of a row."""
    return fingerprint(FORMULA, model_key(bench), _row_shapes(bench), sorted(without))


def _row_shapes(bench: Workbench) -> dict[str, list[int]]:
    return {
        name: list(variable.shape[1:])
        for name, variable in bench.require("dataset").variables.items()
        if name.startswith(("train_x", "train_y"))
    }


def _layout(
    bench: Workbench, train: Axis, captured: GradientLayout, base: str, without: frozenset[str]
) -> Layout:
    dtype = np.dtype(bench.settings.compute.dtype)
    numbers = max(1, *(int(np.prod(shape)) for shape in captured.row_shapes.values()))
    row_bytes = numbers * dtype.itemsize
    shapes = {naming.array_name(name): shape for name, shape in captured.row_shapes.items()}
    first = next(iter(shapes))
    chunk = bench.row_chunk(naming.GRADIENTS, first, "train", len(train), row_bytes=row_bytes)
    variables = tuple(
        Variable(
            name,
            ("train", *(f"{name}_{k}" for k in range(len(shape)))),
            (len(train), *shape),
            dtype.str,
            (chunk, *shape),
            {"long_name": f"part of the per-sample gradient: {naming.tensor_name(name)}"},
        )
        for name, shape in shapes.items()
    )
    attrs = bench.attributes(
        base_key=base,
        gradient_layout=captured.to_json(),
        model_key=model_key(bench),
        layout_key=_layout_key(bench, without),
        uncaptured_layers=sorted(without),
        formula=gradients_formula(bench.require("dataset").attrs.get("weights", "none")),
    )
    return Layout(variables, train.coordinates, attrs, provenance())


@dataclass(frozen=True)
class GradientsOfRows(Kernel):
    """The captured tensors of a run of slots; NaN where a row is missing.

    `captured` is the layout of the tensors as JSON.
    """

    captured: str

    @classmethod
    def of(cls, captured: GradientLayout) -> "GradientsOfRows":
        return cls(json.dumps(captured.to_json()))

    def at(self, bench: Workbench) -> Compute:
        captured = GradientLayout.from_json(json.loads(self.captured))
        objective, train = shared_objective(bench), bench.axis("dataset", "train")

        def compute(tile: Tile) -> "dict[str, Tensor]":
            slots = slice(tile.start[0], tile.stop[0])
            block = _block(bench, train, objective, captured, slots)
            return {naming.array_name(name): tensor for name, tensor in block.items()}

        return compute


def _block(
    bench: Workbench, train: Axis, objective: "Objective", captured: GradientLayout, slots: slice
) -> "dict[str, Tensor]":
    """The captured tensors of a run of slots; NaN where a row is missing."""
    import torch

    from influence_dag.gradients import per_sample_gradients

    present = np.flatnonzero(train.valid[slots])
    rows = load_rows(bench, train, slots.start + present)
    count = slots.stop - slots.start
    tensors = {}
    if len(present):
        if not were_met(bench, train):
            check_rows(objective, rows, train, slots.start + present)
        gradients = per_sample_gradients(
            objective, rows, layout=captured, batch_size=bench.settings.compute.batch_size
        )
        tensors = gradients.tensors()
    if len(present) == count:
        return tensors
    at, place = torch.from_numpy(present).to(bench.device), {"device": bench.device}
    block = {
        name: torch.full((count, *shape), torch.nan, dtype=bench.dtype, **place)
        for name, shape in captured.row_shapes.items()
    }
    for name, tensor in tensors.items():
        block[name][at] = tensor.detach()
    return block
