"""The package's rooms, what each stands on, and the page that shows it: `make architecture`."""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from influence_dag.stages.graph import artifacts
from influence_dag.study.study import Study, StudySettings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "influence_dag"
PAGE = ROOT / "docs" / "architecture.md"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# A room may import those before it.
ROOMS = [
    *("errors", "texts", "addresses", "unchanged", "structures", "fingerprints", "files", "store"),
    "suspicion",
    *("study", "losses", "objective", "gradients", "curvature", "solvers", "influence"),
    *("validation", "functional", "datasets", "stages", "explorer", "query", "starting"),
    *("components", "running", "definitions", "cli", "__main__"),
]

Graph = Mapping[str, set[str]]


@cache
def all_imports(path: Path) -> set[str]:
    """What a module imports, its functions when they are called included."""
    return _named(ast.walk(ast.parse(path.read_text())))


@cache
def top_level_imports(path: Path) -> set[str]:
    """What importing the module imports: not what its functions import when they are called."""
    return _named(_walked(ast.parse(path.read_text()), inside_functions=False))


@cache
def runtime_imports(path: Path) -> set[str]:
    """What a module imports sooner or later: not what only type checkers see."""
    return _named(_walked(ast.parse(path.read_text()), inside_functions=True))


def _named(nodes: Iterator[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module
            handed_on = faces().get(node.module, {})
            found |= {handed_on[alias.name] for alias in node.names if alias.name in handed_on}
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= MODULES.keys() else names | {node.module}
    return found


@cache
def faces() -> dict[str, dict[str, str]]:
    """Of each lazy face, the module that every name of it is from: importing that imports this."""
    found = {}
    for stub in PACKAGE.rglob("__init__.pyi"):
        room = ".".join(stub.parent.relative_to(ROOT).parts)
        found[room] = {
            alias.name: f"{room}.{node.module}"
            for node in ast.parse(stub.read_text()).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
    return found


def _walked(node: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if not typing_only and (inside_functions or not is_function):
            yield child
            yield from _walked(child, inside_functions=inside_functions)


def graph(imports: Callable[[Path], set[str]]) -> dict[str, set[str]]:
    """Module → modules of the package that it imports."""
    return {name: imports(path) & MODULES.keys() - {name} for name, path in MODULES.items()}


def longest_chain(edges: Graph) -> list[str]:
    """Modules that each import the next, as many as there are in a row."""
    known: dict[str, list[str]] = {}

    def below(name: str, above: tuple[str, ...]) -> list[str]:
        assert name not in above, f"a circle: {[*above, name]}"
        if name not in known:
            under = [below(each, (*above, name)) for each in sorted(edges[name])]
            known[name] = [name, *max(under, key=len, default=[])]
        return known[name]

    return max((below(name, ()) for name in edges), key=len)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def room_imports() -> dict[str, set[str]]:
    """Room → rooms that it imports, delayed imports included."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, path in MODULES.items():
        if room := room_of(module):
            named = {
                room_of(each) for each in all_imports(path) if each.startswith("influence_dag.")
            }
            found[room] |= {each for each in named if each in found and each != room}
    return found


def _needed(edges: Graph) -> dict[str, set[str]]:
    """Without arrows that follow from others."""

    def reached(room: str) -> set[str]:
        return edges[room] | {far for each in edges[room] for far in reached(each)}

    return {
        room: {each for each in near if not any(each in reached(other) for other in near - {each})}
        for room, near in edges.items()
    }


def picture() -> str:
    """Mermaid's words for the rooms and what each stands on, arrows that follow left out."""
    lines = ["flowchart BT"]
    for room, under in _needed(room_imports()).items():
        lines += [f"    {each} --> {room}" for each in ROOMS if each in under]
    return "\n".join(
        ["```mermaid", *(line.replace("__main__", "main[__main__]") for line in lines), "```"]
    )


def table() -> str:
    """Each room, by its own first sentence, and the rooms that it imports."""
    rows = ["| room | | imports |", "| --- | --- | --- |"]
    for room, under in room_imports().items():
        path = PACKAGE / room / "__init__.py"
        source = (path if path.exists() else PACKAGE / f"{room}.py").read_text()
        first = str(ast.get_docstring(ast.parse(source))).splitlines()[0]
        named = ", ".join(f"`{each}`" for each in ROOMS if each in under)
        rows.append(f"| `{room}` | {first} | {named or 'nothing of ours'} |")
    return "\n".join(rows)


def everything() -> Study:
    """A study that has every kind of artifact, by one method."""
    settings = {
        "data": {"train": "train.csv", "test": "test.csv", "target": "label"},
        "model": {"build": "model:build", "fit": {"weight_decay": 0.1}},
        "methods": {"direct": {}},
        "perturbation": {"methods": ["direct"]},
        "validation": {"leave_one_out": {}, "datamodels": {}, "label_errors": {}},
    }
    return Study("everything", StudySettings.model_validate(settings), ROOT)


def artifacts_table(study: Study) -> str:
    """Each artifact of a study as its node declares it."""
    rows = ["| artifact | reads | stage, formula | checks | picture |", "| --- " * 5 + "|"]
    for node in artifacts(study):
        checks = ", ".join(f"`{check.name}`" for check in node.checks)
        shown = ", ".join(f"`{name}`" for name in (node.picture.names if node.picture else ()))
        reads = ", ".join(f"`{name}`" for name in node.reads)
        made = f"`{node.stage}`, {node.formula}"
        rows.append(f"| `{node.name}` | {reads} | {made} | {checks} | {shown} |")
    return "\n".join(rows)


def page() -> str:
    """The page with all three made anew."""
    text = PAGE.read_text()
    made_anew = {
        "picture": picture(),
        "table": table(),
        "artifacts": artifacts_table(everything()),
    }
    for name, made in made_anew.items():
        between = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(
            between, lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text, flags=re.S
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(" → ".join(longest_chain(graph(top_level_imports))) + "\n")
