"""What stored artifacts hold, as values: rows, the model with its loss, gradients, factors."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.slots import Axis, Split
from influence_dag.errors import DataError, ModelError, NotConvergedError
from influence_dag.gradients.layouts import GradientLayout
from influence_dag.stages import dampings, naming
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version
from influence_dag.study.imported import import_callable
from influence_dag.study.model import LOSSES
from influence_dag.study.study import Study

if TYPE_CHECKING:  # a plan reads none of it: what computes imports torch
    import torch
    from torch import nn

    from influence_dag.gradients import Gradients
    from influence_dag.objective import LossFunction, Objective, Rows
    from influence_dag.objective.batching import Of


def load_rows(
    bench: Workbench,
    axis: Axis,
    index: slice | np.ndarray | None = None,
    *,
    dtype: "torch.dtype | None" = None,
    version: Version | None = None,
) -> "Rows":
    """Rows of the dataset artifact as tensors; by default every row that exists, without holes.

    Training rows come with their weights where the study names some.
    """
    import torch

    from influence_dag.objective import Rows

    version = version or bench.require("dataset")
    slots = axis.slots if index is None else np.arange(len(axis))[index]
    split: Split = axis.name
    first, last = (int(slots[0]), int(slots[-1])) if len(slots) else (0, -1)
    is_run = last - first + 1 == len(slots) and bool((np.diff(slots) == 1).all())

    def named(row: int) -> str:
        return f"{version.attrs[f'{split}_source']}: id {str(axis.ids[slots[row]])!r}"

    def read(name: str) -> "torch.Tensor":
        if is_run:
            values = version.read(name, slice(first, last + 1))
        else:
            values = np.asarray(version.array(name).oindex[slots])
        wanted = dtype or bench.dtype
        if values.dtype.kind == "f" and values.dtype.itemsize > wanted.itemsize:
            told = "target" if name.endswith("_y") else name.partition("_")[2]
            _check_held(values, wanted, name=told, row_name=named)
            if told == "weight" and ((values > 0) & (values < torch.finfo(wanted).tiny)).any():
                largest = float(np.nanmax(version.read(name)))
                _check_counts(values, wanted, largest=largest, row_name=named)
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(bench.device)
        return tensor.to(wanted) if tensor.is_floating_point() else tensor

    names = list(version.attrs["inputs"])
    several = {name: f"{split}_x_{name}" for name in names} if len(names) > 1 else {}
    x = {name: read(each) for name, each in several.items()} or read(f"{split}_x")
    weights = read(f"{split}_weight") if f"{split}_weight" in version.variables else None
    return Rows(x, read(f"{split}_y"), weights)


def _check_held(
    values: np.ndarray, dtype: "torch.dtype", *, name: str, row_name: Callable[[int], str]
) -> None:
    """Raise `DataError` for a number of some rows that is infinite in a smaller precision.

    Files are looked at when they are read, in the precision that the study has then.
    """
    import torch

    if max(values.max(initial=0), -values.min(initial=0)) <= torch.finfo(dtype).max:
        return  # a hole is NaN, and looked at below
    from influence_dag.datasets.sources.numbers import check_precision

    check_precision(values, str(dtype).removeprefix("torch."), name=name, row_name=row_name)


def _check_counts(
    weights: np.ndarray, dtype: "torch.dtype", *, largest: float, row_name: Callable[[int], str]
) -> None:
    """Raise `DataError` for weights that are 0 in a smaller precision, and count beside others."""
    from influence_dag.datasets.sources.numbers import check_weights_held

    held = str(dtype).removeprefix("torch.")
    check_weights_held(weights, held, name="weight", largest=largest, row_name=row_name)


def rows_in_blocks(
    bench: Workbench,
    axis: Axis,
    version: Version,
    dtype: "torch.dtype",
    slots: np.ndarray | None = None,
) -> "Rows":
    """Every row that exists, of whose inputs a block is in memory at a time.

    In the order of `slots`, if given. As they are stored they know which draw is each row's.
    """
    import torch

    from influence_dag.stages.blocks_of_rows import FEWEST, BlocksOfRows
    from influence_dag.structures import tensors_of

    ranks = torch.from_numpy(np.argsort(axis.drawn)) if slots is None else None
    slots = axis.slots if slots is None else slots

    def load(positions: np.ndarray) -> "Rows":
        return load_rows(bench, axis, slots[positions], dtype=dtype, version=version)

    def whole(name: str) -> "torch.Tensor":
        values = torch.from_numpy(version.read(name)[slots]).to(bench.device)
        return values.to(dtype) if values.is_floating_point() else values

    weights = f"{axis.name}_weight"
    row_bytes = sum(leaf.nbytes for leaf in tensors_of(load(np.arange(1)).x))
    return BlocksOfRows(
        load,
        whole(f"{axis.name}_y"),
        whole(weights) if weights in version.variables else None,
        max(FEWEST, bench.settings.compute.block_bytes // max(row_bytes, 1)),
        ranks,
    )


def weight_sum(bench: Workbench, train: Axis, *, version: Version | None = None) -> float:
    """`Σ w_i` of training rows, by which means over them are divided: their number without weights.

    `version` is the one of the dataset that has them, by default the current one.
    """
    version = version or bench.require("dataset")
    if "train_weight" not in version.variables:
        return float(train.count)
    return float(version.read("train_weight")[train.slots].sum())


def check_rows(
    objective: "Objective", rows: "Rows", axis: Axis, slots: np.ndarray, *, of: "Of" = "loss"
) -> None:
    """Raise `ModelError` for rows, named by their ids, that do not stand for themselves.

    Those that the model's stage has met were seen then (`were_met`); others, of the test split or
    added since at a pinned θ, are seen when they are first differentiated.
    """
    from influence_dag.objective.batching import check_all_rows

    with naming_rows(axis, slots):
        check_all_rows(objective, rows, of=of)


@contextmanager
def naming_rows(axis: Axis, slots: np.ndarray | None = None) -> Iterator[None]:
    """What is said of a row inside, of those in these slots or of all, is said with its id."""
    try:
        yield
    except ModelError as error:
        if error.row is None:
            raise
        name = str(axis.ids[(axis.slots if slots is None else slots)[error.row]])
        said = str(error).removeprefix(f"row {error.row}: ")
        raise ModelError(f"{axis.name} row {name!r}: {said}", row=error.row) from error


@contextmanager
def naming_targets(source: str, ids: np.ndarray, column: str) -> Iterator[None]:
    """What is said of a row's target inside is a `DataError` with its file, id and column."""
    try:
        yield
    except ModelError as error:
        if error.row is None:
            raise
        said = str(error).removeprefix(f"row {error.row} has ")
        row = str(ids[error.row])
        raise DataError(f"{source}: row {row!r}, column {column!r}: {said}") from error


@contextmanager
def named_rows(ids: np.ndarray, what: str) -> Iterator[None]:
    """Solves inside say which rows missed the tolerance by their ids."""
    try:
        yield
    except NotConvergedError as error:
        named = error.named(list(ids))
        raise NotConvergedError(f"{what}: {named}", rows=named.rows) from error


def study_objective(study: Study, module: "nn.Module") -> "Objective":
    """The module with the study's loss, measurement and choice of output."""
    from influence_dag.objective import Objective

    model = study.settings.model
    measured = model.measurement and import_callable(
        model.measurement, study.root, "model.measurement"
    )
    return Objective(module, study_loss(study), measurement=measured or None, output=model.output)


def study_loss(study: Study) -> "LossFunction":
    """The study's loss, one value per sample."""
    from influence_dag.objective import per_sample_loss

    loss = study.settings.model.loss
    return per_sample_loss(
        loss if loss in LOSSES else import_callable(loss, study.root, "model.loss")
    )


def load_objective(bench: Workbench, *, dtype: "torch.dtype | None" = None) -> "Objective":
    """The stored model and its loss (and measurement) in the study's precision, on its device."""
    import torch

    from influence_dag.objective import modules

    settings, study = bench.settings.model, bench.study
    version = bench.require(naming.MODEL)
    module = modules.build_module(settings, study.root, torch.float64)
    load_state_of(version, module)
    module.eval().to(device=bench.device, dtype=dtype or bench.dtype)
    return study_objective(study, module)


def load_state_of(version: Version, module: "nn.Module") -> None:
    """Give a module the θ that a version of the model holds."""
    from influence_dag.objective import modules

    file = "model.safetensors"
    modules.load_state(module, version.file(file), f"{version.address}/{file}")


def shared_objective(bench: Workbench) -> "Objective":
    """`load_objective`, done once for all that asks for it within a stage."""
    return bench.once("objective", lambda: load_objective(bench))


def parameter_slices(bench: Workbench) -> dict[str, slice]:
    """Where each named parameter lies in the parameter vector."""
    attrs = bench.require("model").attrs
    sizes = [math.prod(shape) for shape in attrs["parameter_shapes"]]
    ends = list(itertools.accumulate(sizes))
    names = attrs["parameter_names"]
    return {n: slice(end - size, end) for n, size, end in zip(names, sizes, ends, strict=True)}


def gradient_layout_of(bench: Workbench) -> GradientLayout:
    """How the stored gradients are kept."""
    return GradientLayout.from_json(bench.require(naming.GRADIENTS).attrs["gradient_layout"])


def load_gradients(bench: Workbench, slots: slice) -> "Gradients":
    """A run of stored gradients on the study's device."""
    import torch

    from influence_dag.gradients import Gradients

    version, captured = bench.require(naming.GRADIENTS), gradient_layout_of(bench)
    tensors = {
        name: torch.from_numpy(version.read(naming.array_name(name), slots)).to(bench.device)
        for name in captured.row_shapes
    }
    return Gradients.assembled(captured, tensors)


def load_factors(bench: Workbench, method: str, slots: slice, place: int) -> "torch.Tensor":
    """A run of stored factors, `(test, param)`, at the λ at this place of the axis."""
    import torch

    from influence_dag.objective.objective import without_denormal_entries

    version = bench.require(naming.factors(method))
    values = dampings.at(version, "influence_factors", place, slots)
    return without_denormal_entries(torch.from_numpy(values).to(bench.device))
