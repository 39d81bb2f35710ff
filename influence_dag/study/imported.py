"""Code that settings name, imported: edited code anew, and what is wrong with it as an error."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from influence_dag.errors import InfluenceDagError, StudyError
from influence_dag.study.code import code_hashes, forget_outdated, import_as_hashed
from influence_dag.study.module_files import is_of_project
from influence_dag.study.named_code import no_module, no_name, not_python, on_path
from influence_dag.study.torch_modes import kept_modes
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
    if not callable(value):
        raise StudyError(f"{field}: {name} is {a_kind(value)}, expected a callable")
    return value


def _import_from(module_name: str, root: Path, context: str) -> Any:
    forget_outdated(module_name, root)
    if (loaded := sys.modules.get(module_name)) is not None:
        return loaded
    try:
        with on_path(root), kept_modes():
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
