"""The reference of all settings, in Markdown, from the settings' own types and descriptions."""

import sys
from collections.abc import Iterator, Mapping
from inspect import getdoc
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from influence_dag.study.base import Unit
from influence_dag.study.commented import groups_of
from influence_dag.study.methods import MethodSettings
from influence_dag.study.study import StudySettings
from influence_dag.texts import readable_bytes

HEAD = """\
# Settings of a study

What stands below `attributes` in a `defs.yaml`, group by group. A name that is not here is refused,
with its line. `{{ env.NAME }}` in a text is that variable of the environment.

*Made by `make settings` from the settings themselves.*
"""
OR = r"\|"  # a bar within a cell
_COLUMNS = "| setting | type | default | unit | meaning |\n| --- | --- | --- | --- | --- |"
_EVERY = "Every method has these; `direct: {}` takes the defaults."
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}


def reference() -> str:
    return "\n".join([HEAD, *_table(StudySettings), *_sections(StudySettings, "")])


def _sections(group: type[BaseModel], path: str) -> Iterator[str]:
    """A section for each group within a group, its table first."""
    for name, info in _fields(group).items():
        for inner in groups_of(info.annotation):
            full = f"{path}.{name}" if path else name
            yield f"{'#' * (2 + full.count('.'))} {full}\n\n{_about(inner)}\n"
            if full == "methods":
                yield f"{_EVERY}\n"
                yield from _table(MethodSettings)
            yield from _table(inner)
            yield from _sections(inner, full)


def _table(group: type[BaseModel]) -> Iterator[str]:
    rows = [
        _row(name, info, group) for name, info in _fields(group).items() if _is_own(group, info)
    ]
    yield "\n".join([_COLUMNS, *rows, ""] if rows else ["Nothing of its own.", ""])


def _row(name: str, info: FieldInfo, group: type[BaseModel]) -> str:
    schema = group.model_json_schema()
    about = info.description or " ".join(map(_about, groups_of(info.annotation)))
    kind = _kind(schema["properties"][name], schema.get("$defs", {}))
    cells = (f"`{name}`", kind, _default(info), _unit(info), about)
    return f"| {' | '.join(cell.replace('|', OR) for cell in cells)} |"


def _fields(group: type[BaseModel]) -> dict[str, FieldInfo]:
    """Settings by the names that they have in a file."""
    return {info.alias or name: info for name, info in group.model_fields.items()}


def _is_own(group: type[BaseModel], info: FieldInfo) -> bool:
    """Whether a setting is not just as it is in every method."""
    if group is MethodSettings or not issubclass(group, MethodSettings):
        return True
    return not any(repr(info) == repr(shared) for shared in MethodSettings.model_fields.values())


def _about(group: type[BaseModel]) -> str:
    return " ".join((getdoc(group) or "").partition("\n\n")[0].split())


def _kind(schema: Mapping[str, Any], groups: Mapping[str, Any]) -> str:
    """What a value may be, in words: `whole number > 0`, `` `raise`, `warn` ``."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return "group" if "properties" in groups[name] else _kind(groups[name], groups)
    if options := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return ", ".join(f"`{option}`" for option in options)
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        kinds = [_kind(part, groups) for part in parts if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'], groups)}"
    if schema.get("type") == "object":
        return f"names with {_kind(schema['additionalProperties'], groups)}"
    limits = [f"{sign} {schema[limit]:,}" for limit, sign in _LIMITS.items() if limit in schema]
    return " ".join([_WORDS[schema["type"]], " and ".join(limits)]).strip()


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its own"
    if value is None or value in ((), {}):
        return "none"
    if Unit("bytes") in info.metadata:
        return readable_bytes(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _unit(info: FieldInfo) -> str:
    return next((each.name for each in info.metadata if isinstance(each, Unit)), "")


if __name__ == "__main__":
    sys.stdout.write(reference())
