"""What settings are made of: groups that know their names, sizes in bytes, names of callables."""

import re
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails

_UNITS = {
    "": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}


def parse_bytes(value: int | str) -> int:
    """A number of bytes from `67108864`, `"64MiB"` or `"1 GB"`.

    >>> parse_bytes("64MiB")
    67108864
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or match[2] not in _UNITS:
        raise ValueError(f"not a size in bytes: {value!r}; write for example 64MiB")
    size = int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise ValueError(f"a size of {value!r} leaves no room; write for example 64MiB")
    return size


def readable_bytes(size: int) -> str:
    """A number of bytes as a person would say it.

    >>> readable_bytes(64 * 2**20)
    '64 MiB'
    """
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if size >= _UNITS[unit]), "B")
    return f"{size / _UNITS[unit]:,.4g} {unit}"


def callable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value):
        raise ValueError(
            f"expected 'module:callable' (for example assets.digits.model:build), got {value!r}"
        )
    return value


def is_callable_name(name: str) -> bool:
    """True for `module:callable`, False for the path of a file."""
    return ":" in name and "/" not in name


Bytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=int | str)]
CallableName = Annotated[str, AfterValidator(callable_name)]


class Settings(BaseModel):
    """A frozen group of settings in which an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_names(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """An unknown name is answered with the known one that it resembles."""
        try:
            return handler(value)
        except ValidationError as error:
            found = [cls._told(item) for item in error.errors()]
            raise ValidationError.from_exception_data(cls.__name__, found) from error

    @classmethod
    def _told(cls, item: ErrorDetails) -> InitErrorDetails:
        # Of pydantic's own types, because Dagster makes the error again from type and context.
        kind, context = item["type"], item.get("ctx", {})
        if kind == "extra_forbidden" and len(item["loc"]) == 1:
            kind, context = "value_error", {"error": ValueError(cls._suggestion(item["loc"][0]))}
        return InitErrorDetails(type=kind, loc=item["loc"], input=item["input"], ctx=context)

    @classmethod
    def _suggestion(cls, name: int | str) -> str:
        known = ", ".join(cls.model_fields) or "none"
        close = get_close_matches(str(name), cls.model_fields, n=1)
        return f"unknown name; {f'did you mean {close[0]!r}?' if close else f'known are {known}'}"
