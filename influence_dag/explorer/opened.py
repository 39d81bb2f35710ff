"""A stored study as the explorer reads it: versions kept open, rows by their ids, arrays by slots.

Nothing is computed and nothing imported: regions of stored arrays are read when they are asked for.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from influence_dag.datasets.slots import Axis, Split, StoredAxis, dataset_of
from influence_dag.errors import StoreError
from influence_dag.stages import dampings, naming
from influence_dag.store import Store, Version
from influence_dag.texts import did_you_mean, listed, short

KEPT_OPEN = 24  # versions; each holds its checksums
ROWS = 8  # sets of rows, of a split in a version
VIEWS = 4  # each holds a few numbers of every row

Found = TypeVar("Found", bound=Callable[..., Any])


class Results(Protocol):
    """What the explorer asks of `StudyResults`, which opens it."""

    store: Store
    project: Path | None

    @property
    def methods(self) -> list[str]: ...
    def lazy_perturbations(self, method: str) -> dict[str, Any]: ...
    def position_influences(self, method: str) -> Any: ...
    def relabelled_influences(self, method: str, labels: dict[str, Any]) -> Any: ...


class Opened:
    """The study's versions, each opened once while it is looked at."""

    def __init__(self, results: Results):
        self.results, self.store = results, results.store
        self._version = lru_cache(KEPT_OPEN)(self._opened)
        self._rows = lru_cache(ROWS)(lambda stored: Rows(stored.read()))
        self._view = lru_cache(VIEWS)(self._made_view)

    @property
    def name(self) -> str:
        return self.store.name

    def version(self, artifact: str, number: int | None = None) -> Version:
        """A kept version, by default the current one."""
        found = self.store.version(artifact, number)
        return self._version(artifact, found.number, found.data_version)

    def kept(self, artifact: str) -> Iterator[Version]:
        """The kept versions, newest first; one that is damaged is passed over."""
        for version in reversed(list(self.store.versions(artifact))):
            with suppress(StoreError):
                yield self._version(artifact, version.number, version.data_version)

    def _opened(self, artifact: str, number: int, data_version: str) -> Version:
        return self.store.version(artifact, number)

    def rows(self, version: Version, split: Split) -> "Rows":
        """The rows of one split that a version was made with: artifacts share them."""
        return self._rows(StoredAxis.of(version, split))

    def view(
        self, method: str | None = None, damping: float | None = None, version: int | None = None
    ) -> "View":
        """One method's influences at one λ in one version; by default what stands first."""
        methods = self.results.methods
        if not methods:
            raise StoreError(
                f"{self.store.address} has no influences yet; materialise the study first"
            )
        method = method or methods[0]
        if method not in methods:
            near = did_you_mean(method, methods)
            raise StoreError(f"no influences of {method!r}{near}; stored are {', '.join(methods)}")
        influences = self.version(naming.influences(method), version)
        found = map(self.store.current, (naming.summary(method), "dataset"))
        beside = [each and (each.number, each.data_version) for each in found]
        known = influences.number, influences.data_version, *beside
        return self._view(method, _damping(influences, damping), known)

    def _made_view(self, method: str, damping: int, known: tuple) -> "View":
        number, data_version, *_ = known
        influences = self._version(naming.influences(method), number, data_version)
        return View(self, method, influences, damping)


def _damping(influences: Version, asked: float | None) -> int:
    """The place of λ on the axis, by default the last."""
    known, single = dampings.stored_values(influences), influences.attrs.get("damping")
    if asked is None or asked == single:
        return len(known) - 1
    same = [place for place, each in enumerate(known or [single]) if dampings.is_same(each, asked)]
    if not same:
        stored = listed(known, shown=short) if known else short(single)
        raise StoreError(f"damping {short(asked)} is none of those stored: {stored}")
    return same[0] if known else len(known) - 1


class Rows:
    """The rows of a split that exist: ids as text, labels, columns that travel along."""

    def __init__(self, axis: Axis):
        self.axis, self.slots = axis, axis.slots
        self.ids: list[str] = axis.ids[self.slots].tolist()
        self.labels = None if axis.labels is None else axis.labels[self.slots]
        self.kept = {name: values[self.slots] for name, values in axis.kept.items()}
        self.keys = axis.keys[self.slots]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position among the rows that exist, by id."""
        return {name: position for position, name in enumerate(self.ids)}

    def position(self, name: str) -> int:
        if name not in self.positions:
            raise StoreError(f"no {self.axis.name} row {name!r:.200} in this version")
        return self.positions[name]

    def slot(self, name: str, key: np.uint64) -> int | None:
        """Where a row is stored, if it is there with this content."""
        at = self.positions.get(name)
        return int(self.slots[at]) if at is not None and self.keys[at] == key else None

    def places(self, names: Iterable[str]) -> NDArray[np.int64]:
        """The positions of several, −1 for those that there are not."""
        return np.array([self.positions.get(name, -1) for name in names], np.int64)

    @cached_property
    def searched(self) -> NDArray:
        """Ids and kept columns of each row as one text, without regard to case."""
        columns = [self.ids, *(map(str, values.tolist()) for values in self.kept.values())]
        texts = ["\n".join(row).casefold() for row in zip(*columns, strict=True)]
        return np.array(texts, np.dtypes.StringDType())


def once(found: Found) -> Found:
    """Of a view, found out once: the page asks row by row."""

    @wraps(found)
    def known(view: "View", *of: str) -> Any:
        if (found, of) not in view.known:
            view.known[found, of] = found(view, *of)
        return view.known[found, of]

    return known  # type: ignore[return-value]


@dataclass(frozen=True)
class View:
    """One method's influences at one λ, in one version, with what is known of its rows."""

    opened: Opened
    method: str
    influences: Version
    damping: int
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def test(self) -> Rows:
        return self.opened.rows(self.influences, "test")

    @property
    def train(self) -> Rows:
        return self.opened.rows(self.influences, "train")

    def split(self, split: Split) -> Rows:
        return self.test if split == "test" else self.train

    @property
    def n(self) -> float:
        """What changes are divided by: the number of training rows, or the sum of weights."""
        attrs = self.influences.attrs
        return float(attrs.get("weight_sum", attrs["n_train"]))

    @property
    def shown_damping(self) -> float | None:
        known = dampings.stored_values(self.influences) or [self.influences.attrs.get("damping")]
        told = known[self.damping]
        return float(told) if isinstance(told, int | float) else None

    @cached_property
    def no_change(self) -> str | None:
        """Why these numbers foretell no change of a loss; None where they do."""
        about = self.influences.array("influences").attrs
        if "parameter²" not in str(about.get("units")):
            return None
        return (
            f"These are products of gradients ({about['formula']}), which say nothing of leaving "
            "rows out; take a method with a curvature."
        )

    def check_current(self) -> None:
        """Raise `StoreError` unless this is the current version: one computes with no other."""
        current = self.opened.version(self.influences.artifact)
        if current.data_version != self.influences.data_version:
            raise StoreError("this is computed on demand for the current version alone; choose it")

    def of_test(self, position: int) -> NDArray[np.float64]:
        """The influences of every training row on one test row."""
        slot = int(self.test.slots[position])
        return self._read(slice(slot, slot + 1), slice(None))[0, self.train.slots]

    def of_train(self, position: int) -> NDArray[np.float64]:
        """The influences of one training row on every test row."""
        slot = int(self.train.slots[position])
        return self._read(slice(None), slice(slot, slot + 1))[self.test.slots, 0]

    def columns(self, slots: slice) -> NDArray[np.float64]:
        """The influences of a run of slots of training rows on every test row, with holes."""
        return self._read(slice(None), slots)[self.test.slots]

    def _read(self, tests: slice, trains: slice) -> NDArray[np.float64]:
        block = dampings.at(self.influences, "influences", self.damping, tests, trains)
        return block.astype(np.float64)

    @cached_property
    def summary(self) -> Version | None:
        """What was summed up of exactly these influences; None where it is not stored."""
        wanted = {
            "influences_data_version": self.influences.data_version,
            "influences_version": self.influences.number,  # all that earlier summaries say
        }
        for version in self.opened.kept(naming.summary(self.method)):
            said = next((name for name in wanted if name in version.attrs), None)
            if said and version.attrs[said] == wanted[said]:
                return version
        return None

    @cached_property
    def dataset(self) -> Version | None:
        """The version of the dataset that these rows are of; None where it is not kept any more."""
        return dataset_of(self.influences, self.opened.kept("dataset"))

    @once
    def said(self, name: str, split: Split) -> NDArray[np.float64] | None:
        """A number of each row from the summary, in the order of the rows; None without it."""
        version = self.summary
        if version is None or name not in version.variables:
            return None
        values = dampings.at(version, name, self.damping)
        return self.placed(values, self.opened.rows(version, split))

    def placed(self, by_slot: NDArray, there: Rows) -> NDArray[np.float64]:
        """Values by slot of another version's rows, for these rows; NaN where it has none."""
        at = _places(there, self.split(there.axis.name))
        return np.where(at < 0, np.nan, by_slot[np.maximum(at, 0)]).astype(np.float64)


def _places(there: Rows, rows: Rows) -> NDArray[np.int64]:
    """The slot of each row in another version, −1 where it lacks the row or has another content."""
    if there is rows or (there.ids == rows.ids and bool((there.keys == rows.keys).all())):
        return there.slots
    places = there.places(rows.ids)
    same = (places >= 0) & (there.keys[places] == rows.keys)
    return np.where(same, there.slots[places], -1)
