"""Imports point one way, from a room to those that it stands on, delayed imports included."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rooms import (
    MODULES,
    PAGE,
    ROOMS,
    all_imports,
    graph,
    longest_chain,
    page,
    runtime_imports,
    top_level_imports,
)

DAGSTER = ["dagster", "dagster_shared"]
STORING = ["dask", "distributed", "zarr", "xarray"]
NUMERICAL = ROOMS[ROOMS.index("losses") : ROOMS.index("datasets")]


def within(name: str, packages: list[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def room(*names: str) -> dict[str, Path]:
    found = {
        module: path
        for module, path in MODULES.items()
        if within(module, [f"influence_dag.{name}" for name in names])
    }
    assert found, names
    return found


def forbidden(modules: dict[str, Path], packages: list[str], imports=top_level_imports) -> list:
    return [
        f"{module} imports {name}"
        for module, path in modules.items()
        for name in sorted(imports(path))
        if within(name, packages)
    ]


def test_only_the_components_import_dagster():
    rest = {
        module: path
        for module, path in MODULES.items()
        if not within(module, ["influence_dag.components", "influence_dag.definitions"])
    }
    assert forbidden(rest, DAGSTER, all_imports) == []


def test_numerical_rooms_know_nothing_of_storage():
    assert forbidden(room(*NUMERICAL), DAGSTER + STORING, all_imports) == []


def test_stores_queries_and_settings_do_not_import_torch():
    names = (
        "fingerprints",
        "files",
        "study",
        "store",
        "datasets",
        "query",
        "running",
        "components",
    )
    assert forbidden(room(*names, "stages.graph", "stages.blocks"), ["torch"]) == []
    assert forbidden(room("store", "study", "fingerprints", "files"), ["torch"], all_imports) == []


def test_how_folders_keep_a_store_is_the_business_of_one_folder():
    """But for locks: of runs of Dagster, marks, shards, Icechunk, and who has a bucket's."""
    posix = "influence_dag.store.posix"
    rest = {module: path for module, path in MODULES.items() if not within(module, [posix])}
    knowing = {line.split(" imports ")[0] for line in forbidden(rest, [posix], all_imports)}
    icechunk = {f"influence_dag.store.icechunk.{name}" for name in ("leases", "places")}
    assert knowing == {
        *icechunk,
        "influence_dag.components.dead_runs",
        "influence_dag.explorer.marks",
        "influence_dag.stages.shards",
    }


def test_stages_queries_and_components_know_stores_by_their_protocol():
    kinds = [f"influence_dag.store.{name}" for name in ("published", "drafts", "versioned")]
    kinds += ["influence_dag.store.memory", "influence_dag.store.ArtifactStore"]
    kinds += ["influence_dag.store.icechunk"]
    users = room("datasets", "stages", "query", "components", "running", "study")
    assert forbidden(users, kinds, all_imports) == []


def test_the_contract_of_stores_is_shipped_and_never_imported():
    testing = "influence_dag.store.testing"
    rest = {module: path for module, path in MODULES.items() if not within(module, [testing])}
    assert forbidden(rest, [testing, "pytest"], all_imports) == []
    assert forbidden(room("store.testing"), ["pytest"]), "it is tests"


def test_distributed_is_imported_by_those_who_ask_for_it():
    assert forbidden(MODULES, ["distributed", "dask.distributed"]) == []


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_knows_those_that_it_stands_on(name):
    above = [f"influence_dag.{room}" for room in ROOMS[ROOMS.index(name) + 1 :]]
    assert forbidden(room(name), above, all_imports) == []


def test_every_room_has_its_place():
    assert {module.split(".")[1] for module in MODULES if "." in module} == {*ROOMS}
    assert sum((PAGE.parents[1] / f"influence_dag/{room}.py").exists() for room in ROOMS) <= 10


def test_no_chain_of_imports_is_long():
    """And there is no circle of modules, whenever they are imported."""
    assert len(longest_chain(graph(top_level_imports))) <= 12
    longest_chain(graph(runtime_imports))


def test_the_page_shows_the_rooms_as_they_are():
    assert PAGE.read_text() == page(), "run `make architecture`"


@pytest.mark.parametrize(
    "statements",
    [
        {
            "import influence_dag": ["dagster", "distributed", "torch", "xarray"],
            "from influence_dag.study import StudySettings": ["dagster", "dask", "torch", "xarray"],
            "from influence_dag.query import open_study": ["dagster", "distributed", "torch"],
            "from influence_dag import materialize": ["dagster", "distributed", "torch"],
            "import influence_dag.components": ["torch", "distributed", "matplotlib"],
        },
        {"from influence_dag import compute_influences": ["dagster", "pydantic", "zarr"]},
    ],
    ids=lambda statements: ", ".join(statements),
)
def test_importing_does_not_pull_in(statements):
    """One after the other: what several together leave out, each leaves out."""
    code = "import sys\n" + "\n".join(
        f"{statement}\nprint([name for name in {absent} if name in sys.modules])"
        for statement, absent in statements.items()
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n" * len(statements)


def test_every_public_name_resolves():
    import influence_dag

    for name in influence_dag.__all__:
        assert getattr(influence_dag, name) is not None
    assert set(influence_dag.__all__) <= set(dir(influence_dag))
    with pytest.raises(AttributeError, match="attribute nonsense"):
        _ = influence_dag.nonsense


def test_benchmarks_import_what_there_is():
    """Most are run by hand, once in a while."""
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    asked = {
        (node.module, alias.name)
        for path in benchmarks.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("influence_dag")
        for alias in node.names
    }
    assert asked
    for module, name in asked:
        there = hasattr(importlib.import_module(module), name) or f"{module}.{name}" in MODULES
        assert there, (module, name)


def test_package_inits_list_names_and_do_nothing_else():
    allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.Expr
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module != "influence_dag":
            body = ast.parse(path.read_text()).body
            assert all(isinstance(node, allowed) for node in body), module


def test_what_tests_share_is_in_no_test():
    """Or one would import another, with its fixtures and settings."""
    tests = Path(__file__).parent
    shared = {
        f"{path.relative_to(tests)} imports {name}"
        for path in tests.rglob("*.py")
        for name in re.findall(r"^\s*(?:from|import) (test_\w+)", path.read_text(), re.MULTILINE)
        if name != path.stem
    }
    assert shared == set()


def test_files_that_are_tested_first_are_there():
    """One that was renamed would fall out of the list without a word."""
    tests = Path(__file__).parent
    (listed,) = re.findall(r"\nLONGEST = (\(.*\))\n", (tests / "conftest.py").read_text())
    assert {*ast.literal_eval(listed)} <= {file.name for file in tests.rglob("test_*.py")}
