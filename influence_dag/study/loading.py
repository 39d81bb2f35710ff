"""A study from its folder, or from the folder of its results."""

import os
import reprlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from influence_dag.addresses import folder_of, scheme_of
from influence_dag.errors import StudyError
from influence_dag.study.files import read_yaml
from influence_dag.study.places import project_around, project_root
from influence_dag.study.study import Study, StudySettings, study_name
from influence_dag.texts import did_you_mean

COMPONENT = "influence_dag.components.InfluenceStudy"
TOP = ("type", "attributes", "requirements", "post_processing")  # of any component of Dagster's


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


def _studies_in(folder: Path) -> list[str]:
    return [path.parent.name for path in folder.glob("*/defs.yaml")]


def _keeps(folder: Path, store: Path) -> bool:
    """Whether there is a study in a folder that keeps its results in `store`."""
    if not (folder / "defs.yaml").is_file():
        return False
    kept = folder_of(load_study(folder).store_address)
    return kept is not None and kept.resolve() == store


def _study_of_store(store: Path) -> Path | None:
    """The folder of the study whose results are in `store`; None if `store` has no results.

    A store says where its study was, which is believed only if that is in the project around the
    store and the study there keeps its results here.
    """
    from influence_dag.store import open_store

    dataset = open_store(store).current("dataset") if store.is_dir() else None
    if dataset is None:
        return None
    project, said = project_around(store), dataset.attrs.get("study_folder")
    folder = (project / said).resolve() if project and said else None
    if folder and folder.is_relative_to(project or folder) and _keeps(folder, store):
        return folder
    raise StudyError(
        f"{store} holds a study's results, and its study is not found "
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
