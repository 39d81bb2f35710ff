"""The fitted module: built, fitted or loaded, and kept as a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from influence_dag.datasets.slots import SPLITS, Axis, Split
from influence_dag.errors import DataError, ModelError
from influence_dag.fingerprints import fingerprint
from influence_dag.gradients.stationarity import stationarity
from influence_dag.objective import modules
from influence_dag.objective.batching import Of, check_all_rows
from influence_dag.objective.checks import check_labels
from influence_dag.objective.objective import LossFunction, Objective, Rows, per_sample_loss
from influence_dag.stages.blocks_of_rows import FEWEST, BlocksOfRows
from influence_dag.stages.class_order import check_order
from influence_dag.stages.conditioning import unscaled_columns
from influence_dag.stages.driver import Whole, refresh_whole
from influence_dag.stages.features import check_features, feature_names
from influence_dag.stages.minimum import assumption, movement
from influence_dag.stages.rebuilt import Fitted, check_rebuilt, loss_and_gradient
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Coordinate, Version
from influence_dag.structures import tensors_of
from influence_dag.study.code import code_key, file_hash, opened_key
from influence_dag.study.model import LOSSES, FitSettings, ModelSettings
from influence_dag.study.study import Study
from influence_dag.study.users_code import named_by
from influence_dag.unchanged import note

ARTIFACT = "model"
FORMULA = 2


def refresh(bench: Workbench) -> Update:
    """Fit (or load) the module on the current training rows; store its state as float64."""
    train = bench.axis("dataset", "train")
    settings_key = _settings_key(bench.study)
    pinned = bench.settings.model.refit == "pinned"

    def reusable(version: Version) -> bool:
        return pinned and version.attrs.get("settings_key") == settings_key

    # A checkpoint as it is does not depend on the rows: an edited row leaves θ as it is.
    as_it_is = bench.settings.model.fit is None
    data_key = None if as_it_is else (train.fingerprint, _types(bench))
    key = fingerprint(settings_key, data_key)
    if pinned or as_it_is:
        check_features(bench, bench.undamaged(ARTIFACT), settings_key)
    update = refresh_whole(
        bench, ARTIFACT, key, lambda: _produce(bench, train, settings_key), reusable=reusable
    )
    if update.is_current and not bench.is_planned("dataset"):
        check_targets(bench, load_objective(bench))  # of rows that the model has not seen
    return update


def _settings_key(study: Study) -> str:
    model = study.settings.model
    parameters = model.fit.model_dump() if isinstance(model.fit, FitSettings) else model.fit
    checkpoint = _checkpoint_key(study) if model.checkpoint else None
    return fingerprint(
        ARTIFACT,
        FORMULA,
        source_key(study),
        parameters,
        callable_key(study, model.fit, "model.fit"),
        checkpoint,
        *([model.output] if model.output else []),
    )


def source_key(study: Study) -> str:
    """Hash of the code that makes the module and its loss: names and the project's files."""
    model = study.settings.model
    fields = {model.build: "model.build", model.loss: "model.loss"}
    opened = files_key(study)  # first: code that has read an outdated file is imported again
    return key_of_source(model, lambda name: callable_key(study, name, fields[name]), opened)


def files_key(study: Study) -> str | None:
    """Fingerprint of the files that the study's code opens by itself; None without any."""
    model = study.settings.model
    named = (
        model.build,
        model.loss,
        model.fit,
        model.measurement,
        *study.settings.methods.drawn_by.values(),
    )
    own = [name.partition(":")[0] for name in named if isinstance(name, str) and ":" in name]
    paths = [study.path(name) for name in model.depends_on]
    return opened_key(paths, own, study.root, "model.depends_on") if paths else None


def key_of_source(
    model: ModelSettings, key: Callable[[str], str | None], opened: str | None
) -> str:
    """The same with the key of each callable's code as `key` has it; named losses have none.

    `opened` is the key of the files that the code opens.
    """
    build, loss = model.build, model.loss
    code = (build, key(build), loss, None if loss in LOSSES else key(loss))
    return fingerprint(*code, *([opened] if opened else []))


def callable_key(study: Study, name: object, field: str) -> str | None:
    """Fingerprint of the project's code behind a `module:callable`.

    It is imported first, edited files anew: a key must never name code that did not run.
    """
    if not isinstance(name, str) or name in LOSSES:
        return None
    modules.import_callable(name, study.root, field)
    return code_key(name.partition(":")[0], study.root)


def _checkpoint_key(study: Study) -> str | None:
    """Hash of the file, which a stage that reads it notes again: it may be replaced meanwhile."""
    path = study.path(str(study.settings.model.checkpoint))
    return note(f"the checkpoint {path}", lambda: _file_hash(path))


def _file_hash(path: Path) -> str | None:
    return file_hash(path.read_bytes()) if path.is_file() else None


def _produce(bench: Workbench, train: Axis, settings_key: str) -> Whole:
    settings, study = bench.settings.model, bench.study
    rows, test = (rows_of(bench, axis) for axis in (train, bench.axis("dataset", "test")))
    unscaled = unscaled_columns(bench)
    if unscaled:
        bench.report(f"warning: {unscaled}")
    module = modules.build_module(settings, study.root, torch.float64).to(bench.device)
    loss = study_loss(study)
    started_from = {name: value.clone() for name, value in module.state_dict().items()}
    report: Any = None
    moved: dict[str, float] = {}
    check_targets(bench, study_objective(study, module.eval()))
    if settings.checkpoint:
        _checkpoint_key(study)
        modules.load_checkpoint(module, study.path(settings.checkpoint))
        _checkpoint_key(study)
        classes = list(bench.require("dataset").attrs.get("classes", ()))
        given = study_objective(study, module.eval())
        check_order(given, rows, classes, settings.checkpoint)
    if isinstance(settings.fit, FitSettings):
        before = study_objective(study, module)
        before.check(rows)
        if settings.fit.warm_start:
            _load_previous(bench, module)
        report = modules.fit(
            module, loss, rows, settings.fit, output=settings.output, report=bench.report
        )
        if settings.trains_on:
            moved = movement(before, study_objective(study, module), test)
            bench.report(", ".join(f"{name} {value:.3g}" for name, value in moved.items()))
    elif settings.fit is not None:
        module.train()
        fit = modules.import_callable(settings.fit, study.root, "model.fit")
        wanted = "it is called with the module and its rows, and trains the module in place"
        with modules.seeded(0), named_by(f"model.fit: {settings.fit}", wanted):
            fit(module, rows)
    module.eval()
    objective = study_objective(study, module)
    objective.check(rows)
    told: dict[str, Any] = moved | ({"unscaled_columns": unscaled} if unscaled else {})
    made = _artifact(bench, train, objective, rows, settings_key, report, told)
    seen = {train: rows, bench.axis("dataset", "test"): test}
    fitted = Fitted(objective, started_from, seen, bench.settings.compute.batch_size)
    check_rebuilt(study, fitted, made.files["model.safetensors"])
    return made


def rows_of(bench: Workbench, axis: Axis) -> Rows:
    """Every row in float64: in memory for a fit, which goes through them again and again."""
    if bench.settings.model.fit is not None:
        return load_rows(bench, axis, dtype=torch.float64)
    version, slots = bench.require("dataset"), axis.slots

    def load(positions: np.ndarray) -> Rows:
        return load_rows(bench, axis, slots[positions], dtype=torch.float64, version=version)

    def whole(name: str) -> torch.Tensor:
        values = torch.from_numpy(version.read(name)[slots]).to(bench.device)
        return values.double() if values.is_floating_point() else values

    weights = f"{axis.name}_weight"
    row_bytes = sum(leaf.nbytes for leaf in tensors_of(load(np.arange(1)).x))
    return BlocksOfRows(
        load,
        whole(f"{axis.name}_y"),
        whole(weights) if weights in version.variables else None,
        max(FEWEST, bench.settings.compute.block_bytes // max(row_bytes, 1)),
    )


def _load_previous(bench: Workbench, module: nn.Module) -> None:
    """Start from the stored θ when the same code made it."""
    stored = bench.undamaged(ARTIFACT)
    if stored is not None and stored.attrs.get("source_key") == source_key(bench.study):
        modules.load_checkpoint(module, stored.sound_file("model.safetensors"))


def check_targets(bench: Workbench, objective: Objective) -> None:
    """Raise `DataError` for a row whose target the loss cannot take, before anything is computed.

    With a measurement the loss of test rows is never asked for, so that their targets are free.
    """
    splits: tuple[Split, ...] = ("train",) if bench.settings.model.measurement else SPLITS
    for split in splits:
        axis = bench.axis("dataset", split)
        few = load_rows(bench, axis, axis.slots[:2], dtype=objective.dtype)
        labels = torch.from_numpy(bench.require("dataset").read(f"{split}_y"))
        try:
            check_labels(objective, few.x, labels[axis.slots].to(bench.device))
        except ModelError as error:
            if error.row is None:
                raise
            row = axis.ids[axis.slots[error.row]]
            source = bench.require("dataset").attrs[f"{split}_source"]
            said = str(error).removeprefix(f"row {error.row} has ")
            column = bench.settings.data.target
            raise DataError(f"{source}: row {str(row)!r}, column {column!r}: {said}") from error


def _artifact(
    bench: Workbench,
    train: Axis,
    objective: Objective,
    rows: Rows,
    settings_key: str,
    report: Any,
    told: dict[str, Any],
) -> Whole:
    weight_decay = (
        bench.settings.model.fit.weight_decay
        if isinstance(bench.settings.model.fit, FitSettings)
        else 0.0
    )
    theta = objective.params
    size = bench.settings.compute.batch_size
    losses, gradient = loss_and_gradient(objective, rows, size)
    penalised = gradient + weight_decay * theta
    info = {
        "parameters": objective.size,
        "trained_on_rows": len(rows),
        "mean_loss": float(losses),
        "gradient_norm": float(penalised.norm()),
        "weight_decay": weight_decay,
    }
    if report is not None:
        info |= {
            "fit_steps": report.steps,
            "fit_converged": report.converged,
            "fit_seconds": round(report.seconds, 2),
        }
    info |= told
    if objective.run_otherwise:
        info["run_otherwise"] = objective.run_otherwise
    found = stationarity(objective, rows, penalised)
    if found is not None:
        info |= {"relative_gradient": found.relative, "relative_to_rows": found.rows}
    names = [
        name
        for name, shape in zip(objective.parameter_names, objective.parameter_shapes, strict=True)
        for _ in range(int(np.prod(shape)))
    ]
    attrs = bench.attributes(
        settings_key=settings_key,
        source_key=source_key(bench.study),
        train_rows=train.fingerprint,
        features=feature_names(bench),
        parameter_names=list(objective.parameter_names),
        parameter_shapes=[list(shape) for shape in objective.parameter_shapes],
        assumes=assumption(bench.settings.model, info),
        long_name="flat parameter vector θ; the module's whole state is in model.safetensors",
    )
    arrays = {"parameters": (("param",), theta.detach().cpu().numpy(), {"long_name": "θ"})}
    coordinates = (parameter_coordinate(names),)
    files = {"model.safetensors": modules.save_checkpoint(objective.module)}
    return Whole(arrays, attrs, info, coordinates, files)


def parameter_coordinate(names: list[str]) -> Coordinate:
    values = np.array(names, dtype=np.dtypes.StringDType())
    return Coordinate(
        "parameter",
        ("param",),
        values,
        {"long_name": "name of the tensor that the entry belongs to"},
    )


def check_rows(
    objective: Objective, rows: Rows, axis: Axis, slots: np.ndarray, *, of: Of = "loss"
) -> None:
    """Raise `ModelError` for rows, named by their ids, that do not stand for themselves.

    Those that the model was fitted on were seen then; others, of the test split or added since at
    a pinned θ, are seen when they are first differentiated.
    """
    try:
        check_all_rows(objective, rows, of=of)
    except ModelError as error:
        if error.row is None:
            raise
        name = str(axis.ids[slots[error.row]])
        raise ModelError(f"{axis.name} row {name!r}: {error}", row=error.row) from error


def study_loss(study: Study) -> LossFunction:
    """The study's loss, one value per sample."""
    loss = study.settings.model.loss
    return per_sample_loss(
        loss if loss in LOSSES else modules.import_callable(loss, study.root, "model.loss")
    )


def study_measurement(study: Study) -> LossFunction | None:
    """The study's measurement; None where it is the loss."""
    name = study.settings.model.measurement
    return modules.import_callable(name, study.root, "model.measurement") if name else None


def load_rows(
    bench: Workbench,
    axis: Axis,
    index: slice | np.ndarray | None = None,
    *,
    dtype: torch.dtype | None = None,
    version: Version | None = None,
) -> Rows:
    """Rows of the dataset artifact as tensors; by default every row that exists, without holes.

    Training rows come with their weights where the study names some.
    """
    version = version or bench.require("dataset")
    slots = (
        axis.slots
        if index is None
        else (np.arange(len(axis))[index] if isinstance(index, slice) else index)
    )
    split: Split = axis.name

    first, last = (int(slots[0]), int(slots[-1])) if len(slots) else (0, -1)
    is_run = last - first + 1 == len(slots) and bool((np.diff(slots) == 1).all())

    def read(name: str) -> torch.Tensor:
        if is_run:
            values = version.read(name, slice(first, last + 1))
        else:
            values = np.asarray(version.array(name).oindex[slots])
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(bench.device)
        return tensor.to(dtype or bench.dtype) if tensor.is_floating_point() else tensor

    names = list(version.attrs["inputs"])
    x = (
        read(f"{split}_x")
        if len(names) == 1
        else {name: read(f"{split}_x_{name}") for name in names}
    )
    weights = read(f"{split}_weight") if f"{split}_weight" in version.variables else None
    return Rows(x, read(f"{split}_y"), weights)


def weight_sum(bench: Workbench, train: Axis, *, version: Version | None = None) -> float:
    """`Σ w_i` of training rows, by which means over them are divided: their number without weights.

    `version` is the one of the dataset that has them, by default the current one.
    """
    version = version or bench.require("dataset")
    if "train_weight" not in version.variables:
        return float(train.count)
    return float(version.read("train_weight")[train.slots].sum())


def stored_rows(bench: Workbench, split: Split, count: int) -> Rows:
    """A few rows to try a model on: of the stored dataset, also while a newer one is planned."""
    version = bench.store.version("dataset")
    axis = bench.axis_of(version, split)
    return load_rows(bench, axis, axis.slots[:count], version=version)


def study_objective(study: Study, module: nn.Module) -> Objective:
    """The module with the study's loss, measurement and choice of output."""
    return Objective(
        module,
        study_loss(study),
        measurement=study_measurement(study),
        output=study.settings.model.output,
    )


def load_objective(bench: Workbench, *, dtype: torch.dtype | None = None) -> Objective:
    """The stored model and its loss (and measurement) in the study's precision, on its device."""
    settings, study = bench.settings.model, bench.study
    version = bench.require(ARTIFACT)
    module = modules.build_module(settings, study.root, torch.float64)
    modules.load_checkpoint(module, version.sound_file("model.safetensors"))
    module.eval().to(device=bench.device, dtype=dtype or bench.dtype)
    return study_objective(study, module)


def model_key(bench: Workbench) -> str:
    """Fingerprint of θ, the code around it and the precision: what every derivative depends on."""
    state = bench.require(ARTIFACT).sound_file("model.safetensors")
    code, output = source_key(bench.study), bench.settings.model.output
    read = (_file_hash(state), code, bench.settings.compute.dtype, _types(bench))
    return fingerprint(*read, *([output] if output else []))


def _types(bench: Workbench) -> dict[str, str]:
    """Whether inputs are whole numbers or decimals, and targets, where the study's code sees them.

    Rows are keyed by their values, 2 as 2.0: code may tell them apart, the named losses do not.
    """
    own_loss = bench.settings.model.loss not in LOSSES
    return {
        name: np.dtype(variable.dtype).kind
        for name, variable in bench.require("dataset").variables.items()
        if name.startswith("train_x") or (own_loss and name == "train_y")
    }


def measurement_key(study: Study) -> str:
    name = study.settings.model.measurement
    return fingerprint(name, callable_key(study, name, "model.measurement"))
