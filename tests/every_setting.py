"""All settings of a study, from their types."""

from collections.abc import Iterator

from pydantic import BaseModel

from influence_dag.study.commented import groups_of
from influence_dag.study.methods import MethodSettings
from influence_dag.study.reference import _fields


def settings(group: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """Every setting that there is: the section it is in, and its name."""
    for name, info in _fields(group).items():
        shared = name in MethodSettings.model_fields and path.startswith("methods.")
        yield ("methods" if shared else path), name
        for inner in groups_of(info.annotation):
            yield from settings(inner, f"{path}.{name}" if path else name)
