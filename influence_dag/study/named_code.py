"""Code that settings name and that is not there: told from its source, before anything is imported.

A callable's module imports torch, which takes longer than all else that an early error needs. What
a source text cannot tell is left to importing it.
"""

import ast
import importlib
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_dag.errors import StudyError
from influence_dag.study.base import is_callable_name
from influence_dag.study.module_files import bound_names, looked_through
from influence_dag.texts import did_you_mean

if TYPE_CHECKING:
    from influence_dag.study.study import Study

# By these a module may get names, or packages modules, that no source text has.
_HIDDEN = re.compile(
    r"\b(globals|locals|vars|exec|eval|setattr|modules|__dict__|__class__|__getattr__|__path__)\b"
    r"|\bimport\s*\*"
)
_PYTHONS_OWN = (BuiltinImporter, FrozenImporter, PathFinder)


def look_for_callables(study: "Study") -> None:
    """Raise `StudyError` for a callable of the settings that is certainly not there."""
    data = {f"data.{split}": getattr(study.settings.data, split) for split in ("train", "test")}
    for field, name in (study.settings.callables | data).items():
        if isinstance(name, str) and is_callable_name(name):
            look_for(name, study.root, field)


def look_for(name: str, root: Path, field: str) -> None:
    """Raise `StudyError` if `module:callable` is certainly not there; nothing is imported."""
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] in sys.modules:
        return
    context = f"{field}: {name}"
    with on_path(root):
        if missing := _missing(module):
            raise no_module(context, missing, root)
        files, _ = looked_through(module, root)
    if module not in files:
        return
    path, content = files[module]
    _check_syntax(context, module, path, content)
    part = attribute.partition(".")[0]
    texts = [text.decode(errors="replace") for _, text in files.values()]
    word = re.compile(rf"\b{re.escape(_plain(part))}\b")
    if not any(word.search(_plain(text)) or _HIDDEN.search(text) for text in texts):
        raise no_name(context, path, part, bound_names(content))


def _plain(text: str) -> str:
    """Identifiers as Python compares them."""
    return unicodedata.normalize("NFKC", text)


def _check_syntax(context: str, module: str, path: Path, content: bytes) -> None:
    with warnings.catch_warnings(), suppress(ValueError):
        warnings.simplefilter("ignore")  # told when it is imported
        try:
            ast.parse(content, str(path))
        except SyntaxError as error:
            raise not_python(context, module, error) from error


def _missing(module: str) -> str | None:
    """The first of `a`, `a.b`, … that Python would not find; None also where code decides."""
    name, folders = "", None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = _spec(name, part, folders)
        if spec is None:
            return name
        if spec.origin is not None and _is_hidden(Path(spec.origin)):
            return None
        folders = list(spec.submodule_search_locations or ())
    return None


def _spec(name: str, part: str, folders: list[str] | None) -> ModuleSpec | None:
    """Where Python would find a module, of which no parent has to be imported for that."""
    others = [finder for finder in sys.meta_path if finder not in _PYTHONS_OWN]
    if folders is None:
        asked: list[tuple[Any, str]] = [(finder, name) for finder in sys.meta_path]
    else:  # under its last name, or Python's own finder would look for the parent's module
        asked = [(PathFinder, part), *((finder, name) for finder in others)]
    for finder, wanted in asked:
        find = getattr(finder, "find_spec", None)
        if find and (found := find(wanted, folders)):
            return found
    return None


def _is_hidden(file: Path) -> bool:
    """Whether modules may come out of this one in other ways than from its folder."""
    if file.suffix != ".py" or not file.is_file():
        return True
    return bool(_HIDDEN.search(file.read_text(errors="replace")))


@contextmanager
def on_path(root: Path) -> Iterator[None]:
    """A project's folder first in Python's path, as its code is imported."""
    importlib.invalidate_caches()
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


# What is said, from the source or by an import -------------------------------------------------


def no_module(context: str, missing: str, root: Path) -> StudyError:
    near = did_you_mean(missing, [path.stem for path in root.glob("*.py") if path.is_file()])
    return StudyError(
        f"{context}: no module {missing!r}{near}; looked in {root} and in the installed packages"
    )


def not_python(context: str, module: str, error: SyntaxError) -> StudyError:
    where = f"{error.filename or module}:{error.lineno or 1}"
    return StudyError(f"{context}: {where}: not Python: {error.msg}")


def no_name(context: str, file: object, part: str, known: Iterable[str]) -> StudyError:
    close = get_close_matches(part, list(known), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return StudyError(f"{context}: {file} has no {part!r}{hint}")
