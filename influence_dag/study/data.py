"""Settings of a study's rows: the files or code they come from, and how columns become inputs."""

import math
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from influence_dag.study.base import Settings, Split, is_callable_name, path_name, setting
from influence_dag.study.dagster import asset_path

MOST_DIMS = 32


class FeatureSettings(Settings):
    """How the feature columns become the model's input."""

    dims: tuple[str, ...] | None = setting(
        None, "names of the feature dimensions; tabular default: ['feature']"
    )
    shape: tuple[PositiveInt, ...] | None = setting(
        None, "shape of one sample; tabular default: (number of columns,)"
    )
    scale: float = setting(
        1.0, "the model sees x * scale; perturbation derivatives are per scaled unit"
    )
    columns: tuple[str, ...] | None = setting(
        None, "feature columns in order; default: all but id, target, weight and what is kept"
    )

    standardise: bool = setting(
        False,
        "the model sees (x - mean) / scale of each column, mean and scale those of the "
        "training rows on a coarse grid; both are stored, and perturbations can be had per "
        "original unit",
    )

    @field_validator("scale")
    @classmethod
    def _scale_keeps_something(cls, value: float) -> float:
        if value == 0:
            raise ValueError(
                "a scale of 0 leaves nothing of the features; 1 leaves them as they are"
            )
        return value

    @field_validator("shape")
    @classmethod
    def _shape_is_an_arrays(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(value) > MOST_DIMS:
            raise ValueError(
                f"a sample of {len(value)} dimensions; arrays of pairs have room for {MOST_DIMS}"
            )
        return value

    @field_validator("columns")
    @classmethod
    def _columns_are_named_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if twice := [name for name in value or () if (value or ()).count(name) > 1]:
            raise ValueError(f"columns names {twice[0]!r} twice; each is asked for by its name")
        return value

    @model_validator(mode="after")
    def _dims_match_shape(self) -> "FeatureSettings":
        if self.dims is not None and self.shape is not None and len(self.dims) != len(self.shape):
            raise ValueError(
                f"dims {list(self.dims)} names {len(self.dims)} dimensions, shape "
                f"{list(self.shape)} has {len(self.shape)}; each needs one name"
            )
        if self.dims is not None and len(set(self.dims)) != len(self.dims):
            raise ValueError(f"dims {list(self.dims)} repeats a name")
        return self


def _only_files(names: tuple[str, ...]) -> tuple[str, ...]:
    callables = [name for name in names if is_callable_name(name)]
    if callables or not names:
        raise ValueError(
            f"a list names one file or more, not the callable {callables[0]!r}"
            if callables
            else "an empty list; name at least one file"
        )
    return names


PathName = Annotated[str, AfterValidator(path_name)]
Files = Annotated[
    Annotated[PathName, Tag("name")]
    | Annotated[tuple[PathName, ...], AfterValidator(_only_files), Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "name"),
]


class CsvSettings(Settings):
    """How a .csv is written; nothing of it is guessed."""

    separator: str = setting(",", "one character, between columns", min_length=1, max_length=1)
    decimal: Literal[".", ","] = setting(".", "the mark in decimal numbers")
    encoding: str = setting("utf-8-sig", "a name that Python knows: latin-1, …")

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            "a".encode(value)
        except (LookupError, ValueError) as error:  # some are of bytes: base64
            raise ValueError(f"{value!r} is no encoding that Python knows") from error
        return value

    @model_validator(mode="after")
    def _differ(self) -> "CsvSettings":
        if self.separator == self.decimal:
            raise ValueError(
                f"separator and decimal are both {self.decimal!r}; with a decimal comma the "
                "separator is mostly ';' or a tab"
            )
        return self


MOST_PIXELS = 10**8  # of one picture


def _two(size: tuple[int, ...]) -> tuple[int, ...]:
    """A pair, by a validator: Dagster cannot show the schema of a tuple of fixed length."""
    if len(size) != 2:
        raise ValueError(f"size is [rows, columns], not {list(size)}")
    if math.prod(size) > MOST_PIXELS:
        raise ValueError(f"size has {math.prod(size):,} pixels; at most {MOST_PIXELS:,} are taken")
    return size


class ImageSettings(Settings):
    """How pictures become inputs: floats from 0 to 1 of shape (channels, rows, columns)."""

    root: PathName | None = setting(
        None, "the folder that paths in a table start at; default: the table's own"
    )
    path: str = setting("path", "a table's column of paths")
    size: Annotated[tuple[PositiveInt, ...], AfterValidator(_two)] | None = setting(
        None, "rows and columns to which all are resized; default: as they are"
    )
    channels: Literal[1, 3, 4] = setting(3, "1: grey, 3: RGB, 4: with alpha")


def _class_names(value: Any) -> Any:
    """Names of classes as text: YAML reads 3 as a number and 2024-05-01 as a date."""
    if not isinstance(value, list | tuple):
        return value
    names = [
        each.isoformat() if isinstance(each, date) else str(each)
        for each in value
        if isinstance(each, str | int | float | date) and not isinstance(each, bool)
    ]
    if len(names) < len(value):
        return value  # truth values, nothing, lists: refused by type
    names = [name.strip() for name in names]
    if not names or "" in names or len(set(names)) < len(names):
        raise ValueError("classes are names of outputs: each once, none empty")
    return tuple(names)


class DataSettings(Settings):
    """Where the rows come from: `.csv`, `.parquet`, `.npz`, `.zarr` or `module:callable`.

    A split may be several files, as a list or a pattern (`data/test-*.csv`, `**` for any folders
    between): their rows together, each under an id of its own.
    """

    train: Files = Field(
        description=(
            "training rows: a file, a pattern or a list of files, a folder of pictures, or "
            "module:callable that returns a torch Dataset"
        )
    )
    test: Files = Field(description="test rows, the same way")
    id: str | None = setting(
        None, "the column of row ids; without it the position is the id (not for .csv)"
    )
    target: str = setting("y", "the column (or array) that the model predicts")
    classes: Annotated[tuple[str, ...], BeforeValidator(_class_names)] | None = setting(
        None,
        "the labels in the order of the model's outputs; default: the sorted distinct labels "
        "of the training rows, where labels are words",
    )
    keep: tuple[str, ...] = setting(
        (),
        "columns that are no features and travel along as coordinates (train_note, test_note); "
        "with features.columns all other columns of text do",
    )
    csv: CsvSettings = CsvSettings()
    images: ImageSettings | None = setting(
        None,
        "pictures: train and test are folders with a folder a class, or tables with a column "
        "of paths",
    )
    weight: str | None = setting(
        None,
        "the column (or array) of the training rows' weights: sums and means over training "
        "rows are weighted, 2 counts as the row twice; a callable yields (x, y, weight) instead",
    )
    features: FeatureSettings = FeatureSettings()
    deps: tuple[Annotated[str, AfterValidator(asset_path)], ...] = setting(
        (),
        "keys of Dagster assets that write the files, such as warehouse/patients: the dataset "
        "comes after them, and is out of date when they are materialised",
    )
    workers: int = setting(
        0,
        "processes that read the rows of a callable's data set side by side; 0: this process. "
        "It changes no number",
        ge=0,
    )

    @model_validator(mode="after")
    def _roles_differ(self) -> "DataSettings":
        roles = {"id": self.id, "target": self.target, "weight": self.weight}
        named = [name for name in roles.values() if name is not None]
        if twice := {name for name in named if named.count(name) > 1}:
            name = twice.pop()
            both = " and ".join(role for role, each in roles.items() if each == name)
            raise ValueError(f"{both} both name {name!r}; each needs a column of its own")
        for field in ("keep", "deps"):
            names = getattr(self, field)
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{field} names {twice[0]!r} twice")
        if self.workers and not self.makes_rows:
            raise ValueError(
                f"workers is {self.workers}, of processes that read the rows of a callable, and "
                "the rows come from files; leave it out"
            )
        if self.target in (self.features.columns or ()):
            raise ValueError(
                f"features.columns names {self.target!r}, the target: the model would be handed "
                "what it is to predict; take it out"
            )
        if self.images is not None and self.features.columns is not None:
            raise ValueError(
                "features.columns names columns, and with images the pictures are the only input; "
                "leave it out, or let columns travel along (keep)"
            )
        if held := [name for name in self.keep if name in named]:
            raise ValueError(
                f"keep names {held[0]!r}, which is a coordinate already: ids and labels always are"
                if held[0] != self.weight
                else f"keep names {held[0]!r}, the weight, which the dataset holds as train_weight"
            )
        return self

    @property
    def reading(self) -> dict[str, Any]:
        """The settings that decide what is read: order and processes change nothing of it."""
        return self.model_dump(mode="json", exclude={"deps", "workers"})

    @property
    def roles(self) -> tuple[str, ...]:
        """The columns that are no features unless `features.columns` names them."""
        named = (self.id, self.target, self.weight, *self.keep)
        return tuple(name for name in named if name is not None)

    @property
    def makes_rows(self) -> bool:
        """Whether a callable makes the rows of a split."""
        return any(is_callable_name(self.names(which)[0]) for which in ("train", "test"))

    def names(self, which: Split) -> tuple[str, ...]:
        """What a split is read from: one name, or those of a list."""
        named = getattr(self, which)
        return (named,) if isinstance(named, str) else named

    def described(self, which: Split) -> str:
        """The same in words."""
        return ", ".join(self.names(which))
