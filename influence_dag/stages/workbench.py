"""A study opened for work: what its stages share while they refresh it."""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from influence_dag.datasets.slots import Axis, Split, StoredAxis
from influence_dag.datasets.split_rows import SplitRows
from influence_dag.datasets.splits import load_splits
from influence_dag.errors import StoreError, StudyError
from influence_dag.stages.planned import PlannedVersion
from influence_dag.store import Layout, Store, Version, open_store
from influence_dag.store.layout import pair_chunks, row_chunks
from influence_dag.study.imported import own_dtype
from influence_dag.study.study import Study
from influence_dag.study.torch_modes import keep_digits, study_modes

if TYPE_CHECKING:
    from influence_dag.stages.executors import Executor

Report = Callable[[str], None]
Made = TypeVar("Made")


class Workbench:
    """A study opened for work: its store, and its model and rows read back from there.

    With `plan_only` a refresh says what it would compute, and computes and writes nothing; what it
    would publish then stands in for the artifact (`PlannedVersion`), so that later stages can plan.
    Blocks are computed by `executor`, by default in this process.
    """

    def __init__(
        self,
        study: Study,
        report: Report = lambda message: None,
        *,
        plan_only: bool = False,
        executor: "Executor | None" = None,
    ):
        self.study, self.settings, self.report = study, study.settings, report
        self.plan_only, self.executor = plan_only, executor
        self.store: Store = open_store(
            study.store_address,
            keep_versions=study.settings.store.keep_versions,
            lock_timeout=study.settings.store.lock_timeout,
            report=report,
            locks=study.settings.store.locks,
        )
        self._required: dict[str, Version] = {}
        self._axes: dict[tuple[str, ...], Axis] = {}
        self._planned: dict[str, PlannedVersion] = {}
        self._readable: tuple[str, ...] | None = None
        self._once: dict[Hashable, Any] = {}
        self.brought_up_to_date: set[str] = set()  # artifacts, by this run
        self.busy = threading.Lock()

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Torch's modes inside: plain ones, and what the study's own code has set of its type."""
        with study_modes(own_dtype(self.settings.callables.values(), self.study.root)):
            yield

    @contextmanager
    def at(self, artifact: str, reads: tuple[str, ...]) -> Iterator[None]:
        """Inside, an artifact is made: what its node does not say that it reads is refused."""
        before, self._readable = self._readable, (artifact, *reads)
        self._once.clear()
        try:
            yield
        finally:
            self._readable = before
            self._once.clear()

    def once(self, what: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` has made when it was first asked for under this name, in this stage."""
        if what not in self._once:
            self._once[what] = make()
        return self._once[what]

    @cached_property
    def made_rows(self) -> tuple[SplitRows, SplitRows] | None:
        """Both splits where a callable makes rows, read once a run; None where files have them."""
        if not self.settings.data.makes_rows:
            return None
        return load_splits(self.settings.data, self.study.root)

    def require(self, artifact: str) -> Version:
        """The version of an artifact that this stage reads.

        Asked for again it is the same one, whatever another process publishes meanwhile: all
        that a stage reads belongs together.
        """
        if self._readable is not None and artifact not in self._readable:
            made, *reads = self._readable
            raise LookupError(f"{made} reads {artifact}; its node says {', '.join(reads)}")
        if artifact in self._planned:
            return cast(Version, self._planned[artifact])
        version = self._required.get(artifact) or self.store.current(artifact)
        if version is None:
            raise StoreError(
                f"{self.study.name}/{artifact} has not been computed yet (nothing in "
                f"{self.store.address}/{artifact}); "
                f"materialise it first"
            )
        self._required[artifact] = version
        return version

    def plan(self, artifact: str, layout: Layout | None = None) -> None:
        """Note that an artifact is not current, and what is known of its next version."""
        self._planned[artifact] = PlannedVersion(artifact, layout)

    def is_planned(self, artifact: str) -> bool:
        """Whether an artifact is to be computed, so that its numbers cannot be asked for."""
        return artifact in self._planned

    def undamaged(self, artifact: str) -> Version | None:
        """The current version as something to start from: None without one, or a damaged one."""
        version = self.store.current(artifact)
        return None if version is None or version.verify() else version

    def published(self, artifact: str) -> Version:
        """The version that is current now: what a refresh has just published."""
        self._required.pop(artifact, None)
        return self.require(artifact)

    def axis(self, artifact: str, split: Split) -> Axis:
        return self.axis_of(self.require(artifact), split)

    def axis_of(self, version: Version, split: Split) -> Axis:
        """The rows that a version was made with, read once however many artifacts share them."""
        stored = StoredAxis.of(version, split)
        known = self._axes.get(stored.written)
        return _read_axis(stored) if known is None else known

    def remember(self, axis: Axis) -> None:
        """Rows that are about to be written: nobody has to read them."""
        parts = {coordinate.name: coordinate.fingerprint for coordinate in axis.coordinates}
        names = Axis.coordinate_names(axis.name, parts)
        self._axes[tuple(parts.get(name, "") for name in names)] = axis

    def stable_chunks(self, artifact: str, variable: str, **ideal: int) -> tuple[int, ...]:
        """By dimension, the stored chunk sizes while within a factor of 4 of the ideal ones.

        The ideal size follows the number of rows; keeping the old one means that appended
        rows leave the existing chunks as they are.
        """
        current = self.store.base(artifact)
        if current is None or variable not in current.variables:
            return tuple(ideal.values())
        entry = current.variables[variable]
        stored = dict(zip(entry.dims, entry.chunks, strict=True))
        fits = all(want / 4 <= stored.get(dim, 0) <= want * 4 for dim, want in ideal.items())
        return tuple(stored[dim] if fits else want for dim, want in ideal.items())

    def row_chunk(
        self, artifact: str, variable: str, split: Split, rows: int, *, row_bytes: int
    ) -> int:
        """Rows a chunk of an array whose rows are kept whole.

        The study's own length where a chunk of that many rows is not too large, else a stable one.
        """
        ideal = row_chunks(rows, row_bytes)
        asked = (self.chunk_override or {}).get(split)
        if asked and asked <= ideal:
            return asked
        return self.stable_chunks(artifact, variable, **{split: ideal})[0]

    def pair_chunks(
        self,
        artifact: str,
        variable: str,
        pairs: tuple[int, int],
        itemsize: int,
        values_per_pair: int = 1,
    ) -> tuple[int, ...]:
        """Test and training rows a chunk of an array of pairs: the study's own, or stable ones."""
        override = self.chunk_override
        test, train = pair_chunks(
            *pairs, itemsize=itemsize, values_per_pair=values_per_pair, override=override
        )
        if override:
            return test, train
        return self.stable_chunks(artifact, variable, test=test, train=train)

    @property
    def chunk_override(self) -> dict[str, int] | None:
        """Chunk sizes that the study asks for."""
        chunks = self.settings.store.chunks
        return None if chunks is None else {str(axis): size for axis, size in chunks.items()}

    @cached_property
    def device(self) -> Any:
        import torch

        wanted, there = self.settings.compute.device, torch.cuda.device_count()
        if wanted == "auto":
            wanted = "cuda" if there else "cpu"
        device = torch.device(wanted)
        if device.type == "cuda" and (device.index or 0) >= there:
            raise StudyError(
                f"{self.study.name}: compute.device is {wanted}, and torch sees {there} CUDA "
                "devices here; write cpu, auto, or the number of one that there is"
            )
        keep_digits(torch)
        return device

    @cached_property
    def dtype(self) -> Any:
        import torch

        return getattr(torch, self.settings.compute.dtype)

    def attributes(self, **extra: Any) -> dict[str, Any]:
        """Attributes that every artifact of the study carries."""
        return {"study": self.study.name, "loss": self.settings.model.loss, **extra}


_read_axis = lru_cache(maxsize=8)(StoredAxis.read)
"""Read once a process: each of Dagster's assets and checks opens a workbench of its own."""


@cache
def provenance() -> dict[str, Any]:
    """Versions of what made an artifact: written with it, not part of its fingerprint."""
    from importlib.metadata import version

    names = ("influence-dag", "torch", "zarr", "numpy")
    return {"made_with": {name: version(name) for name in names}}


def policies(bench: Workbench) -> dict[str, str]:
    """What a version was made under: whether θ and the curvature follow the data."""
    settings = bench.settings
    return {"model.refit": settings.model.refit, "curvature.refresh": settings.curvature.refresh}
