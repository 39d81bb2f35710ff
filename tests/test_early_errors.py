"""Mistakes are told before anything slow is imported: a test of modules, not of seconds."""

import json
import subprocess
import sys
from pathlib import Path

from tiny_project import Project

ASK = """
import json
import sys

from click.testing import CliRunner

from influence_dag.__main__ import main

for mistake, folder in {folders!r}.items():
    for command in {commands!r}:
        done = CliRunner().invoke(main, [command, folder])
        slow = [name for name in {slow!r} if name in sys.modules]
        print(json.dumps([mistake, command, str(done.exception), slow]))
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


def assert_told(
    root: Path, mistakes: dict[str, tuple[dict, str]], commands: list[str], slow: list[str]
) -> None:
    """By each command, one mistake after the other in a process that by then has nothing slow."""
    folders = {}
    for mistake, (change, _) in mistakes.items():
        project = Project(root / mistake)
        project.write_settings(**change)
        folders[mistake] = str(project.folder)
    code = ASK.format(commands=commands, folders=folders, slow=slow)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(mistakes) * len(commands)
    for mistake, command, said, imported in told:
        assert mistakes[mistake][1] in said, (mistake, command)
        assert imported == [], (mistake, command)


def test_wrong_settings_are_told_before_anything_is_imported(tmp_path):
    slow = ["torch", "dagster", "pandas", "xarray", "zarr"]
    assert_told(tmp_path, SETTINGS, ["status", "materialize"], slow)


def test_wrong_rows_are_told_before_torch_and_dagster_are_imported(tmp_path):
    mistakes = {name: ({"data": change}, words) for name, (change, words) in DATA.items()}
    assert_told(tmp_path, mistakes, ["check", "status", "materialize"], ["torch", "dagster"])


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


def test_named_code_that_is_not_there_is_told_before_anything_is_imported(tmp_path):
    slow = ["torch", "dagster", "pandas", "xarray", "zarr", "tiny_model"]
    assert_told(tmp_path, NAMED, ["check", "status", "materialize"], slow)
