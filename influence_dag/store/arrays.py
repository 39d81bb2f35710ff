"""Zarr's part: how an array is described and encoded, and which bytes of one are sound."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import google_crc32c
import numpy as np
from numcodecs.bitround import BitRound
from numpy.typing import NDArray

from influence_dag.errors import StoreError
from influence_dag.store.contents import Contents, Unfinished
from influence_dag.store.layout import ChunkIndex, Variable

BLOSC: dict[str, Any] = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
METADATA = "zarr.json"
_CHECKSUM_BYTES = 4
Content = bytes | NDArray[np.uint8]

_CHUNK = re.compile(r".+/c(\.\d+)*")  # Zarr's default key encoding, with dots


def create_variable(contents: Unfinished, variable: Variable) -> None:
    """Write a variable's metadata; its chunks come later."""
    attrs = dict(variable.attrs)
    if variable.max_relative_error:
        attrs["max_relative_error"] = variable.max_relative_error
    write_metadata(
        contents,
        variable.name,
        np.dtype(variable.dtype),
        variable.shape,
        variable.chunks,
        dims=variable.dims,
        attrs=attrs,
    )


def write_metadata(
    contents: Unfinished,
    array: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    *,
    dims: Sequence[str],
    attrs: Mapping[str, Any],
) -> None:
    """An array's `zarr.json`, as Zarr would write it (which takes it 6 ms and three threads).

    Compressed by Blosc lz4 (mantissas are noise: more effort gains nothing), then a checksum.
    Chunks that hold nothing but the fill value are written too: only so is a missing file a damage
    rather than a value.
    """
    metadata = {
        "shape": list(shape),
        "data_type": "string" if dtype.kind == "T" else dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": _fill_value(dtype),
        "codecs": [
            _serializer(dtype),
            {"name": "blosc", "configuration": {**BLOSC, "typesize": item_bytes(dtype)}},
            {"name": "crc32c"},
        ],
        "attributes": plain(attrs),
        **({"dimension_names": list(dims)} if dims else {}),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    contents.write(f"{array}/{METADATA}", _json(metadata))


def _fill_value(dtype: np.dtype) -> Any:
    """In JSON: what is told of a chunk that was not computed, NaN where numbers can be that."""
    if dtype.kind == "c":
        return ["NaN", 0.0]
    return {"f": "NaN", "b": False, "T": ""}.get(dtype.kind, 0)


def _serializer(dtype: np.dtype) -> dict[str, Any]:
    if dtype.kind == "T":
        return {"name": "vlen-utf8", "configuration": {}}
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def item_bytes(dtype: np.dtype) -> int:
    """What Blosc takes for one item: its shuffle puts bits of items side by side."""
    return 1 if dtype.kind == "T" else dtype.itemsize


def write_group(
    contents: Unfinished, attributes: Mapping[str, Any], members: Mapping[str, Any]
) -> None:
    """A group's attributes and the metadata of its arrays in its one file: opening reads no other.

    As `zarr.consolidate_metadata` writes them, an extension of the format that Zarr and xarray
    read and other implementations ignore.
    """
    metadata = {
        "attributes": plain(attributes),
        "zarr_format": 3,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": members},
        "node_type": "group",
    }
    contents.write(METADATA, _json(metadata))


def _json(metadata: Mapping[str, Any]) -> bytes:
    """As every parser takes it: numbers that are not finite are Zarr's words for them."""
    try:
        return json.dumps(metadata, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_in_words(metadata), allow_nan=False).encode()


def _in_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _in_words(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_words(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def written(contents: Contents, file: str) -> bytes:
    """What a file holds that was written; a `StoreError` where it is gone."""
    content = contents.read(file)
    if content is None:
        raise vanished(contents, file)
    return content


class VanishedError(StoreError):
    """A file of an unfinished version is gone, or another, which its journal says to be there."""


def vanished(contents: Contents, file: str, how: str = "vanished") -> VanishedError:
    """The error for a file that was written and is not there."""
    return VanishedError(f"{contents.address}/{file} {how} before it was published; run again")


def chunk_file(variable: str, index: ChunkIndex) -> str:
    """Where a chunk lies below the group's folder: `influences/c.0.12`.

    With slashes, which Zarr takes when nothing is said, rows of chunks would have folders of their
    own, each to be made, put on the disk and removed again.
    """
    return f"{variable}/{'.'.join(('c', *map(str, index)))}"


def is_chunk(file: str) -> bool:
    """Whether a file of a version, `influences/c.0.12`, is a chunk."""
    return _CHUNK.fullmatch(file) is not None


def checksum(file: str, content: Content) -> int:
    """What stands for a file in the manifest: the CRC-32C of its content.

    Of a chunk it is the one that it ends in, of what comes before: with it the CRC-32C of any two
    chunks is the same number.
    """
    return crc32c(content[:-_CHECKSUM_BYTES] if is_chunk(file) else content)


def last_checksum(content: bytes) -> int:
    return int.from_bytes(content[-_CHECKSUM_BYTES:], "little")


def is_sound(file: str, content: Content, expected: int) -> bool:
    """Whether a file's content is the one that was published under its name.

    A chunk has to end in its checksum as well, which is what every other reader goes by.
    """
    if not is_chunk(file):
        return checksum(file, content) == expected
    last = bytes(np.frombuffer(content, np.uint8)[-_CHECKSUM_BYTES:])
    ends_in_it = int.from_bytes(last, "little") == expected
    return len(content) > _CHECKSUM_BYTES and ends_in_it and checksum(file, content) == expected


def crc32c(content: Content) -> int:
    return google_crc32c.value(cast(bytes, np.frombuffer(content, np.uint8)))


def round_mantissas(values: NDArray, max_relative_error: float) -> NDArray:
    """Keep the fewest mantissa bits for which no value moves by more than the relative error.

    The zeros left behind are what compresses. NaN and infinity stay as they are, and so do denormal
    numbers, whose mantissas have fewer digits than they have bits.
    """
    bits = max(int(np.ceil(-np.log2(max_relative_error))) - 1, 0)
    if bits >= np.finfo(values.dtype).nmant:
        return values
    rounded = np.asarray(BitRound(bits).encode(values)).view(values.dtype).reshape(values.shape)
    is_normal = np.isfinite(values) & (np.abs(values) >= np.finfo(values.dtype).tiny)
    return np.where(is_normal & np.isfinite(rounded), rounded, values)


def plain(value: Any) -> Any:
    """Attributes as JSON has them: numpy scalars and arrays become numbers and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise StoreError(f"an attribute cannot be a {type(value).__name__}: {value!r}")


def damaged(artifact: str, contents: Contents, file: str) -> StoreError:
    """The error for a file that cannot be trusted.

    Its stamp is made another one, because rot has left it alone: so the next refresh, which reads
    no file that looks as it was published, looks into this one.
    """
    if not contents.is_kept():
        number = contents.address.rpartition("/")[2]
        return StoreError(
            f"{artifact}: version {number} was removed while it was open; open the current "
            f"one again, or raise `keep_versions`"
        )
    seen = "is damaged (it is not what was published)" if contents.has(file) else "is missing"
    contents.doubt(file)
    return StoreError(
        f"{artifact}: {contents.address}/{file} {seen}; refresh the artifact to have it computed "
        "again, or read an older version"
    )
