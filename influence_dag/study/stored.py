"""Settings that a store says its numbers were computed with."""

from typing import Any, TypeVar

from pydantic import ValidationError

from influence_dag.errors import StoreError
from influence_dag.study.base import Settings

Group = TypeVar("Group", bound=Settings)


def as_stored(group: type[Group], values: Any, address: str) -> Group:
    """A group of settings; `StoreError` where they are none any more, as older versions took."""
    try:
        return group.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise StoreError(
            f"{address}: it was computed with settings that are not taken here ({where}: {said}); "
            "correct the study's and materialise it again, or import first what adds the name"
        ) from error
