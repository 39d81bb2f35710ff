"""A stored study at work again: its code found, and held against what the store was computed with.

A store is data, and may be anybody's: what its attributes name is imported from a project that the
caller names, or from the project in which the store lies, and from nowhere else.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_dag.addresses import above, folder_of
from influence_dag.datasets.slots import Split
from influence_dag.errors import StoreError
from influence_dag.stages import naming
from influence_dag.store import Store
from influence_dag.study.code import code_hashes, code_key
from influence_dag.study.module_files import is_of_project
from influence_dag.study.places import project_around
from influence_dag.study.stored import as_stored
from influence_dag.study.study import Study, StudySettings

if TYPE_CHECKING:
    from influence_dag.stages.workbench import Workbench


def workbench_of(store: Store, method: str, project: Path | None = None) -> "Workbench":
    """The study as it was when a refresh last came to the method's factors, on the opened store.

    Raises `StoreError` when its code is not to be found, or when the code, the model or the
    curvature are no longer those that the factors were computed with.
    """
    from influence_dag.stages.workbench import Workbench

    settings = as_stored(StudySettings, settings_of(store, method)["settings"], store.address)
    place = settings.store.model_copy(update={"path": above(store.address)})
    settings = settings.model_copy(update={"store": place})
    study = Study(store.name, settings, project or _project_around(store))
    _check_code(store, study, named=project is not None)
    bench = Workbench(study)
    _check_factors(bench, method)
    return bench


def _project_around(store: Store) -> Path:
    """The nearest folder above the store that has a `pyproject.toml`."""
    folder = folder_of(store.address)
    if folder and (project := project_around(folder)):
        return project
    raise StoreError(
        f"{store.address} lies in no project (no pyproject.toml in a folder above it), and this "
        "needs the study's code; name the project: open_study(path, project=…)"
    )


def _check_code(store: Store, study: Study, *, named: bool) -> None:
    """Before anything is imported: what would be is the project's, and is as it was."""
    wanted = store.version("model").attrs["source_key"]
    callables = callables_of(study.settings)
    if not named:
        for field, name in callables.items():
            if not is_of_project(name.partition(":")[0], study.root):
                raise StoreError(
                    f"{store.address}: {field} is {name}, and {study.root}, where the store lies, "
                    "has no such module; nothing is imported from elsewhere unless the project is "
                    "named: open_study(path, project=…)"
                )
    if all(code_hashes(name.partition(":")[0], study.root) for name in callables.values()):
        from influence_dag.stages.keys import files_key, key_of_source

        key = key_of_source(
            study.settings.model,
            lambda name: code_key(name.partition(":")[0], study.root),
            files_key(study),
        )
        if key != wanted:
            raise StoreError(
                f"{store.address}: the code behind {', '.join(callables.values())} in {study.root} "
                "is not the code that the stored model was made with; materialise the study again, "
                "or name the project that has it: open_study(path, project=…)"
            )


def callables_of(settings: StudySettings) -> dict[str, str]:
    """The `module:callable` names that computing with a stored model imports, by setting."""
    return {field: name for field, name in settings.callables.items() if field != "model.fit"}


def _check_factors(bench: "Workbench", method: str) -> None:
    """What is stored beside the factors is what they were computed with."""
    from influence_dag.stages import methods

    stored = bench.require(naming.factors(method))
    if methods.factors_key(bench, method) == stored.attrs["base_key"]:
        return
    beside = {"model": "model", "curvature": naming.curvature(method)}
    newer = [
        artifact
        for what, artifact in beside.items()
        if bench.require(artifact).data_version != stored.attrs[f"{what}_data_version"]
    ]
    why = (
        f"the stored {' and '.join(newer)} came after them"
        if newer
        else "code, settings or the version of influence_dag were others when they were computed"
    )
    raise StoreError(
        f"{bench.store.address}: {naming.factors(method)} do not belong to what would be computed "
        f"with: {why}; materialise the study again"
    )


def check_influences(bench: "Workbench", method: str, *, rows: str = "gradients") -> None:
    """The stored influences are of the factors stored beside them and of these training rows.

    `rows` is the artifact whose training rows are computed with.
    """
    from influence_dag.stages import influences

    stored = bench.require(naming.influences(method))
    pairs: dict[Split, str] = {"test": naming.factors(method), "train": rows}
    moved = [
        f"{split} rows of {artifact}"
        for split, artifact in pairs.items()
        if bench.axis_of(stored, split).fingerprint != bench.axis(artifact, split).fingerprint
    ]
    if influences.base_key(bench, method) != stored.attrs["base_key"]:
        moved = ["factors or gradients", *moved]
    if moved:
        raise StoreError(
            f"{bench.store.address}: the {' and '.join(moved)} are not those that the stored "
            f"{naming.influences(method)} were computed from (a refresh has not got there yet); "
            "materialise the study again"
        )


def settings_of(store: Store, method: str) -> dict[str, Any]:
    """The settings that the study had when a refresh last came to a method's factors."""
    return json.loads(store.version(naming.factors(method)).attrs["study_settings"])
