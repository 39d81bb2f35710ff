"""What stages, queries, status, checks and components may ask of a store, a version and a draft.

Nothing here says where anything lies: no path, no link, no time of modification. Whoever wants to
name a place in a sentence says its `address`, whoever wants to open arrays with Zarr or xarray
takes `zarr_store()`. The contract behind the words is in `store/testing`, as tests.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray

from influence_dag.fingerprints import Keys
from influence_dag.store.differences import Difference
from influence_dag.store.layout import ChunkIndex, Layout, Variable
from influence_dag.store.plans import Expected, Plan
from influence_dag.store.soundness import Damage

if TYPE_CHECKING:  # whoever only compares keys does not pay for their import
    import xarray as xr
    import zarr
    from zarr.abc.store import Store as ZarrStore


class Version(Protocol):
    """One complete version of an artifact: it never changes again."""

    @property
    def artifact(self) -> str: ...

    @property
    def number(self) -> int:
        """1, 2, …: a later version of the same artifact has a larger one."""
        ...

    @property
    def address(self) -> str:
        """Where it is, for messages; in a folder, the path that plain xarray opens."""
        ...

    @property
    def data_version(self) -> str:
        """Stands for everything that a reader of this version could depend on."""
        ...

    @property
    def attrs(self) -> dict[str, Any]:
        """The group's attributes, provenance and results included."""
        ...

    @property
    def variables(self) -> dict[str, Variable]:
        """What is kept by chunks and keys: shapes and encodings, no attributes."""
        ...

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every dimension."""
        ...

    @property
    def parts(self) -> dict[str, str]:
        """The fingerprints of its variables and coordinates, as `Layout.parts`."""
        ...

    @property
    def coordinates(self) -> list[str]:
        """Names of everything that labels the variables."""
        ...

    def coordinate(self, name: str) -> NDArray:
        """The values of a coordinate or a result, read at once."""
        ...

    def keys(self, variable: str) -> Keys:
        """The keys under which the chunks were computed, `(*grid, 16)`."""
        ...

    def encodes_like(self, variable: Variable) -> bool:
        """Whether this version's chunks of a variable could serve in a version of that one."""
        ...

    def read(self, variable: str, *region: slice) -> NDArray:
        """Values of a region; a missing or damaged chunk is a `StoreError` that names it."""
        ...

    def array(self, variable: str) -> "zarr.Array":
        """A variable as a Zarr array, read-only, checked as `read` checks."""
        ...

    def open(self, *, chunks: Literal["auto"] | None = "auto") -> "xr.Dataset":
        """The version as a lazy dataset, which stays on it whatever is published meanwhile."""
        ...

    def zarr_store(self) -> "ZarrStore":
        """The version as Zarr and xarray open it; what is missing or damaged is a `StoreError`."""
        ...

    def file(self, name: str) -> bytes:
        """The content of a file that was added to the version, checked."""
        ...

    def verify(self, *, checksums: bool = False) -> Sequence[Damage]:
        """What of it is missing or damaged. With `checksums` everything is read."""
        ...


class Draft(Protocol):
    """A version in the making: what can be kept is in it, the outdated chunks are written.

    Results (`set_result`, `set_attrs`, `add_file`) of the version before, or of an interrupted
    run, stay as long as no chunk is written: the first write drops them.
    """

    @property
    def artifact(self) -> str: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def version(self) -> Version | None:
        """After the block, the version that is current."""
        ...

    @property
    def resumed(self) -> bool:
        """Whether an interrupted run left something of it."""
        ...

    @property
    def chunks_written(self) -> int: ...

    @property
    def bytes_written(self) -> int: ...

    def outdated(self, expected: Expected) -> dict[str, list[ChunkIndex]]:
        """Chunks that it does not hold under their expected keys; all have to be written."""
        ...

    def read(self, variable: str, *region: slice) -> NDArray:
        """Values as they are now."""
        ...

    def write(
        self,
        variable: str,
        start: tuple[int, ...],
        values: NDArray,
        keys: Mapping[ChunkIndex, bytes],
    ) -> None:
        """Write whole chunks with their keys; different ones may come from several threads."""
        ...

    def lacks(self, *names: str) -> bool:
        """Whether one of these results has to be set."""
        ...

    def set_attrs(self, **attrs: Any) -> None: ...

    def set_result(
        self,
        name: str,
        dims: tuple[str, ...],
        values: NDArray,
        attrs: Mapping[str, Any] | None = None,
    ) -> None: ...

    def add_file(self, name: str, content: bytes) -> None: ...


class Store(Protocol):
    """The artifacts of one study. One writer an artifact at a time; readers need no lock."""

    @property
    def address(self) -> str:
        """Where it is: for messages, and `open_store(address)` opens it again."""
        ...

    @property
    def name(self) -> str:
        """The study's."""
        ...

    def names(self) -> list[str]:
        """The artifacts that have a current version, sorted."""
        ...

    def unfinished(self) -> dict[str, int]:
        """How many finished chunks interrupted runs have left for the next one, by artifact."""
        ...

    def beside(self, artifact: str) -> list[str]:
        """Names of the stores next to this one that have such an artifact."""
        ...

    def free_bytes(self) -> int | None:
        """How much there is room for; None where nobody knows."""
        ...

    def current(self, name: str) -> Version | None:
        """The newest complete version; None before the first."""
        ...

    def base(self, name: str) -> Version | None:
        """The current version as something to start from: None when its bookkeeping is damaged."""
        ...

    def version(self, name: str, number: int | None = None) -> Version:
        """One version by number, by default the current one; `StoreError` where there is none."""
        ...

    def versions(self, name: str) -> Sequence[Version]:
        """All kept versions, oldest first."""
        ...

    def diff(self, name: str, before: int, after: int | None = None) -> Difference:
        """What changed from one version to another, by default to the current one."""
        ...

    def plan(self, name: str, layout: Layout, expected: Expected) -> Plan:
        """What would have to be computed; takes no lock and changes nothing."""
        ...

    def new_version(self, name: str, layout: Layout) -> AbstractContextManager[Draft]:
        """A draft, published when the block ends unless nothing changed.

        An exception leaves the current version as it was, and what was finished for the next run.
        """
        ...

    def exclusive(self, name: str) -> AbstractContextManager[None]:
        """Keep others from working on the same artifact until the block ends."""
        ...

    def restore_pointer(self, name: str) -> None:
        """Put right what says which version is current, where a copy or a kill has left it so."""
        ...

    def gc(self, name: str | None = None) -> list[str]:
        """Remove versions that are not to be kept, and unfinished ones; what was removed."""
        ...
