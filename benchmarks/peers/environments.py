"""An environment of its own for each library, so that none decides what another may use."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".peers"

# What each is installed with: pyDVL's torch module imports the two beside it.
REQUIREMENTS = {
    "pydvl": ("pydvl==0.10.0", "distributed", "zarr<3"),
    "kronfluence": ("kronfluence==1.0.1",),
    "dattri": ("dattri==0.3.0",),
    "captum": ("captum==0.9.0",),
}


def interpreter(library: str) -> Path:
    """The Python of a library's environment, which is made if it is not there yet."""
    if library == "influence_dag":
        return Path(sys.executable)
    folder = FOLDER / library
    ready, python = folder / "ready", folder / "bin" / "python"
    wanted = " ".join((_torch(), *REQUIREMENTS[library]))
    if not ready.exists() or ready.read_text() != wanted:
        print(f"installing {wanted} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, _torch()], check=True)  # first: it decides what is downloaded
        subprocess.run([*install, _torch(), *REQUIREMENTS[library]], check=True)
        ready.write_text(wanted)
    return python


def _torch() -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))
