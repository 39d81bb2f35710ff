"""A type checker sees what the public names are: none of them is `Any` or unknown."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import influence_dag


@pytest.mark.e2e
def test_pyright_knows_every_public_name(tmp_path):
    lines = ["import influence_dag"]
    lines += [f"reveal_type(influence_dag.{name})" for name in sorted(influence_dag.__all__)]
    asked = tmp_path / "asked.py"
    asked.write_text("\n".join(lines))
    root = Path(influence_dag.__file__).parents[1]
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(root)]}))
    command = [str(Path(sys.executable).with_name("pyright")), "--outputjson", str(asked)]
    command += ["--pythonpath", sys.executable]
    found = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True).stdout)
    told = [each["message"] for each in found["generalDiagnostics"]]
    assert len(told) == len(influence_dag.__all__)
    nothing = [one for one in told if '"Any"' in one or "Unknown" in one or "not a known" in one]
    assert not nothing
