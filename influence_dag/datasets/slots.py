"""Rows with names: the one place where tensors become labelled arrays and back.

An axis has *slots*. A row keeps its slot for as long as it exists, a removed row leaves a
hole (`valid` is False, values are NaN), a new row fills a hole or is appended. So an edit of
the data touches only the chunks that hold the edited rows.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from influence_dag.errors import StoreError
from influence_dag.fingerprints import KEY_BYTES, Keys
from influence_dag.store import Coordinate, Version
from influence_dag.study.base import Split

SPLITS: tuple[Split, ...] = ("test", "train")
STRING = np.dtypes.StringDType()
HOLE = np.uint64(0)
# What follows `train_` or `test_` in the names of arrays of our own.
TAKEN = frozenset(
    ("label", "valid", "key", "x", "y", "weight", "loss", "predicted", "sum", "abs_mean", "block")
)


@dataclass(frozen=True, eq=False)
class Axis:
    """The rows of one split, by slot: ids, content fingerprints, labels, holes.

    `keys` are 64 bits of each row's content hash; a hole has key 0. Equal keys at the same
    slot mean an unchanged row. `kept` are columns that travel along, by the name of the column.
    """

    name: Split
    ids: np.ndarray
    keys: np.ndarray
    labels: np.ndarray | None = None
    valid: np.ndarray = field(default=None)  # type: ignore[assignment]
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.valid is None:
            object.__setattr__(self, "valid", self.keys != HOLE)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def slots(self) -> np.ndarray:
        """The slots that hold a row, in order."""
        return np.flatnonzero(self.valid)

    @cached_property
    def drawn(self) -> np.ndarray:
        """Positions among `slots`, in the order in which whatever is drawn falls to the rows.

        That of their content (of their ids where it is the same), so that the same rows are drawn,
        however edits have led to their slots.
        """
        by_id = np.argsort(self.ids[self.valid], kind="stable")
        return by_id[np.argsort(self.keys[self.valid][by_id], kind="stable")]

    @property
    def count(self) -> int:
        """The number of rows, holes not counted."""
        return int(self.valid.sum())

    @staticmethod
    def coordinate_names(split: Split, names: Iterable[str] = ()) -> tuple[str, ...]:
        """What its coordinates are called; rows whose target is not one number have no label.

        Those of columns that travel along are found among `names`, all those of an artifact.
        """
        own = split, f"{split}_label", f"{split}_valid", f"{split}_key"
        mark = f"{split}_"
        kept = (name for name in names if name.startswith(mark) and name[len(mark) :] not in TAKEN)
        return *own, *(name for name in kept if name not in own)

    @cached_property
    def stored_ids(self) -> np.ndarray:
        """Ids by slot as their coordinate has them: whole numbers where all are, holes' as well."""
        return natural_ids(self.ids)

    @cached_property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """Ids, labels, `valid` and content keys as coordinates of an artifact."""
        name = self.name

        def of_rows(suffix: str, values: np.ndarray, said: str) -> Coordinate:
            return Coordinate(f"{name}{suffix}", (name,), values, {"long_name": said})

        said = f"target of the {name} row"
        labels = [] if self.labels is None else [("_label", self.labels, said)]
        kept = [
            (f"_{kept_name(column)}", values, f"column {column!r} of the {name} row")
            for column, values in self.kept.items()
        ]
        return (
            of_rows("", self.stored_ids, f"id of the {name} row"),
            *(of_rows(*each) for each in (*labels, *kept)),
            of_rows("_valid", self.valid, "False where a removed row left a hole"),
            of_rows("_key", self.keys, "64 bits of the row's content hash"),
        )

    @classmethod
    def read(cls, version: Version, name: Split) -> "Axis":
        """The axis that an artifact's version was made with."""

        def values(suffix: str) -> np.ndarray:
            return version.coordinate(f"{name}{suffix}")

        labels = values("_label") if f"{name}_label" in version.coordinates else None
        kept = cls.coordinate_names(name, version.coordinates)[4:]
        return cls(
            name,
            values("").astype(STRING),
            values("_key"),
            labels,
            values("_valid").astype(bool),
            {each[len(name) + 1 :]: version.coordinate(each) for each in kept},
        )

    def digests(self, size: int) -> Keys:
        """One key for each run of `size` slots: what a chunk of that many slots has read."""
        starts = range(0, len(self), size)
        digests = [_digest(self.keys[start : start + size]).digest() for start in starts]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, KEY_BYTES)

    @property
    def fingerprint(self) -> str:
        """Hash of the rows present, in slot order (holes do not count)."""
        return _digest(self.keys[self.valid]).hexdigest()


@dataclass(frozen=True)
class StoredAxis:
    """Where to read the rows of a split, known by the fingerprints of what would be read."""

    written: tuple[str, ...]
    split: Split
    version: Version = field(compare=False)

    @classmethod
    def of(cls, version: Version, split: Split) -> "StoredAxis":
        parts, names = version.parts, Axis.coordinate_names(split, version.coordinates)
        return cls(tuple(parts.get(name, "") for name in names), split, version)

    def read(self) -> Axis:
        return Axis.read(self.version, self.split)


def dataset_of(version: Version, kept: Iterable[Version]) -> Version | None:
    """The first of some versions of the dataset whose training rows an artifact has; else None.

    One that is damaged is passed over.
    """
    rows = StoredAxis.of(version, "train")
    for each in kept:
        with suppress(StoreError):
            if StoredAxis.of(each, "train") == rows:
                return each
    return None


def slots_of(ids: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """The slot that each id had, −1 for a new one."""
    if len(ids) == len(previous) and bool((ids == previous).all()):
        return np.arange(len(ids))
    old = {name: slot for slot, name in enumerate(previous.tolist())}
    return np.array([old.get(name, -1) for name in ids.tolist()], dtype=np.int64)


def natural_ids(ids: np.ndarray) -> np.ndarray:
    """Ids as whole numbers where all are, and are written as those are; else as text.

    >>> natural_ids(np.array(["3", "10"])), natural_ids(np.array(["3", "010"])).tolist()
    (array([ 3, 10]), ['3', '010'])
    """
    texts = ids.astype(STRING)
    try:
        numbers = texts.astype(np.int64)
    except (ValueError, OverflowError):
        return texts
    return numbers if len(ids) and bool((numbers.astype(STRING) == texts).all()) else texts


def _digest(keys: np.ndarray):
    return hashlib.blake2b(np.ascontiguousarray(keys, "<u8").tobytes(), digest_size=KEY_BYTES)


def kept_name(column: str) -> str:
    """The name of a column as part of a coordinate's: without spaces, slashes, or names taken.

    >>> kept_name("free text"), kept_name("label")
    ('free_text', 'label_column')
    """
    name = re.sub(r"[\s/\\]+", "_", column.strip())
    return f"{name}_column" if name in TAKEN else name


def shown_label(label: Any) -> str:
    """A label as a person reads it: words as they are, numbers without trailing zeros.

    Two labels that differ are never shown as one.

    >>> shown_label(3.0), shown_label(0.25), shown_label(1000001), shown_label(float("nan"))
    ('3', '0.25', '1000001', 'nan')
    """
    return str(label).removesuffix(".0") if isinstance(label, float | np.floating) else str(label)
