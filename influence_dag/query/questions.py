"""Questions to a study by the names of its rows; an array answers the same through `.idag`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from influence_dag.datasets.slots import Split
from influence_dag.errors import StoreError
from influence_dag.query.rows import at_damping, rows_named
from influence_dag.stages import naming
from influence_dag.store import Store
from influence_dag.suspicion import NEIGHBOURS, Space
from influence_dag.texts import did_you_mean

if TYPE_CHECKING:
    from influence_dag.query.pictures import Pictures

Rows = object  # the id of one row, or several


class Questions(ABC):
    """What is asked of a study's influences.

    `test` is the id of a row, several, or None for all; `method` defaults to the study's first,
    `damping` to the last of a sweep.
    """

    store: Store
    project: Path | None

    @property
    @abstractmethod
    def artifacts(self) -> list[str]: ...

    @property
    @abstractmethod
    def methods(self) -> list[str]: ...

    @abstractmethod
    def __getitem__(self, method: str) -> xr.Dataset: ...

    @abstractmethod
    def open(self, artifact: str, version: int | None = None) -> xr.Dataset: ...

    @abstractmethod
    def perturbation(
        self, method: str, version: int | None = None, *, input: str | None = None
    ) -> xr.DataArray: ...

    @abstractmethod
    def lazy_perturbation(self, method: str, *, input: str | None = None) -> xr.DataArray: ...

    def influences(
        self, test: Rows = None, *, method: str | None = None, damping: float | None = None
    ) -> xr.DataArray:
        """Influences by one method at one λ, lazy: `(test, train)`, `(train,)` of one test row."""
        if method is None and not self.methods:
            raise StoreError(f"{self.store.address} has no influences yet; materialise the study")
        array = self[method or self.methods[0]]["influences"]
        return _selected(at_damping(array, damping), "test", test)

    def top_k(self, test: Rows = None, k: int = 10, **of: Any) -> xr.DataArray:
        """The `k` training rows that help most: `study.top_k("test-0003", 5)`."""
        return self.influences(test, **of).idag.top_k(k)

    def bottom_k(self, test: Rows = None, k: int = 10, **of: Any) -> xr.DataArray:
        """The `k` training rows that harm most."""
        return self.influences(test, **of).idag.bottom_k(k)

    def by_label(self, test: Rows = None, **of: Any) -> xr.DataArray:
        """Mean influence of the training rows of each label."""
        return self.influences(test, **of).idag.by_label()

    def influence_of(self, rows: Iterable[object], test: Rows = None, **of: Any) -> xr.DataArray:
        """Influence of a group of training rows: the sum of theirs."""
        return self.influences(test, **of).idag.influence_of(rows)

    def to_loo(self, test: Rows = None, **of: Any) -> xr.DataArray:
        """Change of each test loss on leaving out a training row: `+I / n`, to first order."""
        return self.influences(test, **of).idag.to_loo()

    def to_koh_liang(self, test: Rows = None, **of: Any) -> xr.DataArray:
        """Influences with the sign of Koh & Liang (2017): positive harms."""
        return self.influences(test, **of).idag.to_koh_liang()

    def self_influence(
        self, *, method: str | None = None, damping: float | None = None
    ) -> xr.DataArray:
        """`∇L(z_i)ᵀ (H + λI)⁻¹ ∇L(z_i)` of each training row, of the first method that has it."""
        stored = [name for name in self.methods if _has_self_influence(self.store, name)]
        if not stored or (method is not None and method not in stored):
            asked = "" if method is None else f" of {method!r}{did_you_mean(method, stored)}"
            raise StoreError(
                f"{self.store.address} has no self-influence{asked} (stored: "
                f"{', '.join(stored) or 'none'}); set `summary: {{self_influence: true}}` in the "
                "study and materialise <method>/summary"
            )
        method = method or stored[0]
        summary = self.open(naming.summary(method))
        about = {name: summary.attrs[name] for name in ("method", "damping")}
        return at_damping(summary["self_influence"].load().assign_attrs(about), damping)

    def suspects(
        self,
        k: int = 20,
        *,
        method: str | None = None,
        damping: float | None = None,
        by: str = "combined",
        neighbours: int = NEIGHBOURS,
        space: Space = "auto",
        folds: int = 0,
    ) -> xr.Dataset:
        """The `k` training rows that are most likely mislabelled: `influence_dag.suspects`."""
        from influence_dag.query.suspect_rows import Asked, suspect_rows

        asked = Asked(by, neighbours, space, folds)
        return suspect_rows(self, k, method=method, damping=damping, asked=asked)

    def tree(self, artifacts: Sequence[str] = ()) -> xr.DataTree:
        """Artifacts (default: all) by name, lazy; what `xr.open_datatree` opens, from any store."""
        names = [artifacts] if isinstance(artifacts, str) else artifacts or self.artifacts
        groups = {f"/{name}": self.open(name) for name in names}
        return xr.DataTree.from_dict({"/": xr.Dataset()} | groups, name=self.store.name)

    @cached_property
    def plot(self) -> "Pictures":
        """Pictures: `study.plot.scores("test-0003")`, `study.plot.spectrum()`, …"""
        from influence_dag.query.pictures import Pictures

        return Pictures(self)


def _selected(array: xr.DataArray, split: Split, rows: Any) -> xr.DataArray:
    """All rows, one (without its dimension) or several."""
    if rows is None:
        return array
    one = isinstance(rows, str) or not isinstance(rows, Iterable)
    names = rows_named(array, split, [rows] if one else rows)
    return array.sel({split: names[0] if one else names})


def _has_self_influence(store: Store, method: str) -> bool:
    summary = store.current(naming.summary(method))
    return summary is not None and "self_influence" in summary.variables
