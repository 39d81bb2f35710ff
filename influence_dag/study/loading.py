"""A study from its folder, or from the folder of its results, which are those of no other."""

import os
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from influence_dag.addresses import folder_of, scheme_of
from influence_dag.errors import StoreError, StudyError
from influence_dag.study.code import put_on_path
from influence_dag.study.files import read_yaml
from influence_dag.study.named_code import look_for_callables
from influence_dag.study.places import project_around, project_root
from influence_dag.study.study import Study, StudySettings, study_name
from influence_dag.texts import did_you_mean

if TYPE_CHECKING:
    from influence_dag.store import Store

COMPONENT = "influence_dag.components.InfluenceStudy"
TOP = ("type", "attributes", "requirements", "post_processing")  # of any component of Dagster's
PLACE = "study_folder"  # under which a dataset notes where its study is, from the project's folder


def load_study(folder: str | Path) -> Study:
    """The study that a folder's `defs.yaml` describes; its name is the folder's.

    A relative path in it is looked up in the study's folder, then in the project's: the nearest
    folder above that has a `pyproject.toml`, else the working directory. The folder of a study's
    results serves as well, where its project has the study. Raises `StudyError`.
    """
    if scheme_of(folder):
        raise StudyError(
            f"{folder} is the address of a store; give the folder of its study, with a defs.yaml"
        )
    path = Path(folder).resolve()
    if path.is_dir() and not (path / "defs.yaml").is_file():
        path = _study_of_store(path) or path
    path = path / "defs.yaml" if path.is_dir() else path
    if not path.is_file():
        seen = "is no file" if os.path.lexists(path) else "does not exist"
        near = did_you_mean(path.name, _studies_in(path.parent))
        raise StudyError(f"{path} {seen}{near}; give a study's folder, with a defs.yaml in it")
    content, nodes = read_yaml(path)
    if not isinstance(content, dict) or content.get("type") != COMPONENT:
        said = content.get("type") if isinstance(content, dict) else None
        seen = f"is {said!r:.80}" if said else "has none"
        cure = f"write type: {COMPONENT}, or have a study written: influence-dag init"
        if path.name != "defs.yaml":
            cure = "give a study's folder, with a defs.yaml in it"
        raise StudyError(
            f"{path}: `type` of a study has to be {COMPONENT}, and this {seen}; {cure}"
        )
    _check_top(path, nodes)
    try:
        settings = StudySettings.model_validate(content.get("attributes") or {})
    except ValidationError as error:
        raise StudyError(_explained(path, nodes, error)) from error
    return Study(study_name(path.parent), settings, project_root(path.parent), path.parent)


def study_to_run(folder: str | Path) -> Study:
    """As `load_study`, with the project's code on Python's path, and its results its own.

    Raises `StudyError` also for a callable that is certainly not there, and for results that are
    those of another study.
    """
    from influence_dag.store import open_store

    study = load_study(folder)
    check_alone(study, open_store(study.store_address))
    put_on_path(study.root)
    look_for_callables(study)
    return study


def _studies_in(folder: Path) -> list[str]:
    return [path.parent.name for path in folder.glob("*/defs.yaml")]


# Where results are, and whose ---------------------------------------------------------------------


def place_of(study: Study) -> dict[str, str]:
    """What a dataset notes of its study: its folder, from the project's, which it moves with."""
    if study.folder is None:
        return {}
    return {PLACE: os.path.relpath(study.folder, study.root)}


def check_alone(study: Study, store: "Store") -> None:
    """Raise `StudyError` where the stored results are those of another study of the project.

    Two folders of one name have one place in a store, and what is there has noted whose it is. A
    study that was moved since has left no file behind; another one is there still.
    """
    if study.folder is None:
        return
    try:
        other = _noted(store, study.root)
        is_there = other is not None and other != study.folder and _keeps(other, store.address)
    except (StoreError, StudyError):  # damaged, and made anew; a file that nobody can run
        return
    if is_there:
        raise StudyError(
            f"{study.folder}/defs.yaml and {other}/defs.yaml are two studies of one name that keep "
            f"their results in one place, {store.address}, where those of the latter are: rename "
            "one of the folders, give one study a `store` of its own, or remove one"
        )


def _noted(store: "Store", project: Path) -> Path | None:
    """The folder that a store says its study is in, believed only where it is in the project."""
    dataset = store.current("dataset")
    place = dataset.attrs.get(PLACE) if dataset else None
    folder = (project / place).resolve() if place else None
    return folder if folder and folder.is_relative_to(project) else None


def _keeps(folder: Path, address: str) -> bool:
    """Whether there is a study in a folder that keeps its results at this address."""
    if not (folder / "defs.yaml").is_file():
        return False
    return _settled(load_study(folder).store_address) == _settled(address)


def _settled(address: str) -> str | Path:
    folder = folder_of(address)
    return folder.resolve() if folder else address


def _study_of_store(path: Path) -> Path | None:
    """The folder of the study whose results are in `path`; None if there are no results.

    A store says where its study was, which is believed only if that is in the project around the
    store and the study there keeps its results here.
    """
    from influence_dag.store import open_store

    store = open_store(path)
    if not path.is_dir() or store.current("dataset") is None:
        return None
    project = project_around(path)
    folder = project and _noted(store, project)
    if folder and _keeps(folder, store.address):
        return folder
    raise StudyError(
        f"{path} holds a study's results, and its study is not found "
        f"({'no pyproject.toml in a folder above' if not project else f'looked in {project}'}); "
        "give the study's folder, with a defs.yaml in it"
    )


def _check_top(path: Path, nodes: Any) -> None:
    """A setting that is indented too little stands beside `attributes`, where nobody reads it."""
    for key, _ in nodes.value:
        if key.value not in TOP:
            fields = StudySettings.model_fields
            near = did_you_mean(key.value, TOP) if key.value not in fields else ""
            raise StudyError(
                f"{path}:{key.start_mark.line + 1}: {key.value!r:.120} stands beside `attributes` "
                f"({', '.join(TOP)} are known there){near}; settings stand below `attributes`, "
                "indented"
            )


def _explained(path: Path, nodes: yaml.Node | None, error: ValidationError) -> str:
    """Pydantic's findings, each with its line in the file."""
    lines = []
    for item in error.errors():
        line, where = _place(nodes, item["loc"], missing=item["type"] == "missing")
        said = item["msg"].removeprefix("Value error, ")
        lines.append(f"{path}:{line}: {where}: {said}{_seen(item)}")
    return "\n".join(lines)


def _seen(item: Any) -> str:
    """The offending value, unless it was told or is a group of settings that lacks something."""
    value = item["input"]
    told = isinstance(value, str | list | tuple) and repr(value) in item["msg"]
    return "" if told or isinstance(value, dict) else f" (got {_SHORT.repr(value):.200})"


_SHORT = reprlib.Repr()  # a value may be as long as its writer likes
_SHORT.maxstring = _SHORT.maxother = 120


def _place(nodes: Any, location: tuple[Any, ...], *, missing: bool) -> tuple[int, str]:
    """The line of the deepest node that a location names, and its path in the file.

    Parts that are not in the file (pydantic's names of alternatives) are passed over.
    """
    line, node = _child(nodes, "attributes") or (1, None)
    path = []
    for part in location:
        if child := _child(node, part):
            (line, node), path = child, [*path, str(part)]
    if missing:
        path.append(str(location[-1]))
    return line, ".".join(path) or "attributes"


def _child(node: Any, part: Any) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        entries = {key.value: (key.start_mark.line + 1, value) for key, value in node.value}
        return entries.get(str(part))
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None
