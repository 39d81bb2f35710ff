"""The fitted module: built, fitted or loaded, and kept as a checkpoint."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.datasets.slots import SPLITS, Axis, Split
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import features, keys, naming, reading
from influence_dag.stages.class_order import check_kept_classes, check_order, class_names
from influence_dag.stages.driver import Whole, refresh_whole
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.minimum import assumption, measured_before, movement
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Coordinate, Version
from influence_dag.study.code import hash_of_file
from influence_dag.study.imported import import_callable, own_default
from influence_dag.study.opened import only_named_files
from influence_dag.study.study import Study
from influence_dag.study.torch_modes import kept_modes
from influence_dag.study.users_code import named_by
from influence_dag.unchanged import note

if TYPE_CHECKING:  # a plan needs the key alone: what computes imports torch
    import torch
    from torch import nn

    from influence_dag.objective import Objective, Rows

FORMULA = FORMULAS["model"]


def refresh(bench: Workbench) -> Update:
    """Fit (or load) the module on the current training rows; store its state as float64."""
    train = bench.axis("dataset", "train")
    settings_key = _settings_key(bench.study)
    pinned = bench.settings.model.refit == "pinned"

    def reusable(version: Version) -> bool:
        return pinned and version.attrs.get("settings_key") == settings_key

    # A checkpoint as it is does not depend on the rows: an edited row leaves θ as it is.
    as_it_is = bench.settings.model.fit is None
    data_key = None if as_it_is else (train.fingerprint, keys.column_kinds(bench), *_meaning(bench))
    key = fingerprint(settings_key, data_key)
    kept = bench.undamaged(naming.MODEL) if pinned or as_it_is else None
    features.check_features(bench, kept, settings_key)
    if pinned and not as_it_is:
        check_kept_classes(bench, kept, settings_key)
    update = refresh_whole(
        bench, naming.MODEL, key, lambda: _produce(bench, train, settings_key), reusable=reusable
    )
    if update.is_current and not bench.is_planned("dataset") and not _has_met_rows(bench):
        check_targets(bench, reading.load_objective(bench))
    if as_it_is and update.is_current and kept and not bench.is_planned("dataset"):
        _check_given_order(bench, kept, train)
    return update if bench.plan_only else _of_rows(bench, update, train)


def _of_rows(bench: Workbench, update: Update, train: Axis) -> Update:
    """The update; where its numbers are of other rows than there are now, it says so."""
    model, test = bench.require(naming.MODEL), bench.axis("dataset", "test")
    measured = measured_before(model, test, train)
    return replace(update, info=update.info | {"measured": measured}) if measured else update


def _check_given_order(bench: Workbench, kept: Version, train: Axis) -> None:
    """A checkpoint under another order of the classes than it was looked at under."""
    classes, checkpoint = class_names(bench), bench.settings.model.checkpoint
    if checkpoint and classes and kept.attrs.get("classes", classes) != classes:
        check_order(
            reading.load_objective(bench), reading.load_rows(bench, train), classes, checkpoint
        )


def _meaning(bench: Workbench) -> list[Any]:
    """What the rows' numbers stand for, where it is not plain: a fit is told with it."""
    units, classes = features.feature_units(bench), class_names(bench)
    plain = units == {"scale": 1.0, "standardised": ""}
    return [*([] if plain else [units]), *([classes] if classes else [])]


def _has_met_rows(bench: Workbench) -> bool:
    """Whether gradients and factors are stored of these rows by this θ: it could take them then.

    They are looked at, not read: what comes of it is that nothing is tried again.
    """
    gradients = bench.undamaged(naming.GRADIENTS)
    factors = bench.undamaged(naming.factors(bench.settings.methods.names[0]))
    if gradients is None or gradients.attrs.get("model_key") != keys.model_key(bench):
        return False
    theta = bench.require(naming.MODEL).data_version
    if factors is None or factors.attrs.get("model_data_version") != theta:
        return False
    measured = bench.settings.model.measurement or "the loss"
    if factors.attrs.get("measurement") != measured:  # under one targets of test rows are free
        return False
    met: dict[Split, Version] = {"train": gradients, "test": factors}
    return all(
        bench.axis_of(version, split).fingerprint == bench.axis("dataset", split).fingerprint
        for split, version in met.items()
    )


def _settings_key(study: Study) -> str:
    model = study.settings.model
    parameters = model.own_fit.model_dump() if model.own_fit else model.fit
    checkpoint = _checkpoint_key(study) if model.checkpoint else None
    return fingerprint(
        naming.MODEL,
        FORMULA,
        keys.source_key(study),
        parameters,
        keys.callable_key(study, model.fit, "model.fit"),
        checkpoint,
        *([model.output] if model.output else []),
    )


def _checkpoint_key(study: Study) -> str | None:
    """Hash of the file, which a stage that reads it notes again: it may be replaced meanwhile."""
    path = study.path(str(study.settings.model.checkpoint))
    return note(f"the checkpoint {path}", lambda: hash_of_file(path))


def _produce(bench: Workbench, train: Axis, settings_key: str) -> Whole:
    import torch

    from influence_dag.objective import modules
    from influence_dag.stages.rebuilt import Fitted, check_rebuilt

    study = bench.study
    rows, test = (rows_of(bench, axis) for axis in (train, bench.axis("dataset", "test")))
    unscaled = features.unscaled_columns(bench)
    if unscaled:
        bench.report(f"warning: {unscaled}")
    module = modules.build_module(study.settings.model, study.root, torch.float64)
    module = module.to(bench.device)
    started_from = {name: value.clone() for name, value in module.state_dict().items()}
    check_targets(bench, reading.study_objective(study, module.eval()))
    _load_given(bench, module, rows)
    told = _fitted(bench, train, module, rows, test)
    told |= {"unscaled_columns": unscaled} if unscaled else {}
    objective = reading.study_objective(study, module.eval())
    objective.check(rows)
    stored = modules.save_checkpoint(objective.module)
    seen = {train: rows, bench.axis("dataset", "test"): test}
    fitted = Fitted(objective, started_from, seen, bench.settings.compute.batch_size)
    mean = check_rebuilt(study, fitted, stored)
    return _artifact(bench, train, objective, rows, settings_key, told, mean, stored)


def _load_given(bench: Workbench, module: "nn.Module", rows: "Rows") -> None:
    """Load the checkpoint where there is one, whose outputs have to be in the order of classes."""
    from influence_dag.objective import modules

    study, checkpoint = bench.study, bench.settings.model.checkpoint
    if checkpoint:
        _checkpoint_key(study)
        modules.load_checkpoint(module, study.path(checkpoint))
        _checkpoint_key(study)
        objective = reading.study_objective(study, module.eval())
        check_order(objective, rows, class_names(bench), checkpoint)


def _fitted(
    bench: Workbench, train: Axis, module: "nn.Module", rows: "Rows", test: "Rows"
) -> dict[str, Any]:
    """Fit the module in place, as the study says; what there is to say of it."""
    import torch

    from influence_dag.objective import modules
    from influence_dag.stages.rebuilt import rows_kept

    study, settings = bench.study, bench.settings.model
    if isinstance(settings.fit, str):
        module.train()
        fit = import_callable(settings.fit, study.root, "model.fit")
        wanted = "it is called with the module and its rows, and trains the module in place"
        context = f"model.fit: {settings.fit}"
        named, opens = named_by(context, wanted), only_named_files(context, study.root)
        typed = own_default(settings.fit, study.root)
        with rows_kept(rows, settings.fit), modules.seeded(0), kept_modes(), opens, named, typed:
            fit(module, rows)
    if settings.own_fit is None:
        return {}
    before = reading.study_objective(study, module)
    before.check(rows)
    if settings.own_fit.warm_start:
        _load_previous(bench, module)
    loss, output = reading.study_loss(study), settings.output
    drawn = rows[torch.from_numpy(train.drawn)] if settings.own_fit.batch_size else rows
    fit = modules.fit(module, loss, drawn, settings.own_fit, output=output, report=bench.report)
    told = {"fit_steps": fit.steps, "fit_converged": fit.converged}
    told["fit_seconds"] = round(fit.seconds, 2)
    if not settings.trains_on:
        return told
    moved = movement(before, reading.study_objective(study, module), test)
    bench.report(", ".join(f"{name} {value:.3g}" for name, value in moved.items()))
    return told | moved


def rows_of(bench: Workbench, axis: Axis) -> "Rows":
    """Every row in float64: in memory for a fit, which goes through them again and again."""
    import torch

    if bench.settings.model.fit is not None:
        return reading.load_rows(bench, axis, dtype=torch.float64)
    return reading.rows_in_blocks(bench, axis, bench.require("dataset"), torch.float64)


def _load_previous(bench: Workbench, module: "nn.Module") -> None:
    """Start from the stored θ when the same code made it."""
    stored = bench.undamaged(naming.MODEL)
    if stored is not None and stored.attrs.get("source_key") == keys.source_key(bench.study):
        reading.load_state_of(stored, module)


def check_targets(bench: Workbench, objective: "Objective") -> None:
    """Raise `DataError` for a row whose target the loss cannot take, before anything is computed.

    With a measurement the loss of test rows is never asked for, so that their targets are free.
    """
    import torch

    from influence_dag.objective.checks import check_labels

    splits: tuple[Split, ...] = ("train",) if bench.settings.model.measurement else SPLITS
    for split in splits:
        axis = bench.axis("dataset", split)
        few = reading.load_rows(bench, axis, axis.slots[:2], dtype=objective.dtype)
        dataset = bench.require("dataset")
        labels = torch.from_numpy(dataset.read(f"{split}_y"))[axis.slots]
        source, column = dataset.attrs[f"{split}_source"], bench.settings.data.target
        with reading.naming_targets(source, axis.ids[axis.slots], column):
            check_labels(objective, few.x, labels.to(bench.device))


def _artifact(
    bench: Workbench,
    train: Axis,
    objective: "Objective",
    rows: "Rows",
    settings_key: str,
    told: dict[str, Any],
    mean: "tuple[torch.Tensor, torch.Tensor]",
    stored: bytes,
) -> Whole:
    """`mean` is the rows' mean loss with its gradient, `stored` the module's state."""
    from influence_dag.gradients.stationarity import stationarity

    fit = bench.settings.model.own_fit
    weight_decay = fit.weight_decay if fit else 0.0
    theta = objective.params
    losses, gradient = mean
    penalised = gradient + weight_decay * theta
    as_it_is = bench.settings.model.fit is None
    info = {
        "parameters": objective.size,
        "measured_on_rows" if as_it_is else "trained_on_rows": len(rows),
        "mean_loss": float(losses),
        "gradient_norm": float(penalised.norm()),
        "weight_decay": weight_decay,
    } | told
    if objective.run_otherwise:
        info["run_otherwise"] = objective.run_otherwise
    found = stationarity(objective, rows, penalised)
    if found is not None:
        info |= {"relative_gradient": found.relative, "relative_to_rows": found.rows}
    attrs = bench.attributes(
        settings_key=settings_key,
        source_key=keys.source_key(bench.study),
        train_rows=train.fingerprint,
        classes=class_names(bench),
        features=features.feature_names(bench),
        feature_units=features.feature_units(bench),
        parameter_names=list(objective.parameter_names),
        parameter_shapes=[list(shape) for shape in objective.parameter_shapes],
        assumes=assumption(bench.settings.model, info),
        long_name="flat parameter vector θ; the module's whole state is in model.safetensors",
    )
    arrays = {"parameters": (("param",), theta.detach().cpu().numpy(), {"long_name": "θ"})}
    sizes = [int(np.prod(shape)) for shape in objective.parameter_shapes]
    names = np.array(objective.parameter_names, np.dtypes.StringDType()).repeat(sizes)
    about = {"long_name": "name of the tensor that the entry belongs to"}
    coordinates = (Coordinate("parameter", ("param",), names, about),)
    files = {"model.safetensors": stored}
    test_rows = bench.axis("dataset", "test").fingerprint
    notes = {"rows_met": keys.met_rows(bench, train), "test_rows": test_rows}
    return Whole(arrays, attrs, info, coordinates, files, notes)
