"""Where the code of a module may keep something of a call: layers, classes, functions, globals."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import _lru_cache_wrapper
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypeGuard

from torch import Tensor, nn

_OF_MODULES = vars(nn.Module()).keys()  # what every module has
_OTHERS = ("torch", "builtins", "abc", "typing", "collections", "functools", "enum")
_OF_FUNCTIONS = ("__defaults__", "__kwdefaults__")
_NO_PLACES = nn.Module | Tensor | type | FunctionType | ModuleType


class Place(NamedTuple):
    """What has attributes (of a closure's cell its contents), and how it is told."""

    owner: Any
    said: str
    attributes: Mapping[str, Any]


def places(module: nn.Module) -> Iterator[Place]:
    """Everything that the module's own code may write to without a word; torch's classes are known.

    Not what is behind functions of other files, nor how far an iterator or a generator has come.
    """
    functions: dict[int, FunctionType] = {}
    classes: dict[type, None] = {}
    for name, layer in module.named_modules():
        own = {key: value for key, value in vars(layer).items() if key not in _OF_MODULES}
        yield Place(layer, name, layer._buffers | own)
        for key, value in own.items():
            if not isinstance(value, _NO_PLACES) and _is_own(type(value)) and _has_own(value):
                yield Place(value, ".".join(filter(None, (name, key))), vars(value))
        classes |= dict.fromkeys(filter(_is_own, type(layer).__mro__))
        hooks = (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
        functions |= _functions((*hooks, *own.values()))
    for each in classes:
        yield Place(each, each.__qualname__, {k: v for k, v in vars(each).items() if k[:2] != "__"})
        functions |= _functions(vars(each).values())
    yield from _of_functions(list(functions.values()))


def caches(module: nn.Module) -> dict[str, Any]:
    """What `functools.cache` and `lru_cache` have made of the functions of that code, by name."""
    return {
        f"{said}.{name}": value
        for _, said, attributes in places(module)
        for name, value in attributes.items()
        if isinstance(value, _lru_cache_wrapper)
    }


def _is_own(kind: type) -> bool:
    """Whether a class is of people's own."""
    return _is_of_people(kind.__module__)


def _is_of_people(module: str | None) -> bool:
    """Code that is compiled from a text (`exec`) may say no module."""
    return module is None or module.partition(".")[0] not in _OTHERS


def _has_own(value: Any) -> bool:
    return isinstance(getattr(value, "__dict__", None), dict)


def _is_function(value: Any) -> TypeGuard[FunctionType]:
    return isinstance(value, FunctionType) and _is_of_people(value.__module__)


def _functions(values: Iterable[Any]) -> dict[int, FunctionType]:
    """The functions among some values, those of methods, properties and caches too."""
    found: dict[int, FunctionType] = {}
    for value in values:
        function = value.fget if isinstance(value, property) else value
        if not isinstance(function, FunctionType):
            function = getattr(function, "__wrapped__", None)
        if _is_function(function):
            found[id(function)] = function
    return found


def _of_functions(waiting: list[FunctionType]) -> Iterator[Place]:
    """Of functions, and of those of the same files that they call by a global name."""
    seen: set[int] = set()
    named: dict[str, set[str]] = {}
    while waiting:
        function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        said, code = function.__qualname__, function.__code__
        defaults = {name: getattr(function, name) for name in _OF_FUNCTIONS}
        yield Place(function, said, vars(function) | defaults)
        around = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        for name, cell in around.items():
            yield Place(cell, f"{name} of {said}", _contents(cell))
        names = _global_names(code)
        named.setdefault(function.__module__, set()).update(names)
        called = [function.__globals__.get(name) for name in names]
        called += [each for cell in around.values() for each in _contents(cell).values()]
        there = _functions(called).values()
        waiting += [each for each in there if each.__module__ == function.__module__]
    for name, names in named.items():
        if (module := sys.modules.get(name)) is not None:
            yield Place(module, name, {k: v for k, v in vars(module).items() if k in names})


def _global_names(code: CodeType) -> set[str]:
    """Names that a function may look up, those of functions inside it too."""
    inside = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_global_names, inside))


def _contents(cell: Any) -> dict[str, Any]:
    try:
        return {"cell_contents": cell.cell_contents}
    except ValueError:  # nothing yet
        return {}
