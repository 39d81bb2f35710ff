"""What settings are made of: groups that know their names, sizes in bytes, names of callables."""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
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


Split = Literal["test", "train"]  # the two splits

ENVIRONMENT = re.compile(r"\{\{\s*env\.([A-Za-z_]\w*)\s*\}\}")


def from_environment(value: Any) -> Any:
    """Settings with `{{ env.NAME }}` replaced by that variable, in texts at any depth.

    The one template there is, filled in here alone, so that it means the same in Dagster and on the
    command line. Raises `ValueError` for a variable that is not set.
    """
    if isinstance(value, str):
        return ENVIRONMENT.sub(_variable, value)
    if isinstance(value, Mapping):
        return {name: from_environment(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(from_environment(part) for part in value)
    return value


def _variable(match: re.Match[str]) -> str:
    if match[1] not in os.environ:
        raise ValueError(f"{match[0]}: the environment has no variable {match[1]}; set it")
    return os.environ[match[1]]


def parse_bytes(value: int | str) -> int:
    """A number of bytes from `67108864`, `"64MiB"` or `"1 GB"`.

    >>> parse_bytes("64MiB")
    67108864
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or match[2] not in _UNITS:
        raise ValueError(f"not a size in bytes: {value!r}; write for example 64MiB")
    size = float(match[1]) * _UNITS[match[2]]
    if size >= 2**63:
        seen = f"{value!s:.20}"
        raise ValueError(f"a size of {seen}… is more than there is; write for example 64MiB")
    size = int(size)
    if size < 1:
        raise ValueError(f"a size of {value!r} leaves no room; write for example 64MiB")
    return size


def callable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value):
        raise ValueError(
            f"expected 'module:callable' (for example assets.digits.model:build), got {value!r}"
        )
    return value


def check_named(value: str, known: Collection[str], setting: str) -> None:
    """A `ValueError` for what is neither one of the known names nor that of a callable."""
    if value in known:
        return
    try:
        callable_name(value)
    except ValueError as error:
        raise ValueError(
            f"{setting} {value!r} is neither one of {', '.join(known)} nor 'module:callable'"
        ) from error


def is_callable_name(name: str) -> bool:
    """True for `module:callable`, False for the path of a file."""
    return ":" in name and "/" not in name


_CRON = (  # lowest and highest number of each field, and the names that stand for numbers
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    (0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_CRON_NAMES = {"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"}


def is_cron(value: str) -> bool:
    """Whether a text is a cron string of five fields, of a day that there is, or one of its names.

    >>> is_cron("*/15 0-6 * jan,jul mon-fri"), is_cron("0 25 * * *")
    (True, False)
    """
    fields = value.lower().split()
    if len(fields) != len(_CRON):
        return value in _CRON_NAMES
    numbers = [
        [_cron_numbers(item, *allowed) for item in field.split(",")]
        for field, allowed in zip(fields, _CRON, strict=True)
    ]
    if not all(all(field) for field in numbers):
        return False
    days, months = (set[int]().union(*field) for field in numbers[2:4])
    return any(min(days) <= _LONGEST_MONTHS[month - 1] for month in months)


def _cron_numbers(item: str, low: int, high: int, names: tuple[str, ...]) -> set[int]:
    """What `*`, `5`, `05`, `mon`, `1-5`, `sat-mon`, each also with a step (`*/15`), stands for.

    Nothing where it is none of these.
    """
    known = {str(number): number for number in range(low, high + 1)}
    known |= {f"0{number}": number for number in range(low, min(high, 9) + 1)}
    known |= {name: low + place for place, name in enumerate(names)}
    span, slash, step = item.partition("/")
    ends = [str(low), str(high)] if span == "*" else span.split("-")
    if len(ends) > 2 or not known.keys() >= set(ends):
        return set()
    if slash and not (step.isascii() and step.isdigit() and int(step[:4]) > 0):
        return set()
    first, last = known[ends[0]], known[ends[-1]]
    if len(ends) == 1 and slash:
        last = high
    if last < first:  # over the end of the week, or of the year
        last += high - low + 1
    return {low + (k - low) % (high - low + 1) for k in range(first, last + 1, int(step or 1))}


def path_name(value: str) -> str:
    """A path that a file system can take; `ValueError` for what is none."""
    longest = max(map(len, value.encode(errors="replace").split(b"/")))
    if "\0" in value or longest > 255 or not value.strip():
        seen = f"a part of {longest} bytes" if longest > 255 else f"{value!r:.80}"
        raise ValueError(f"not a path: {seen}; parts of paths have 1 to 255 bytes, none of them 0")
    return value


@dataclass(frozen=True)
class Unit:
    """What a number of the settings counts: `Annotated[PositiveInt, Unit("rows")]`."""

    name: str


def setting(default: Any, description: str, **limits: Any) -> Any:
    """A field with a default and what it means, which `docs/settings.md` shows."""
    return Field(default, description=description, **limits)


Bytes = Annotated[
    int, BeforeValidator(parse_bytes, json_schema_input_type=int | str), Unit("bytes")
]
Seed = Annotated[
    int, Field(ge=0, lt=2**32, description="of all that is drawn; the same seed, the same numbers")
]
"""What torch, numpy and Python all take."""

CallableName = Annotated[str, AfterValidator(callable_name)]


def _each(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _takes_truth(annotation: Any) -> bool:
    """Whether truth values are among what a field's type allows."""
    if annotation is bool or annotation is Any:
        return True
    return any(_takes_truth(part) for part in get_args(annotation) if not isinstance(part, str))


class Settings(BaseModel):
    """A frozen group of settings in which an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Names of other groups that people look for in this one, and where they stand."""

    @classmethod
    def _not_numbers(cls, values: Mapping[str, Any]) -> list[InitErrorDetails]:
        """YAML reads `yes` and `on` as true, and a number would take that for 1."""
        errors = []
        for name, given in values.items():
            field, said = cls.model_fields.get(name), None
            truths = [each for each in _each(given) if isinstance(each, bool)]
            if any(isinstance(each, int) and abs(each) >= 2**63 for each in _each(given)):
                said = "a number of more than 64 bits"
            elif field and truths and not _takes_truth(field.annotation):
                said = (
                    f"{str(truths[0]).lower()} (YAML reads yes, no, on and off so) is not what it "
                    "takes; in quotes it is text"
                )
            if said:
                context = {"error": ValueError(said)}
                errors.append(
                    InitErrorDetails(type="value_error", loc=(name,), input=given, ctx=context)
                )
        return errors

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """An unknown name is answered with the known one that it resembles."""
        if isinstance(value, Mapping) and (wrong := cls._not_numbers(value)):
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        try:
            return handler(value)
        except ValidationError as error:
            errors = [cls._told(item) for item in error.errors()]
            raise ValidationError.from_exception_data(cls.__name__, errors) from error

    @classmethod
    def _told(cls, item: ErrorDetails) -> InitErrorDetails:
        # Of pydantic's own types, because Dagster makes the error again from type and context.
        kind, context = item["type"], item.get("ctx", {})
        if kind == "extra_forbidden" and len(item["loc"]) == 1:
            kind, context = "value_error", {"error": ValueError(cls._suggestion(item["loc"][0]))}
        return InitErrorDetails(type=kind, loc=item["loc"], input=item["input"], ctx=context)

    @classmethod
    def _suggestion(cls, name: int | str) -> str:
        close = get_close_matches(str(name), [*cls.model_fields, *cls.elsewhere], n=1)
        if not close:
            return f"unknown name; known are {', '.join(cls.model_fields) or 'none'}"
        place = f", which stands {cls.elsewhere[close[0]]}" if close[0] in cls.elsewhere else ""
        return f"unknown name; did you mean {close[0]!r}{place}?"
