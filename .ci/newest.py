"""Tests of what needs no torch, under the newest Python that is found beside this one.

Stores, tables, settings and queries meet new releases of zarr, numpy, xarray and pandas first. They
are installed without torch in an environment of their own, as new as there are; what asks for torch
is skipped there. Queries read a study that this environment has computed.
"""

import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
VENV = ROOT / ".venv-newest"
TORCHLESS = (
    *("store", "sources", "test_datasets.py", "test_labelled.py", "test_execution.py"),
    *("test_study.py", "test_study_files.py", "test_settings_reference.py", "test_places.py"),
    *("test_query.py", "test_result_arrays.py", "test_xarray_habits.py", "test_plots.py"),
)
# Of the extras and of the tests.
OTHERS = [
    *("hypothesis", "pillow", "polars", "psutil", "pyarrow", "pytest", "pytest-xdist"),
    *("scikit-learn", "scipy", "setuptools"),
]


def newest() -> tuple[tuple[int, int], str] | None:
    """The newest interpreter above this one: on the path, or where this one is installed."""
    beside = Path(sys.base_prefix).parent.glob("3.*/bin/python3")
    on_path = (shutil.which(f"python3.{minor}") for minor in range(sys.version_info[1] + 1, 30))
    found = []
    for python in {*map(str, beside), *filter(None, on_path)}:
        asked = [python, "-c", "import sys; print(*sys.version_info[:2])"]
        said = subprocess.run(asked, capture_output=True, text=True)
        if said.returncode == 0:
            major, minor = map(int, said.stdout.split())
            found.append(((major, minor), python))
    above = [each for each in found if each[0] > sys.version_info[:2]]
    return max(above, default=None)


def dependencies() -> list[str]:
    """The project's own, without torch and Dagster, and without versions: the newest."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[<>=!~ ]", each)[0] for each in wanted]
    return [name for name in names if name not in ("torch", "dagster")] + OTHERS


def installed(python: str) -> list[str]:
    """The environment with what the project depends on; how its pip is called."""
    if not (VENV / "bin/python").exists():
        subprocess.run([python, "-m", "venv", str(VENV)], check=True)
    pip = [str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-compile", "--upgrade", *dependencies()], check=True)
    return pip


def finished(folder: Path) -> None:
    """The project that tests read, computed here."""
    sys.path[:0] = [str(TESTS), str(ROOT)]
    from tiny_project import Project

    project = Project(folder / "finished")
    project.materialize()
    (folder / "project.pickle").write_bytes(pickle.dumps(project))


def main() -> int:
    found = newest()
    if found is None:
        print(f"no Python newer than {sys.version.split()[0]} is found here: nothing to try")
        return 0
    (major, minor), python = found
    print(f"Python {major}.{minor} ({python})", flush=True)
    pip = installed(python)
    if "--install-only" in sys.argv:  # while something else is done
        return 0
    itself = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    subprocess.run([*pip, "install", *itself], check=True)
    packages = ("numpy", "pandas", "xarray", "zarr", "numcodecs", "dask")
    shown = "; ".join(f"print('{name}', version('{name}'))" for name in packages)
    subprocess.run([pip[0], "-c", f"from importlib.metadata import version; {shown}"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        finished(Path(folder))
        run = [pip[0], "-m", "pytest", "-q", "--numprocesses", "auto", "--dist", "loadfile"]
        environment = os.environ | {"FINISHED_PROJECT": folder}
        tests = [str(TESTS / name) for name in TORCHLESS]
        return subprocess.run([*run, *tests], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
