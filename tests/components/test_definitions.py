"""Definitions load quickly and purely, Dagster's commands accept them, mistakes have a line."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


ONE_AFTER_ANOTHER = """
import json, os, sys, tempfile
from dagster_dg_cli.cli import main
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    sys.argv, code = ["dg", *json.loads(line)], 0
    with tempfile.TemporaryFile("w+") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        said.seek(0)
        print(json.dumps([code, said.read()]), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of the project, in which `dg` works."""
    return copy_project(tmp_path_factory.mktemp("scaffolded") / "project")


@pytest.fixture(scope="module")
def dg(folder, commands) -> Iterator[Callable[..., tuple[int, str]]]:
    """The command of that name in that folder: its status and all that it says.

    One process, which has imported Dagster once, does all that is asked.
    """
    with subprocess.Popen(
        [sys.executable, "-c", ONE_AFTER_ANOTHER], cwd=folder, env=commands, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        questions, answers = process.stdin, process.stdout
        assert questions is not None and answers is not None  # noqa: PT018  (for the types)

        def ask(*words: str) -> tuple[int, str]:
            print(json.dumps(words), file=questions, flush=True)
            return tuple(json.loads(answers.readline()))

        yield ask


@pytest.fixture(scope="module")
def scaffolded(folder, dg) -> Path:
    """The project with one study more, as Dagster's command writes it."""
    code, said = dg("scaffold", "defs", "influence_dag.components.InfluenceStudy", "my_study")
    assert code == 0, said
    assert "WARNING" not in said
    return folder


@pytest.fixture(scope="module")
def listed(scaffolded, dg) -> dict:
    code, said = dg("list", "defs", "--json")
    assert code == 0, said
    return json.loads(said)


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


def test_its_check_passes_in_seconds(scaffolded, dg):
    started = time.perf_counter()
    code, said = dg("check", "defs")
    assert code == 0, said
    assert "WARNING" not in said
    assert time.perf_counter() - started < 30


@pytest.mark.campaign
def test_dagsters_own_check_passes_in_seconds(copied, commands):
    started = time.perf_counter()
    done = run("dagster", "definitions", "validate", cwd=copied, env=commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    assert time.perf_counter() - started < 30


def test_a_slip_in_a_study_is_told_with_file_and_line(scaffolded, dg):
    file = scaffolded / "assets/digits/defs.yaml"
    text = file.read_text()
    line = 1 + text[: text.index("rtol:")].count("\n")
    file.write_text(text.replace("rtol:", "rtoll:"))
    try:
        code, said = dg("check", "defs")
    finally:
        file.write_text(text)
    assert code == 1
    assert f"attributes.methods.cg.rtoll at {file}:{line}" in said
    assert "did you mean 'rtol'?" in said


def test_a_scaffolded_study_loads(scaffolded, listed):
    folder = scaffolded / "assets/my_study"
    assert {path.name for path in folder.iterdir()} >= {"defs.yaml", "model.py"}
    assert "my_study/direct/influences" in {asset["asset_key"] for asset in listed["assets"]}
    namespace: dict = {}
    exec((folder / "model.py").read_text(), namespace)
    assert sum(p.numel() for p in namespace["build"]().parameters()) > 0
