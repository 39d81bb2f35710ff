"""People's own code: which files a callable is made of, and whether they were edited.

A callable's numbers depend on its module and on the modules that this one imports, one after the
other. They are found by reading the `import` statements, those inside functions included. Installed
distributions count by their version; what is imported under a name that is put together at run time
is told when it is (`opened`), environment variables are not seen.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType

from influence_dag.errors import StudyError
from influence_dag.fingerprints import KEY_BYTES, fingerprint
from influence_dag.study.module_files import file_of, installed_version, looked_through
from influence_dag.unchanged import note

TRIES = 3  # at code that is edited while it is imported


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


def put_on_path(root: Path) -> None:
    """Let Python find what lies in a project, as the modules of its studies' callables do.

    Before what lies in others that were run before: code may import when it is called.
    """
    if sys.path[:1] != [str(root)]:
        if str(root) in sys.path:
            sys.path.remove(str(root))
        sys.path.insert(0, str(root))


def code_key(module: str, root: Path) -> str:
    """Fingerprint of the code that an imported module is made of.

    Of one from outside the project its own file counts, and of compiled ones theirs, as they were
    when this process first saw them: what was edited or built there since has not run.
    """
    return str(note(f"the code of {module}", lambda: _code_key(module, root)))


def _code_key(module: str, root: Path) -> str:
    found, elsewhere = _looked_through(module, root)
    tops = sorted({name.partition(".")[0] for name in elsewhere} - {""})
    installed = [each for each in map(installed_version, tops) if each]
    compiled = {name: _hash_compiled(file) for name, file in elsewhere.items() if file}
    return fingerprint(found | compiled or {module: _hash_elsewhere(module)}, installed)


def import_as_hashed(
    module: str, root: Path, load: Callable[[], ModuleType], context: str
) -> ModuleType:
    """The module, imported by `load` (after `forget_outdated`), whose code is what was hashed.

    A file that is replaced between its hash and its import is imported again.
    """
    for _ in range(TRIES):
        loaded, now = load(), code_hashes(module, root)
        if all(_imported.get(name, content) == content for name, content in now.items()):
            code_key(module, root)
            return loaded
    raise StudyError(f"{context}: the code changes while it is imported; try again")


@cache  # of what this process imports: a compiled module cannot be imported again
def _hash_compiled(file: Path) -> str:
    return file_hash(file.read_bytes())


@cache
def _hash_elsewhere(module: str) -> str | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return file_hash(Path(file).read_bytes()) if file else None


def code_hashes(module: str, root: Path) -> dict[str, str]:
    """Content hash of the module's file and of every file that it imports, by name.

    Modules are looked for in `root`, then wherever Python finds them outside installed
    distributions; the `__init__.py` of their packages belong to them. Empty for an installed one.
    """
    return _looked_through(module, root)[0]


def _looked_through(module: str, root: Path) -> tuple[dict[str, str], dict[str, Path | None]]:
    """The hashes of sources by module, and what else is imported (`looked_through`)."""
    files, elsewhere = looked_through(module, root)
    return {name: file_hash(content) for name, (_, content) in files.items()}, elsewhere


def file_hash(content: bytes) -> str:
    return blake2b(content, digest_size=KEY_BYTES).hexdigest()


def forget_outdated(module: str, root: Path) -> None:
    """Make Python import a module's project code again, if what is loaded may be other code.

    That is: a file was edited since, or the module of that name is another project's, or somebody
    else imported it and its file is younger than this process, so that nobody knows what it was
    then. All of it is forgotten then, and its packages whole, and whatever else of the project
    imports it: one module holds what it imported of another. Where a file of the project is gone,
    all of the project is: no text tells any longer what had imported it.
    """
    root, hashes = root.resolve(), code_hashes(module, root)
    come = hashes.keys() - _imported.keys() - sys.modules.keys()
    outdated = {name for name in hashes if _is_outdated(name, hashes[name], root)}
    if come and _importing(come, root):  # of what was there before, without it
        outdated |= come
    forgotten = hashes.keys() | _importing(outdated, root) if outdated else set()
    known = {name: place for name in _imported if (place := _place(name, root))}
    if not all(map(Path.is_file, known.values())):
        forgotten = forgotten | known.keys()
    for package in {name.partition(".")[0] for name in forgotten}:
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]:
            del sys.modules[name]
            _imported.pop(name, None)
    for name in outdated:
        forget_compiled(str(file_of(name, root)))
    _imported.update(hashes)


def _place(name: str, root: Path) -> Path | None:
    """The file of a loaded module, where it is one of the project."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file) if file and Path(file).is_relative_to(root) else None


def forget_compiled(file: str) -> None:
    """Of a source that was edited: it is told from it by size and second of modification alone."""
    with suppress(OSError, AttributeError):
        Path(cache_from_source(file)).unlink()


def _importing(outdated: set[str], root: Path) -> set[str]:
    """Loaded modules of the project that import one of these, directly or not."""
    known = [name for name in _imported if name in sys.modules]
    return {name for name in known if outdated & code_hashes(name, root).keys()}


def _is_outdated(name: str, content: str, root: Path) -> bool:
    loaded = sys.modules.get(name)
    if loaded is None:
        return _imported.pop(name, content) != content
    file, wanted = getattr(loaded, "__file__", None), file_of(name, root)
    if file is None or wanted is None or Path(file).resolve() != wanted:
        return True
    if name in _imported:
        return _imported[name] != content
    return wanted.stat().st_ctime > _BEGAN - 1  # clocks of files and of processes differ a little


def hash_of_file(path: Path) -> str | None:
    """Of its content; None for what is no file."""
    return file_hash(path.read_bytes()) if path.is_file() else None
