"""Imports point one way: components → stages → influence → solvers → curvature → gradients."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "influence_dag"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

DAGSTER = ["dagster", "dagster_shared"]
STORING = ["dask", "distributed", "zarr", "xarray"]
NUMERICAL = [
    "capture",
    "curvature",
    "fitting",
    "functional",
    "gradient_blocks",
    "gradients",
    "influence",
    "inversion",
    "layered_perturbation",
    "losses",
    "models",
    "objective",
    "objective_checks",
    "perturbation",
    "rows",
    "seeding",
    "solvers",
]
# A room and those above it, of which it must not know.
ABOVE = {
    "gradients": ["curvature", "solvers", "influence", "perturbation", "stages"],
    "curvature": ["solvers", "influence", "perturbation", "stages", "validation"],
    "solvers": ["influence", "perturbation", "functional", "inversion", "stages", "validation"],
    "influence": ["functional", "inversion", "stages", "validation", "labelled"],
    "functional": ["stages", "store", "labelled", "query", "study"],
    "store": ["stages", "labelled", "query", "study", "execution", "datasets", "models"],
    "execution": ["stages", "store", "labelled", "study"],
    "labelled": ["stages", "query", "study"],
    "study": ["stages", "store", "labelled", "query", "running"],
    "query": ["components", "running", "stages"],
    "suspect_rows": ["components", "running", "stages"],
    "stages": ["components", "running", "query", "showing"],
    "graph": ["components", "running", "query"],
}


def top_level_imports(path: Path) -> set[str]:
    """What importing the module imports: not what its functions import when they are called."""
    found: set[str] = set()
    for node in _outside_functions(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def all_imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


def _outside_functions(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not typing_only:
            yield child
            yield from _outside_functions(child)


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
    assert forbidden(room(*NUMERICAL, "validation"), DAGSTER + STORING, all_imports) == []


def test_stores_queries_and_settings_do_not_import_torch():
    names = ("store", "query", "study", "labelled", "execution", "graph", "datasets", "lazy")
    assert forbidden(room(*names, "suspect_rows"), ["torch"]) == []
    assert forbidden(room("store", "query", "study"), ["torch"], all_imports) == []


def test_distributed_is_imported_by_those_who_ask_for_it():
    assert forbidden(MODULES, ["distributed", "dask.distributed"]) == []


@pytest.mark.parametrize("name", ABOVE)
def test_a_room_does_not_know_those_above_it(name):
    above = [f"influence_dag.{room}" for room in (*ABOVE[name], "components")]
    assert forbidden(room(name), above) == []


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import influence_dag", ["dagster", "distributed", "torch", "xarray"]),
        ("import influence_dag.query", ["dagster", "distributed", "torch"]),
        ("import influence_dag.study", ["dagster", "dask", "torch", "xarray"]),
        ("from influence_dag import compute_influences", ["dagster", "distributed", "zarr"]),
        ("from influence_dag import materialize", ["dagster", "distributed", "torch"]),
        ("import influence_dag.components", ["torch", "distributed", "matplotlib"]),
        ("import influence_dag.__main__", ["dagster", "torch"]),
    ],
)
def test_importing_does_not_pull_in(statement, absent):
    code = f"import sys; {statement}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_resolves():
    import influence_dag

    for name in influence_dag.__all__:
        assert getattr(influence_dag, name) is not None
    assert set(influence_dag.__all__) <= set(dir(influence_dag))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = influence_dag.nonsense


def test_package_inits_list_names_and_do_nothing_else():
    allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.Expr
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module != "influence_dag.__init__":
            body = ast.parse(path.read_text()).body
            assert all(isinstance(node, allowed) for node in body), module
