"""A study in the definitions of an existing Dagster project, from Python rather than a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import ValidationError

from influence_dag.components import assets
from influence_dag.components.keys import warn_of_twins
from influence_dag.errors import StudyError
from influence_dag.study.places import project_root
from influence_dag.study.study import Study, StudySettings, study_name

_CODE = "code (study_assets or study_definitions)"
Given = StudySettings | Mapping[str, Any] | str | Path


def study_assets(
    study: Given,
    *,
    name: str | None = None,
    folder: str | Path | None = None,
    pool: str | None = "gpu",
) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """The assets of a study with their checks, for `dg.Definitions(assets=[…])`.

    `study` is a folder with a `defs.yaml`, or the settings that stand below `attributes` in one;
    settings need a `name`, and their relative paths are looked up in `folder` (default: the working
    directory), then in its project. Assets that compute much are in `pool`. Jobs, schedules and
    sensors are the project's own: see `study_definitions` for those that a study has by itself.

    Raises `StudyError` for settings that are wrong, or say when to `refresh`.
    """
    made_of = _study(study, name, folder)
    warn_of_twins(made_of, _CODE)
    if made_of.settings.refresh.schedule or made_of.settings.refresh.automation:
        raise StudyError(
            f"{made_of.name}: refresh needs a schedule or a sensor, and study_assets makes assets "
            "alone; take study_definitions, or leave refresh out and write your own"
        )
    made = assets.study_definitions(made_of, pool=pool)
    return [*(made.assets or ()), *(made.asset_checks or ())]  # type: ignore[list-item]


def study_definitions(
    study: Given,
    *,
    name: str | None = None,
    folder: str | Path | None = None,
    pool: str | None = "gpu",
) -> dg.Definitions:
    """As `study_assets`, with the job `<name>_refresh`, its schedule and its sensor.

    For `dg.Definitions.merge(…)`.
    """
    made_of = _study(study, name, folder)
    warn_of_twins(made_of, _CODE)
    return assets.study_definitions(made_of, pool=pool)


def _study(given: Given, name: str | None, folder: str | Path | None) -> Study:
    if isinstance(given, str | Path):
        if name is not None or folder is not None:
            raise StudyError(f"{given} has a name and a place; leave out name and folder")
        from influence_dag.study.loading import load_study

        return load_study(given)
    if name is None:
        raise StudyError("settings have no name; give one, which the assets' keys begin with")
    place = Path(folder or Path.cwd()).resolve()
    called = study_name(Path(name))
    return Study(called, _settings(called, given), project_root(place), place)


def _settings(name: str, given: StudySettings | Mapping[str, Any]) -> StudySettings:
    if isinstance(given, StudySettings):
        return given
    try:
        return StudySettings.model_validate(given)
    except ValidationError as error:
        told = [
            f"{name}: {'.'.join(map(str, item['loc']))}: "
            f"{item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise StudyError("\n".join(told)) from error
