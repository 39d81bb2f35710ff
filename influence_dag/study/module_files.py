"""Where the code of modules lies: what a source text imports, and in which files that is found.

Files of the project come first. Then whatever Python's path and import hooks find: folders of
PYTHONPATH and editable installs are people's own code too. Installed distributions have a version
instead.
"""

import ast
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    BuiltinImporter,
    FrozenImporter,
    ModuleSpec,
)
from importlib.metadata import distributions, version
from pathlib import Path

from influence_dag.errors import StudyError

INSTALLED = ("site-packages", "dist-packages")
TOLD_ELSEWHERE = ("torch", "numpy")  # their versions are in `made_with`: no key follows them
STAR = "*"
_ENDINGS = (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES, *BYTECODE_SUFFIXES)  # as Python looks for them
_IMPORTERS = {  # functions that import what a text names, and their arguments
    "import_module": ("name", "package"),
    "__import__": ("name", "globals", "locals", "fromlist", "level"),
}
_OWN = __name__.partition(".")[0]  # this package: its formulas have versions


def file_of(name: str, root: Path) -> Path | None:
    """The source of a module; None for Python's own, for what is installed or does not exist."""
    file = _module_file(name, root)
    return file if file and file.suffix in SOURCE_SUFFIXES else None


def _module_file(name: str, root: Path) -> Path | None:
    """The file that Python would import, compiled ones included."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        _check_is_pythons(top, root)
        return None
    if top == _OWN or _is_installed(top):
        return None
    inside = _first(name, _folders_of(root))
    return inside or _first(name, _outside(top))  # whose hooks cost more than the project's folders


def _check_is_pythons(top: str, root: Path) -> None:
    """Raise `StudyError` where a project has a module of the name of one of Python's own.

    Which of the two an import finds depends on what the process has imported before: the project's
    would run here and not there, and its edits be seen by neither. Those that are built into the
    interpreter are found first everywhere.
    """
    built_in = any(finder.find_spec(top) for finder in (BuiltinImporter, FrozenImporter))
    if built_in or not (file := _first(top, _folders_of(root))):
        return
    raise StudyError(
        f"{file} has the name of {top}, a module of Python's own, which the study's code imports: "
        "which of the two runs depends on what was imported before; rename the file"
    )


def _first(name: str, folders: Iterable[Path]) -> Path | None:
    return next(filter(None, (_in_folder(name, folder) for folder in folders)), None)


def looked_through(
    module: str, root: Path
) -> tuple[dict[str, tuple[Path, bytes]], dict[str, Path | None]]:
    """Files and their contents, of a module and of all that it imports; what else there is.

    Both by name of module. The others are compiled, then with their file, or Python's own,
    installed or not to be found.
    """
    root = root.resolve()
    found, elsewhere = dict[str, tuple[Path, bytes]](), dict[str, Path | None]()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name.endswith(f".{STAR}"):
            package = name.removesuffix(f".{STAR}")
            waiting += starred(package, file_of(package, root))
            continue
        if name in found or name in elsewhere:
            continue
        file = _module_file(name, root)
        if file is None or file.suffix not in SOURCE_SUFFIXES:
            elsewhere[name] = file
            waiting += packages(name) if file else ()
            continue
        content = file.read_bytes()
        found[name] = file, content
        waiting += packages(name)
        waiting += imports(content, name, is_package=file.name == "__init__.py")
    return found, elsewhere


def is_of_project(name: str, root: Path) -> bool:
    """Whether a module's file lies in the project's folder, and in no environment there."""
    file = file_of(name, root.resolve())
    return file is not None and file.is_relative_to(root.resolve())


def installed_version(name: str) -> str | None:
    """`scipy 1.11.4` of a module of an installed distribution, as far as keys follow its version.

    None also for what is installed without a distribution: its files count.
    """
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in (*TOLD_ELSEWHERE, _OWN):
        return None
    return _version_of(top)


@cache  # of what this process imported: another version would run in another process
def _version_of(top: str) -> str | None:
    if not any(is_in_environment(folder) for folder in _places(top)):
        return None
    names = sorted(_distributions_of(top))
    return ", ".join(f"{name} {version(name)}" for name in names) or None


def _distributions_of(top: str) -> set[str]:
    """Those that say that they have a package of that name, or hold its files.

    As `packages_distributions` has them of all names, which goes through every file of every one.
    """
    found = set[str]()
    for each in distributions():
        said = (each.read_text("top_level.txt") or "").split()
        held = "" if said else f"\n{each.read_text('RECORD') or ''}"
        if top in said or f"\n{top}/" in held or f"\n{top}." in held:
            found.add(each.metadata["Name"])
    return found


def _in_folder(name: str, folder: Path) -> Path | None:
    module = f"{folder}/{name.replace('.', '/')}"
    for stem in (f"{module}/__init__", module):
        for ending in _ENDINGS:
            if os.path.isfile(file := f"{stem}{ending}"):
                return Path(os.path.realpath(file))
    return None


def is_in_environment(path: Path) -> bool:
    return any(part in INSTALLED for part in path.parts)


@lru_cache(maxsize=1024)
def _is_file_in_environment(file: str) -> bool:
    return is_in_environment(Path(file))


def _is_installed(top: str) -> bool:
    """Whether the loaded package of that name comes from an environment: it will be used."""
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is not None and _is_file_in_environment(file)


def _folders_of(root: Path) -> list[Path]:
    current = "" if all(map(os.path.isabs, sys.path)) else os.getcwd()
    return _folders(root, tuple(sys.path), current)


@lru_cache(maxsize=16)
def _folders(root: Path, search: tuple[str, ...], current: str) -> list[Path]:
    """The project's folder, and those in it on Python's path (`src`), but no environment.

    Relative ones are in the current folder.
    """
    paths = (Path(current) / folder for folder in search)
    below = (path for path in paths if path.resolve().is_relative_to(root))
    return list(dict.fromkeys((root, *(path for path in below if not is_in_environment(path)))))


def _outside(top: str) -> list[Path]:
    """Folders that hold a package or module of people's own code, wherever Python finds it."""
    return [folder for folder in _places(top) if not is_in_environment(folder)]


def _places(top: str) -> list[Path]:
    """The folders in which Python would find a top-level name, without importing it."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find(top, None) if find else None
        if spec is not None:
            inside = spec.submodule_search_locations
            files = (
                list(inside) if inside is not None else [spec.origin] if spec.has_location else []
            )
            return [Path(file).parent for file in files if file]
    return []


def packages(name: str) -> Iterator[str]:
    """`a.b` and `a` of `a.b.c`: their code runs first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@lru_cache(maxsize=1024)
def imports(content: bytes, module: str, *, is_package: bool) -> tuple[str, ...]:
    """Every module that a source text may import: `from a import b` may mean `a.b`.

    `from a import *` ends in a star: what that is, a's `__all__` says (`starred`). Of
    `import_module("a.b")` the name is one that is written out.
    """
    names: list[str] = []
    statements = _statements(content)
    importers = _importers(statements)
    for node in statements:
        if isinstance(node, ast.Call):
            names += _called_for(node, importers, module, is_package)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += _from(node, module, is_package)
    return tuple(names)


def _from(node: ast.ImportFrom, module: str, is_package: bool) -> list[str]:
    base = _absolute(node, module, is_package)
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def _importers(statements: Iterable[ast.AST]) -> dict[str, tuple[str, ...]]:
    """What functions that import are called, `from importlib import import_module as load` too."""
    aliases = (
        alias for node in statements if isinstance(node, ast.ImportFrom) for alias in node.names
    )
    renamed = {alias.asname: alias.name for alias in aliases if alias.asname}
    return _IMPORTERS | {
        name: _IMPORTERS[imported] for name, imported in renamed.items() if imported in _IMPORTERS
    }


def _called_for(
    call: ast.Call, importers: Mapping[str, tuple[str, ...]], module: str, is_package: bool
) -> list[str]:
    """The modules that `import_module("name")` imports, `(".name", __package__)` included."""
    called = getattr(call.func, "attr", getattr(call.func, "id", None))
    given = dict(zip(importers.get(str(called), ()), call.args, strict=False))
    given |= {each.arg: each.value for each in call.keywords if each.arg}
    said = {argument: getattr(value, "value", None) for argument, value in given.items()}
    name, package = said.get("name"), said.get("package")
    if called not in importers or not isinstance(name, str):
        return []
    parts = getattr(given.get("fromlist"), "elts", ())
    wanted = [ast.alias(str(getattr(part, "value", ""))) for part in parts]
    dots = said.get("level") or len(name) - len(name.lstrip("."))
    statement = ast.ImportFrom(name.lstrip(".") or None, wanted, dots)
    if isinstance(package, str):
        return _from(statement, package, is_package=True)
    return _from(statement, module, is_package)


def starred(package: str, file: Path | None) -> list[str]:
    """The submodules that `from package import *` may import: those that `__all__` names.

    All of the package's where `__all__` is put together at run time.
    """
    if file is None or file.name != "__init__.py":
        return []
    named = _all_of(file.read_bytes())
    if named is None:
        named = tuple(sorted({path.stem for path in file.parent.iterdir() if _is_module(path)}))
    return [f"{package}.{name}" for name in named]


def _is_module(path: Path) -> bool:
    return (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()


@lru_cache(maxsize=256)
def _all_of(content: bytes) -> tuple[str, ...] | None:
    """What a package's `__all__` names, nothing without one; None if it is not written out."""
    names: list[str] = []
    for node in _statements(content):
        if isinstance(node, ast.Name) and node.id == "__all__" and isinstance(node.ctx, ast.Load):
            return None  # appended to, extended
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(each, ast.Name) and each.id == "__all__" for each in targets):
            continue
        value = getattr(node, "value", None)
        items = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
        said = [getattr(each, "value", None) for each in items]
        if not all(isinstance(each, str) for each in said):
            return None
        names += map(str, said)
    return tuple(names)


@lru_cache(maxsize=1024)
def _statements(content: bytes) -> tuple[ast.AST, ...]:
    try:
        return tuple(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):  # importing it will say so
        return ()


def bound_names(content: bytes) -> list[str]:
    """The names that a module has by its own statements, imports included."""
    try:
        waiting: list[ast.AST] = [ast.parse(content)]
    except (SyntaxError, ValueError):
        return []
    names: list[str] = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
            continue  # what is bound inside is not the module's
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, ast.alias):
            names.append((node.asname or node.name).partition(".")[0])
        waiting += ast.iter_child_nodes(node)
    return names


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module that a `from … import` names; leading dots start at the module's package."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])
