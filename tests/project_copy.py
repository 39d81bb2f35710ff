"""The project somewhere else: its studies, data and settings, without results or history."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
QUIET = (ROOT / "Makefile").read_text().partition("export PYTHONWARNINGS := ")[2].partition("\n")[0]


def copy_project(target: Path) -> Path:
    skip = shutil.ignore_patterns("__pycache__", "store")
    for folder in ("assets", "data"):
        shutil.copytree(ROOT / folder, target / folder, ignore=skip)
    for file in ("pyproject.toml", "workspace.yaml", "dagster.yaml"):
        shutil.copy(ROOT / file, target)
    return target


def environment(current: Mapping[str, str], home: Path) -> dict[str, str]:
    """Environment variables for a Dagster instance in `home` with the project's settings."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "dagster.yaml", home)
    own = {"DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
    own["PYTHONWARNINGS"] = QUIET  # as `make ui` has it
    # One thread: beside other tests, those of a second one mostly wait for each other.
    return {**current, **own, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{current['PATH']}"}


def run(
    *command: str, cwd: Path, env: Mapping[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True, check=False
    )
