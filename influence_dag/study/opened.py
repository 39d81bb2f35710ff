"""Files that a study's code opens by itself: `model.depends_on` names them, and others are refused.

What code reads when it is imported, builds a module or trains one decides numbers as the code does.
A file that no key knows could be edited, and what was computed before be served as current. Seen
are files of the project that Python opens (not what compiled code opens), and modules of the
project that come in under names put together at run time.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_dag.errors import StudyError
from influence_dag.fingerprints import fingerprint
from influence_dag.study.code import code_hashes, forget_compiled, hash_of_file
from influence_dag.study.module_files import is_in_environment, looked_through
from influence_dag.unchanged import note

if TYPE_CHECKING:
    from influence_dag.study.study import Study

_CODE = (".py", ".pyc", ".so", ".pyd", ".pth")  # modules are told by what is loaded
_ABOUT = (".egg-info", ".dist-info")  # of an editable install: any library looks for entry points
_opened: ContextVar[set[str] | None] = ContextVar("opened", default=None)
_named: ContextVar[frozenset[Path] | None] = ContextVar("named", default=None)
_seen: dict[Path, str] = {}  # named file → hash when code that may have read it was last imported
_at_import: dict[str, dict[Path, str | None]] = {}  # module → what its import opened, hashed


@contextmanager
def naming_files(study: "Study") -> Iterator[None]:
    """Inside, in this thread, code of the study may open the files that the study names."""
    model = study.settings.model
    names = (*model.depends_on, *([model.checkpoint] if model.checkpoint else []))
    token = _named.set(frozenset(study.path(name).resolve() for name in names))
    try:
        yield
    finally:
        _named.reset(token)


@contextmanager
def noticed_import(module: str, root: Path) -> Iterator[None]:
    """Inside a module is imported: what it opens is known from then on (`check_import`)."""
    before = set(sys.modules)
    with _noticing() as opened:
        yield
    found, elsewhere = looked_through(module, root)
    known = {path for path, _ in found.values()} | set(elsewhere.values())
    new = [each for name, each in sys.modules.items() if name not in before]
    places = (getattr(each, "__file__", None) for each in new)  # made up of modules of no file
    loaded = [place for place in places if isinstance(place, str) and os.path.isabs(place)]
    files = _data(opened, root) | (_of_project(loaded, root) - known)
    _at_import[module] = {path: hash_of_file(path) for path in files}


def check_import(module: str, context: str) -> None:
    """Raise `StudyError` where importing a module has opened what the study at work names not."""
    _check(set(_at_import.get(module, ())), f"{context}: importing {module}")


def forget_readers(module: str, root: Path) -> None:
    """Have a module imported again, with all of its code, if what its import opened was edited."""
    files = _at_import.get(module, {})
    edited = [path for path, content in files.items() if hash_of_file(path) != content]
    if edited:
        _forget(code_hashes(module, root), edited)


def _forget(modules: Iterable[str], edited: Iterable[Path]) -> None:
    """Modules by name, and those that edited files are, whatever they are called."""
    files = set(map(str, edited))
    are = {name for name, each in sys.modules.items() if getattr(each, "__file__", None) in files}
    for name in are | (set(modules) & sys.modules.keys()):
        del sys.modules[name]
    for file in files:
        forget_compiled(file)


@contextmanager
def only_named_files(context: str, root: Path) -> Iterator[None]:
    """The same of what code opens that is called inside."""
    with _noticing() as opened:
        yield
    _check(_data(opened, root), context)


def _check(files: set[Path], context: str) -> None:
    named = _named.get()
    if named is None or not (unnamed := sorted(files - named)):
        return
    raise StudyError(
        f"{context} opens {', '.join(map(str, unnamed[:3]))}{' …' if len(unnamed) > 3 else ''}, "
        "which nothing says: an edit of it would leave what is stored as it is; name each file "
        "that the code opens, or imports under a name put together at run time, in model.depends_on"
    )


@contextmanager
def _noticing() -> Iterator[set[str]]:
    _listen()
    token = _opened.set(opened := set())
    try:
        yield opened
    finally:
        _opened.reset(token)


@cache  # a hook stays as long as the process
def _listen() -> None:
    sys.addaudithook(_notice)


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or (opened := _opened.get()) is None:
        return
    path, _, flags = arguments
    if isinstance(path, str) and not (flags or 0) & (os.O_WRONLY | os.O_CREAT):
        opened.add(os.path.abspath(path))


def _data(files: Iterable[str], root: Path) -> set[Path]:
    return {
        path
        for path in _of_project(files, root)
        if path.suffix not in _CODE and path.parent.suffix not in _ABOUT
    }


def _of_project(files: Iterable[str], root: Path) -> set[Path]:
    """Files that there are in the project's folder, but in no environment there."""
    root, python = root.resolve(), (sys.prefix, sys.base_prefix)
    return {
        path
        for path in map(Path.resolve, map(Path, files))
        if path.is_relative_to(root)
        and path.is_file()
        and not is_in_environment(path)
        and not any(path.is_relative_to(each) for each in python)
    }


def opened_key(paths: Sequence[Path], modules: Sequence[str], root: Path, field: str) -> str:
    """Fingerprint of files that these modules open, which are forgotten if one was edited since.

    They may have read it when they were imported. Raises `StudyError` for what is no file.
    """
    hashes = {path: _hash(path, field) for path in paths}
    edited = [path for path, content in hashes.items() if _seen.get(path, content) != content]
    if edited:
        _forget((name for module in modules for name in code_hashes(module, root)), edited)
    _seen.update(hashes)
    seen = [note(f"{field}: {path}", lambda p=path: hash_of_file(p)) for path in paths]
    return fingerprint(list(map(str, seen)))


def _hash(path: Path, field: str) -> str:
    if found := hash_of_file(path):
        return found
    raise StudyError(f"{field}: {path} is not a file; name each file that the code opens")
