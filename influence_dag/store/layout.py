"""What a stored artifact looks like: its variables, coordinates and attributes, and how it is cut.

A layout is a plain value. Whatever of it a reader would notice takes part in its fingerprint;
`provenance` (times, versions of libraries) is written but does not.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.errors import StoreError
from influence_dag.fingerprints import KEY_BYTES, fingerprint

ChunkIndex = tuple[int, ...]

CODEC = "blosc lz4 5 bitshuffle, crc32c"
"""How chunks are encoded; files of another codec are not carried into a new version."""

_MIB = 2**20
_SMALL_ARRAY = 10**9
_LARGEST_CHUNK = 2**31 - 2**20  # Blosc compresses less than 2 GiB at once
RESERVED_NAMES = frozenset({"blocks.npz", "manifest.json", "zarr.json"})


@dataclass(frozen=True, eq=False)
class Variable:
    """An array that is computed and kept chunk by chunk, each chunk under the key of its inputs.

    Floating variables are NaN where nothing was computed. With `max_relative_error > 0` the
    mantissas are rounded to that many significant bits before compression (never for factors or
    gradients). `coordinate` lists it among the coordinates rather than the data of the dataset.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    max_relative_error: float = 0.0
    coordinate: bool = False

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        if not len(self.dims) == len(self.shape) == len(self.chunks):
            raise StoreError(
                f"variable {self.name!r}: dims {self.dims}, shape {self.shape} and chunks "
                f"{self.chunks} need one entry a dimension each"
            )
        if min(self.chunks, default=1) < 1 or min(self.shape, default=0) < 0:
            raise StoreError(f"variable {self.name!r}: shape {self.shape}, chunks {self.chunks}")
        if self.chunk_bytes > _LARGEST_CHUNK:
            raise StoreError(
                f"variable {self.name!r}: chunks {self.chunks} are {self.chunk_bytes:,} bytes, "
                f"the limit is {_LARGEST_CHUNK:,}; choose smaller chunks"
            )
        if self.max_relative_error and not np.issubdtype(self.dtype, np.floating):
            raise StoreError(f"variable {self.name!r} is {self.dtype}: only floats can be rounded")

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunks) * np.dtype(self.dtype).itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    @property
    def encoding(self) -> dict[str, Any]:
        """What must be equal for the files of two versions to be interchangeable."""
        return {
            "dims": list(self.dims),
            "dtype": self.dtype,
            "chunks": list(self.chunks),
            "max_relative_error": self.max_relative_error,
            "codec": CODEC,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Stands for everything about the variable but its values."""
        return fingerprint(self.name, self.encoding, self.shape, self.coordinate, self.attrs)

    @property
    def no_keys(self) -> NDArray[np.uint8]:
        """Keys of a variable of which nothing has been computed: zeros, `(*grid, 16)`."""
        return np.zeros((*self.grid, KEY_BYTES), np.uint8)

    def region(self, index: ChunkIndex) -> tuple[slice, ...]:
        """Where a chunk lies in the array, clipped at its edge."""
        edges = zip(index, self.chunks, self.shape, strict=True)
        return tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in edges)


@dataclass(frozen=True, eq=False)
class Coordinate:
    """Labels along dimensions (row ids, classes, feature names), written whole when they change."""

    name: str
    dims: tuple[str, ...]
    values: NDArray
    attrs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name(self.name)
        values = np.asarray(self.values)
        if values.dtype.kind in "UO":
            values = np.asarray(values, dtype=np.dtypes.StringDType())
        if values.dtype.kind not in "biufcT":
            raise StoreError(
                f"coordinate {self.name!r}: values are {values.dtype}; labels are numbers, truth "
                "values or text"
            )
        object.__setattr__(self, "values", values)
        size = values.size * max(values.itemsize, 1)  # of text at least that, with its lengths
        if size > _LARGEST_CHUNK:
            raise StoreError(
                f"coordinate {self.name!r}: {values.size:,} labels are {size:,} bytes, which are "
                f"written at once, and the limit is {_LARGEST_CHUNK:,}; make several studies of "
                "the rows, with the same checkpoint"
            )
        if values.ndim != len(self.dims):
            raise StoreError(
                f"coordinate {self.name!r}: values of shape {values.shape} for dims {self.dims}"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Stands for the labels and all that is said about them."""
        return fingerprint(self.name, self.dims, self.values, self.attrs)


@dataclass(frozen=True, eq=False)
class Layout:
    """Variables, coordinates and attributes of one artifact."""

    variables: tuple[Variable, ...]
    coordinates: tuple[Coordinate, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [item.name for item in (*self.variables, *self.coordinates)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise StoreError(f"a layout names {', '.join(sorted(twice))} twice")
        self.sizes  # noqa: B018  (refuses dimensions of two sizes)

    def __getitem__(self, name: str) -> Variable:
        for variable in self.variables:
            if variable.name == name:
                return variable
        known = ", ".join(variable.name for variable in self.variables)
        raise StoreError(f"no variable {name!r} in this layout; it has {known}")

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Length of every dimension; a `StoreError` where variables disagree."""
        sizes: dict[str, int] = {}
        for name, dims, shape in self._shapes():
            for dim, length in zip(dims, shape, strict=True):
                if sizes.setdefault(dim, length) != length:
                    raise StoreError(
                        f"{name!r} has {length} along {dim!r}, others have {sizes[dim]}"
                    )
        return sizes

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint("layout", 2, self.parts, self.attrs)

    @cached_property
    def parts(self) -> dict[str, str]:
        """The fingerprint of each variable and coordinate: equal ones need not be written again."""
        return {item.name: item.fingerprint for item in (*self.variables, *self.coordinates)}

    def _shapes(self) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
        for variable in self.variables:
            yield variable.name, variable.dims, variable.shape
        for coordinate in self.coordinates:
            yield coordinate.name, coordinate.dims, coordinate.values.shape


def pair_chunks(
    n_test: int,
    n_train: int,
    *,
    itemsize: int,
    values_per_pair: int = 1,
    override: Mapping[str, int] | None = None,
) -> tuple[int, int]:
    """Chunk lengths along test and train for an array of `values_per_pair` numbers a pair.

    Chunks hold 1 MiB (4 MiB when the array is above 1 GB). One number a pair: as many chunks along
    a row as along a column, so that either query reads about as many. Several: test : train =
    1 : 16, because a feature map is mostly asked for many training rows of one test row. Lengths
    are powers of two, so that a growing data set keeps its chunks. `override` fixes `"test"`,
    `"train"` or both.

    >>> pair_chunks(2_000, 50_000, itemsize=4)
    (128, 2048)
    >>> pair_chunks(297, 1_500, itemsize=4, values_per_pair=64)
    (16, 256)
    """
    fixed = dict(override or {})
    pair_bytes = itemsize * values_per_pair
    budget = max(chunk_budget(n_test * n_train * pair_bytes) // pair_bytes, 1)
    aspect = max(n_test, 1) / max(n_train, 1) if values_per_pair == 1 else 1 / 16
    test = fixed.get("test") or min(_power_of_two(math.sqrt(budget * aspect)), _cover(n_test))
    train = fixed.get("train") or min(_power_of_two(budget / test), _cover(n_train))
    if "test" not in fixed:
        test = min(_power_of_two(budget / train), _cover(n_test))
    return test, train


def row_chunks(n: int, row_bytes: int) -> int:
    """Rows a chunk, for an array whose rows of `row_bytes` are read whole.

    >>> row_chunks(1_500, 4 * 2_410)
    128
    """
    budget = chunk_budget(n * row_bytes)
    return min(_power_of_two(budget / max(row_bytes, 1)), _cover(n))


def chunk_budget(array_bytes: int) -> int:
    return _MIB if array_bytes < _SMALL_ARRAY else 4 * _MIB


def _power_of_two(value: float) -> int:
    return 2 ** max(round(math.log2(max(value, 1.0))), 0)


def _cover(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 2 ** max(n - 1, 0).bit_length()


def _check_name(name: str) -> None:
    if not name or name in RESERVED_NAMES or not set(name).isdisjoint(" /\\") or name[0] in "._":
        raise StoreError(f"{name!r} cannot name a stored array: no spaces, slashes, leading dots")
