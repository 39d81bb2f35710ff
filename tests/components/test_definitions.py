"""Definitions load quickly and purely, Dagster's commands accept them, mistakes have a line."""

import json
import time
from pathlib import Path

import pytest
from project_copy import copy_project, run

LOAD = """
import sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
from influence_dag.definitions import defs
assert defs().resolve_job_def("digits_refresh")
heavy = [name for name in ("torch", "matplotlib", "distributed") if name in sys.modules]
print(heavy, [path for path in opened if "data/store" in path])
"""


def test_loading_imports_nothing_heavy_and_leaves_the_store_alone(copied, commands):
    done = run("python", "-c", LOAD, cwd=copied, env=commands)
    assert done.stdout == "[] []\n", done.stdout + done.stderr
    assert not (copied / "data/store").exists()


SCAFFOLD = ("dg", "scaffold", "defs", "influence_dag.components.InfluenceStudy", "my_study")


@pytest.fixture(scope="module")
def scaffolded(commands, tmp_path_factory) -> Path:
    """A copy of the project with one study more, as Dagster's command writes it."""
    project = copy_project(tmp_path_factory.mktemp("scaffolded") / "project")
    done = run(*SCAFFOLD, cwd=project, env=commands)
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture(scope="module")
def listed(scaffolded, commands) -> dict:
    done = run("dg", "list", "defs", "--json", cwd=scaffolded, env=commands)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_dg_lists_the_graph_with_descriptions_kinds_and_groups(listed):
    digits = [asset for asset in listed["assets"] if asset["group_name"] == "digits"]
    assert {asset["asset_key"] for asset in digits} >= {
        "digits/dataset",
        "digits/model",
        "digits/direct/perturbation_influences",
        "digits/cg/influences",
        "digits/report",
    }
    assert all(asset["description"] for asset in digits)
    kinds = {asset["asset_key"]: set(asset["kinds"]) for asset in digits}
    assert kinds.pop("digits/source") == kinds.pop("digits/edits") == set()
    assert kinds["digits/dataset"] == {"zarr"}
    assert kinds["digits/cg/influences"] == {"torch", "zarr", "cg"}, "told apart in the graph"
    assert all(kinds.values())
    assert {job["name"] for job in listed["jobs"]} >= {"digits_refresh", "diabetes_refresh"}


@pytest.mark.parametrize(
    "command",
    [
        ("dg", "check", "defs"),
        pytest.param(("dagster", "definitions", "validate"), marks=pytest.mark.campaign),
    ],
    ids=" ".join,
)
def test_checks_of_dagster_pass_in_seconds(copied, commands, command):
    started = time.perf_counter()
    done = run(*command, cwd=copied, env=commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    assert time.perf_counter() - started < 30


def test_a_slip_in_a_study_is_told_with_file_and_line(writable, commands):
    file = writable / "assets/digits/defs.yaml"
    text = file.read_text()
    line = 1 + text[: text.index("rtol:")].count("\n")
    file.write_text(text.replace("rtol:", "rtoll:"))
    done = run("dg", "check", "defs", cwd=writable, env=commands)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert f"attributes.methods.cg.rtoll at {file}:{line}" in said
    assert "did you mean 'rtol'?" in said


def test_a_scaffolded_study_loads(scaffolded, listed):
    folder = scaffolded / "assets/my_study"
    assert {path.name for path in folder.iterdir()} >= {"defs.yaml", "model.py"}
    assert "my_study/direct/influences" in {asset["asset_key"] for asset in listed["assets"]}
    namespace: dict = {}
    exec((folder / "model.py").read_text(), namespace)
    assert sum(p.numel() for p in namespace["build"]().parameters()) > 0
