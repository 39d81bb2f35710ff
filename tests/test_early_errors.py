"""Mistakes are told before anything slow is imported: a test of modules, not of seconds."""

import json
import subprocess
import sys

import pytest
from tiny_project import Project

ASK = """
import json
import sys

from click.testing import CliRunner

from influence_dag.__main__ import main

for command in {commands!r}:
    done = CliRunner().invoke(main, [command, {folder!r}])
    slow = [name for name in {slow!r} if name in sys.modules]
    print(json.dumps([command, str(done.exception), slow]))
"""
SETTINGS = {
    "an unknown name": ({"metods": {"direct": {}}}, "metods: unknown name; did you mean 'methods'"),
    "a wrong type": ({"damping": "much"}, "damping"),
}
DATA = {
    "a missing file": ({"train": "trian.csv"}, "no file"),
    "a wrong target": ({"target": "lable"}, "no target column 'lable'"),
    "a wrong class": ({"classes": ["a", "b"]}, "none of the classes (a, b)"),
    "a wrong feature": ({"features": {"columns": ["hieght"]}}, "no feature column 'hieght'"),
}


def asked(project: Project, commands: list[str], slow: list[str]) -> dict[str, tuple]:
    """What each command said, and which of the slow modules were imported by then."""
    code = ASK.format(commands=commands, folder=str(project.folder), slow=slow)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name: (said, found) for name, said, found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("mistake", SETTINGS)
def test_wrong_settings_are_told_before_anything_is_imported(tmp_path, mistake):
    change, words = SETTINGS[mistake]
    project = Project(tmp_path, **change)
    slow = ["torch", "dagster", "pandas", "xarray", "zarr"]
    for said, imported in asked(project, ["status", "materialize"], slow).values():
        assert words in said
        assert imported == []


@pytest.mark.parametrize("mistake", DATA)
def test_wrong_rows_are_told_before_torch_and_dagster_are_imported(tmp_path, mistake):
    change, words = DATA[mistake]
    project = Project(tmp_path, data=change)
    commands = ["check", "status", "materialize"]
    for said, imported in asked(project, commands, ["torch", "dagster"]).values():
        assert words in said
        assert imported == []


NAMED = {
    "a lost loss": ({"model": {"loss": "tiny_model:lost"}}, "tiny_model.py has no 'lost'"),
    "a lost measurement": ({"model": {"measurement": "tiny_model:lost"}}, "has no 'lost'"),
    "a misspelt name": (
        {"model": {"build": "tiny_model:biuld"}},
        "tiny_model.py has no 'biuld'; did you mean build?",
    ),
    "a lost module": ({"model": {"build": "tiny_modell:build"}}, "no module 'tiny_modell'"),
    "lost rows": ({"data": {"train": "tiny_rows:train"}}, "no module 'tiny_rows'"),
}


@pytest.mark.parametrize("mistake", NAMED)
def test_named_code_that_is_not_there_is_told_before_anything_is_imported(tmp_path, mistake):
    change, words = NAMED[mistake]
    project = Project(tmp_path)
    project.write_settings(**change)
    slow = ["torch", "dagster", "pandas", "xarray", "zarr", "tiny_model"]
    found = asked(project, ["check", "status", "materialize"], slow)
    for said, imported in found.values():
        assert words in said
        assert imported == []
