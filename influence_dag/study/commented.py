"""Settings as YAML with every option: those given are set, the others commented out."""

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

WIDTH = 96


def commented(
    model: type[BaseModel], given: Mapping[str, Any], *, indent: int = 0, off: bool = False
) -> Iterator[str]:
    """Lines of YAML for a group of settings: `#name: default` is an option, `# …` says what it is.

    Without its `#` an option is set. `given` are the values that are set, group by group.
    """
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    for name, info in sorted(fields.items(), key=lambda each: each[0] not in given):
        out = off or name not in given
        yield from _about(info, indent)
        group = next(groups_of(info.annotation), None)
        value = given.get(name, {} if group else _default(info))
        if group and isinstance(value, Mapping) and (group.model_fields or not value):
            if not out and not value:
                value = _first(group)  # so that a `#` can go without the line above being edited
            yield _line(f"{name}:" if value or out else f"{name}: {{}}", indent, out)
            yield from commented(group, value, indent=indent + 1, off=out)
        else:
            yield _line(f"{name}: {_inline(value)}", indent, out)


def _line(text: str, indent: int, out: bool) -> str:
    return f"{'  ' * indent}{'#' if out else ''}{text}"


def _about(info: FieldInfo, indent: int) -> Iterator[str]:
    margin = f"{'  ' * indent}# "
    for line in wrap(info.description or "", WIDTH - len(margin)):
        yield margin + line


def _default(info: FieldInfo) -> Any:
    value = info.get_default(call_default_factory=True)
    return None if value is PydanticUndefined else value


def _first(group: type[BaseModel]) -> dict[str, Any]:
    """The first option that has a default, at its default."""
    known = ((name, _default(info)) for name, info in group.model_fields.items())
    return dict([pair for pair in known if pair[1] is not None][:1])


def _inline(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()


def groups_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The groups of settings that a field's type is, or may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        if not isinstance(part, str):
            yield from groups_of(part)
