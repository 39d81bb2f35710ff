"""Where Dagster's history of a project's runs is kept, which its UI shows. No Dagster here."""

import os
from pathlib import Path

FOLDER = ".dagster"  # in a project; `make` sets it up


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
