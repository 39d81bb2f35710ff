"""What docs/security.md says of what runs and what is read, where that can be tested."""

import ast
from functools import cache
from pathlib import Path

import pytest
from tiny_project import Project

from influence_dag.errors import DataError

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "influence_dag").rglob("*.py"))


# Shards hand over what they have left in a folder that is their user's alone (exchange.enter).
OWN = {"exchange.py": "pickle.loads"}


@cache
def calls() -> list[tuple[str, ast.Call]]:
    return [
        (ast.unparse(node.func), node)
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call) and OWN.get(source.name) != ast.unparse(node.func)
    ]


def test_nothing_is_unpickled_or_evaluated():
    unsafe = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "dill.load", "yaml.load"}
    assert [name for name, _ in calls() if name in unsafe] == []
    for name, call in calls():
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("allow_pickle", "False") == "False"
        if name == "torch.load":
            assert said.get("weights_only") == "True"


def test_an_array_of_objects_is_refused_and_not_unpickled(tmp_path):
    import numpy as np

    class Runs:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    project = Project(tmp_path / "project", data={"train": "train.npz", "id": None, "target": "y"})
    things = np.array([Runs()] * 4, dtype=object)
    np.savez(project.root / "train.npz", x=things, y=np.arange(4))
    with pytest.raises(DataError):
        project.refresh()
    assert not (tmp_path / "ran").exists()


def test_the_interface_stays_on_the_loopback_interface():
    lines = (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
    started = [line for line in lines if "dagster dev" in line]
    assert started
    assert all("--host 127.0.0.1 " in line for line in started)
