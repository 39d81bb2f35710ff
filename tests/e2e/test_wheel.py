"""The built wheel, installed where this repository is not, runs a study in a folder of its own."""

import csv
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from tiny_project import COLUMNS, make_rows

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

STUDY = """
import sys
from pathlib import Path

import xarray as xr

import influence_dag as idag
from influence_dag.starting.folder import Start, init

assert Path(idag.__file__).is_relative_to(sys.prefix), idag.__file__
assert not any("__editable__" in name for name in sys.modules)
print(init(Start(Path("tiny"), train="train.csv", test="test.csv", target="label")))
study = idag.materialize("tiny", progress=False)
top = study["direct"].influences.idag.top_k(1)
tree = xr.open_datatree(study.store.address)  # by an entry point of the wheel
assert tree["direct/influences"].influences.sizes == {"test": 10, "train": 40}
print("strongest", *top.isel(rank=0).train.values)
"""


def run(*command: object, cwd: Path) -> str:
    """What a command prints, with nothing of this process's own paths in its environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "influence_dag", source / "influence_dag", ignore=skip)
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel; what it depends on is seen in that of the tests.

    A line of a .pth file adds a folder without following the .pth files in it, of which an
    editable install is one.
    """
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, symlinks=True)
    interpreter = home / "bin" / "python"
    options = ["--python", interpreter, "install", "--no-compile", "--no-deps", "--no-index", wheel]
    run(*PIP, *options, cwd=home)
    (site,) = home.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
    return interpreter


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "influence_dag").rglob("*") if path.is_file())
    assert packed == {
        str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts
    }
    assert "influence_dag/py.typed" in packed


def test_a_study_runs_in_a_folder_of_its_own(python, tmp_path):
    for split, n in (("train", 40), ("test", 10)):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *make_rows(split, n)])
    said = run(python, "-c", STUDY, cwd=tmp_path)
    assert "tiny: 40 training rows, 10 test rows" in said
    strongest = said.splitlines()[-1].split()[1:]
    assert len(strongest) == 10
    assert all(name.startswith("train-") for name in strongest)
    assert run(python.parent / "influence-dag", "--version", cwd=tmp_path).startswith(
        "influence-dag"
    )
