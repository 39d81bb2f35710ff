"""Fingerprints of the model: of the code that makes it, its files, θ and its measurement."""

from collections.abc import Callable

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import naming
from influence_dag.stages.workbench import Workbench
from influence_dag.study.code import code_hashes, code_key, file_hash
from influence_dag.study.imported import import_callable
from influence_dag.study.model import LOSSES, ModelSettings
from influence_dag.study.opened import naming_files, opened_key
from influence_dag.study.study import Study


def source_key(study: Study) -> str:
    """Hash of the code that makes the module and its loss: names and the project's files."""
    model = study.settings.model
    fields = {model.build: "model.build", model.loss: "model.loss"}
    opened = files_key(study)  # first: code that has read an outdated file is imported again
    return key_of_source(model, lambda name: callable_key(study, name, fields[name]), opened)


def source_of(bench: Workbench) -> str:
    """The same, taken once a stage: an edit afterwards is noticed before anything is published."""
    return bench.once("source_key", lambda: source_key(bench.study))


def files_key(study: Study) -> str | None:
    """Fingerprint of the files that the study's code opens by itself; None without any."""
    model = study.settings.model
    own = [name.partition(":")[0] for name in study.settings.callables.values()]
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
    """Fingerprint of the project's code behind a `module:callable`, from its files.

    Nothing is imported for it that can be read: whoever runs the code imports edited files anew,
    and a stage begins again where what it imports is not what its key names (`unchanged`). What
    lies in no file of people's own is imported, and the file that it comes from is hashed.
    """
    if not isinstance(name, str) or name in LOSSES:
        return None
    module = name.partition(":")[0]
    if not code_hashes(module, study.root):
        import_callable(name, study.root, field)
    return code_key(module, study.root)


def import_named(study: Study) -> None:
    """Import all code that the study names, to raise what is wrong with it."""
    with naming_files(study):
        for field, name in study.settings.callables.items():
            import_callable(name, study.root, field)


def has_run(bench: Workbench) -> bool:
    """Whether the stored model was made by the code that is there now, and by nothing else.

    Of a fit, a measurement or a distribution in code nothing is kept by itself that would tell.
    """
    stored = bench.store.current(naming.MODEL)
    model = bench.settings.model
    others = [model.fit, model.measurement, *bench.settings.methods.drawn_by.values()]
    if stored is None or any(isinstance(name, str) for name in others):
        return False
    return stored.attrs.get("source_key") == source_key(bench.study)


def model_key(bench: Workbench) -> str:
    """Fingerprint of θ, the code around it and the precision: what every derivative depends on."""
    state = bench.require(naming.MODEL).file("model.safetensors")
    code, output = source_of(bench), bench.settings.model.output
    read = (file_hash(state), code, bench.settings.compute.dtype, column_kinds(bench))
    return fingerprint(*read, *([output] if output else []))


def column_kinds(bench: Workbench) -> dict[str, str]:
    """Whether inputs are whole numbers or decimals, and targets, where the study's code sees them.

    Rows are keyed by their values, 2 as 2.0: code may tell them apart, the named losses do not.
    """
    own_loss = bench.settings.model.loss not in LOSSES
    return {
        name: np.dtype(variable.dtype).kind
        for name, variable in bench.require("dataset").variables.items()
        if name.startswith("train_x") or (own_loss and name == "train_y")
    }


def met_rows(bench: Workbench, train: Axis) -> str:
    """Which training rows there are and how code sees them: what the model's stage notes."""
    return fingerprint(train.fingerprint, column_kinds(bench))


def were_met(bench: Workbench, train: Axis) -> bool:
    """Whether all training rows are those that the model's stage has looked at, one by one."""
    return bench.require(naming.MODEL).attrs.get("rows_met") == met_rows(bench, train)


def measurement_key(study: Study) -> str:
    name = study.settings.model.measurement
    return fingerprint(name, callable_key(study, name, "model.measurement"))


def code_of(bench: Workbench) -> str:
    """Fingerprint of all code of the study that computing with its stored model runs."""
    study, drawn = bench.study, bench.settings.methods.drawn_by
    drawing = {field: callable_key(study, name, field) for field, name in drawn.items()}
    return fingerprint(source_of(bench), measurement_key(study), drawing)
