"""Code that settings name, imported: edited code anew, and what is wrong with it as an error."""

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from influence_dag.errors import InfluenceDagError, StudyError
from influence_dag.study.code import code_hashes, forget_outdated, import_as_hashed
from influence_dag.study.module_files import is_of_project, looked_through
from influence_dag.study.named_code import no_module, no_name, not_python, on_path
from influence_dag.study.opened import check_import, forget_readers, noticed_import
from influence_dag.study.torch_modes import (
    default_dtype,
    initial_dtype,
    kept_modes,
    set_default_dtype,
)
from influence_dag.study.users_code import place_of
from influence_dag.texts import a_kind


def import_callable(name: str, root: Path, field: str) -> Callable[..., Any]:
    """The callable that a setting names as `module:callable`, modules found from `root`.

    Code of the project that was edited since this process imported it is imported again.
    Raises `StudyError` naming the setting `field` and what is missing.
    """
    module_name, _, attribute = name.partition(":")
    context, root = f"{field}: {name}", Path(root)
    module = import_as_hashed(
        module_name, root, lambda: _import_from(module_name, root, context), context
    )
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise no_name(context, module.__file__, part, vars(value))
        value = getattr(value, part)
    if not field.startswith("data."):  # whose rows are made anew by every run
        check_import(module_name, context)
    if not callable(value):
        raise StudyError(f"{field}: {name} is {a_kind(value)}, expected a callable")
    return value


def _import_from(module_name: str, root: Path, context: str) -> Any:
    forget_outdated(module_name, root)
    forget_readers(module_name, root)
    with own_default(module_name, root):
        if (loaded := sys.modules.get(module_name)) is not None:
            return loaded
        return _imported(module_name, root, context)


_defaults: dict[str, Any] = {}  # loaded module → the type of tensors that its import has set


def own_dtype(names: Iterable[str], root: Path) -> Any:
    """The type of tensors without one that code behind these `module:callable` names has set.

    None where it says nothing, or was not imported yet. Which of several modules has set the type
    is told by their text: another study may import that one alone.
    """
    for gone in [name for name in _defaults if name not in sys.modules]:
        del _defaults[gone]
    if not _defaults:
        return None
    modules = (code_hashes(name.partition(":")[0], root) for name in names)
    return next((_defaults[each] for code in modules for each in code if each in _defaults), None)


@contextmanager
def own_default(name: str, root: Path, *, stays: bool = False) -> Iterator[None]:
    """What a module, or one that it imports, says of tensors without a type is in force again.

    It is imported, or its callable (`module:callable`) is called, as if nothing else had been.
    Where it says nothing, what others said is in force afterwards, unless its own `stays`.
    """
    module_name, known = name.partition(":")[0], own_dtype([name], root)
    before, last = default_dtype(), next(reversed(sys.modules))
    set_default_dtype(known)
    begun, done = default_dtype(), False
    try:
        yield
        done = True
    finally:
        found = default_dtype()
        if done and found != (begun or initial_dtype()):
            files, _ = looked_through(module_name, root)
            loaded = takewhile(last.__ne__, reversed(sys.modules))  # since, the newest first
            new = [n for n in loaded if n in files and b"set_default" in files[n][1]]
            _defaults.update(dict.fromkeys(new or [module_name], found))
            set_default_dtype(found, before=begun)
        elif not done or not (known or stays):
            set_default_dtype(before)


def _imported(module_name: str, root: Path, context: str) -> Any:
    try:
        with on_path(root), kept_modes(), noticed_import(module_name, root):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise StudyError(
                f"{context}: importing {module_name} needs {error.name!r}, which is not installed; "
                "install it, or correct the import"
            ) from error
        raise no_module(context, error.name, root) from error
    except SyntaxError as error:
        raise not_python(context, module_name, error) from error
    except (Exception, SystemExit) as error:
        if isinstance(error, InfluenceDagError):
            raise
        said = f"{type(error).__name__}: {error}"
        raise StudyError(
            f"{context}: importing {module_name} ended in {said:.500}{place_of(error)}; code that "
            "a study names has to be importable, without running anything"
        ) from error


@contextmanager
def imported_anew(names: Sequence[str], root: Path) -> Iterator[None]:
    """The project's modules behind `module:callable` names as another process would import them.

    Inside, none of them is loaded; afterwards those that were are again, and no others. What they
    keep in globals is therefore not there inside. Modules from outside the project stay.
    """
    modules = {name.partition(":")[0] for name in names}
    code = {each for module in modules for each in code_hashes(module, root)}
    code = {name for name in code if is_of_project(name, root)}
    packages = {name.partition(".")[0] for name in code}

    def loaded() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in packages]

    kept = {name: sys.modules.pop(name) for name in loaded()}
    try:
        yield
    finally:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(kept)
