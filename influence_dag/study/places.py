"""Where a study's files are: one rule for relative paths, and studies found by either end.

A relative path of an input is looked up in the study's folder (where its `defs.yaml` is) and then
in the project's: the nearest folder above with a `pyproject.toml`, else the working directory.
"""

import os
from glob import glob, has_magic
from pathlib import Path

from influence_dag.study.base import is_callable_name

RULE = "relative paths are looked up in the study's folder, then in the project's"
FOLDER = ".dagster"  # of Dagster's history in a project; `make` sets it up


def placed_name(name: str, folder: Path, root: Path) -> str:
    """A path of the settings, named from `root` if it is one of the study's folder.

    Callables, absolute paths and what the folder does not have are left as they are.
    """
    path = os.path.expanduser(name)
    if is_callable_name(name) or os.path.isabs(path) or not _exists(path, folder):
        return name
    return Path(os.path.relpath(folder / path, root)).as_posix()


def _exists(name: str, folder: Path) -> bool:
    try:
        if (folder / name).exists():
            return True
        return has_magic(name) and bool(glob(name, root_dir=folder, recursive=True))
    except (OSError, ValueError):  # a name that no file can have: told where it is read
        return False


def project_root(folder: Path) -> Path:
    """The nearest folder above with a `pyproject.toml`; without one, the working directory."""
    return project_around(folder) or Path.cwd()


def project_around(folder: Path) -> Path | None:
    """The nearest folder, from this one upwards, that has a `pyproject.toml`."""
    above = (folder, *folder.parents)
    return next((each for each in above if (each / "pyproject.toml").is_file()), None)


def home_of(project: Path) -> Path | None:
    """DAGSTER_HOME, else the project's `.dagster` where that has been set up; None for neither."""
    if home := os.environ.get("DAGSTER_HOME"):
        return Path(home).absolute()
    folder = project / FOLDER
    return folder if (folder / "dagster.yaml").is_file() else None


def why_unrecorded(project: Path) -> str:
    """Why the UI will not show a run of this project; empty where it will."""
    if home_of(project):
        return ""
    return (
        "this run is not in the history that Dagster's UI shows: DAGSTER_HOME is not set, and "
        f"{project / FOLDER} has no dagster.yaml"
    )
