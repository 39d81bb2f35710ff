"""The project's own code: which files a callable is made of, and whether they were edited.

A callable's numbers depend on its module and on the modules of the project that this one imports,
one after the other. They are found by reading the `import` statements, those inside functions
included; installed packages are left out, and what is imported under a name that is put together
at run time is not seen.
"""

import ast
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from hashlib import blake2b
from importlib.util import cache_from_source
from pathlib import Path

from influence_dag.store.fingerprints import KEY_BYTES, fingerprint

INSTALLED = ("site-packages", "dist-packages")


def _process_began() -> float:
    """When this process began, in seconds since the epoch; long ago where the system hides it."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - since_boot + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return -math.inf


_BEGAN = _process_began()  # now: a fork holds what was imported before it began itself

_imported: dict[str, str] = {}  # name of a loaded module → hash of its file when it was imported


def code_key(module: str, root: Path) -> str:
    """Fingerprint of the code that an imported module is made of.

    Of one from outside the project its own file counts, as it was when this process first saw it:
    what was edited there since has not run.
    """
    return fingerprint(code_hashes(module, root) or {module: _hash_elsewhere(module)})


@cache
def _hash_elsewhere(module: str) -> str | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return file_hash(Path(file).read_bytes()) if file else None


def code_hashes(module: str, root: Path) -> dict[str, str]:
    """Content hash of the module's file and of every file of the project that it imports, by name.

    Modules are looked for in `root` and in the folders below it that are on Python's path; the
    `__init__.py` of their packages belong to them. Empty for a module from elsewhere.
    """
    root, found = root.resolve(), {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = None if name in found else _file_of(name, root)
        if file is None:
            continue
        content = file.read_bytes()
        found[name] = file_hash(content)
        waiting += _packages(name)
        waiting += _imports(content, name, is_package=file.name == "__init__.py")
    return found


def file_hash(content: bytes) -> str:
    return blake2b(content, digest_size=KEY_BYTES).hexdigest()


def forget_outdated(module: str, root: Path) -> None:
    """Make Python import a module's project code again, if what is loaded may be other code.

    That is: a file was edited since, or the module of that name is another project's, or somebody
    else imported it and its file is younger than this process, so that nobody knows what it was
    then. All of it is forgotten then, and its packages whole, and whatever else of the project
    imports it: one module holds what it imported of another.
    """
    root, hashes = root.resolve(), code_hashes(module, root)
    outdated = {name for name in hashes if _is_outdated(name, hashes[name], root)}
    forgotten = hashes.keys() | _importing(outdated, root) if outdated else set()
    for package in {name.partition(".")[0] for name in forgotten}:
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]:
            del sys.modules[name]
            _imported.pop(name, None)
    for name in outdated:
        # Compiled code is told from its source by size and by the second of its modification.
        with suppress(OSError, AttributeError):
            Path(cache_from_source(str(_file_of(name, root)))).unlink()
    _imported.update(hashes)


def _importing(outdated: set[str], root: Path) -> set[str]:
    """Loaded modules of the project that import one of these, directly or not."""
    known = [name for name in _imported if name in sys.modules]
    return {name for name in known if outdated & code_hashes(name, root).keys()}


def _is_outdated(name: str, content: str, root: Path) -> bool:
    loaded = sys.modules.get(name)
    if loaded is None:
        return _imported.pop(name, content) != content
    file, wanted = getattr(loaded, "__file__", None), _file_of(name, root)
    if file is None or wanted is None or Path(file).resolve() != wanted:
        return True
    if name in _imported:
        return _imported[name] != content
    return wanted.stat().st_ctime > _BEGAN - 1  # clocks of files and of processes differ a little


def _file_of(name: str, root: Path) -> Path | None:
    """The file of a module of the project; None for what is installed or does not exist."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == __package__ or _is_installed(top):
        return None
    relative = Path(*name.split("."))
    for folder in _folders(root, tuple(os.path.abspath(folder) for folder in sys.path)):
        for file in (folder / relative / "__init__.py", folder / relative.with_suffix(".py")):
            if file.is_file():
                return file.resolve()
    return None


def _is_installed(top: str) -> bool:
    """Whether the loaded package of that name comes from an environment: it will be used."""
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is not None and any(part in INSTALLED for part in Path(file).parts)


@lru_cache(maxsize=16)
def _folders(root: Path, search: tuple[str, ...]) -> list[Path]:
    """The project's folder, and those in it on Python's path (`src`), but no environment."""
    below = (path for path in map(Path, search) if path.resolve().is_relative_to(root))
    own = (folder for folder in below if not any(part in INSTALLED for part in folder.parts))
    return list(dict.fromkeys((root, *own)))


def _packages(name: str) -> Iterator[str]:
    """`a.b` and `a` of `a.b.c`: their code runs first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@lru_cache(maxsize=1024)
def _imports(content: bytes, module: str, *, is_package: bool) -> tuple[str, ...]:
    """Every module that a source text may import: `from a import b` may mean `a.b`."""
    try:
        statements = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):  # importing it will say so
        return ()
    names: list[str] = []
    for node in statements:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module that a `from … import` names; leading dots start at the module's package."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])
