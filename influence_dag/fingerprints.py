r"""Fingerprints: what decides whether something stored is still right.

Everything stored is a pure function of what it was computed from, so two things are the same when
the hashes of what they were computed from are the same. Values are encoded canonically (a tag, a
length, the bytes; mappings sorted; numbers little-endian) and hashed with BLAKE2b to 128 bits:
among $10^{12}$ blocks the chance of any collision is below $10^{-14}$.
"""

import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
"""Length of a key; a key of zeros means "never computed" and is not produced by hashing."""

Keys = NDArray[np.uint8]
Add = Callable[[bytes], None]


def fingerprint(*parts: object) -> str:
    """32 hexadecimal digits that stand for the parts, in this order.

    Parts are `None`, `bool`, `int`, `float`, `str`, `bytes`, arrays, and lists, tuples or
    dictionaries (keys are strings, order does not matter) of them; anything else is a `TypeError`,
    because its representation might not mean the same tomorrow.

    >>> fingerprint({"damping": 0.01, "rtol": 1e-6}) == fingerprint({"rtol": 1e-6, "damping": 0.01})
    True
    >>> fingerprint(1) == fingerprint(1.0)
    False
    """
    digest = blake2b(digest_size=KEY_BYTES)
    _encode(parts, digest.update)
    return digest.hexdigest()


def row_fingerprints(columns: Mapping[str, NDArray]) -> Keys:
    """One key a row, shape `(n, 16)`, of columns whose leading axis is the row.

    A key depends on the columns' names, dtypes, row shapes and on this row's values alone: not on
    its position, nor on the other rows. Strings are compared as text whatever their numpy type.

    >>> row_fingerprints({"x": np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])}).shape
    (3, 16)
    """
    arrays = {name: np.asarray(columns[name]) for name in sorted(columns)}
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) != 1:
        found = {name: len(array) for name, array in arrays.items()}
        raise ValueError(f"columns of one table have one length, got {found}")
    schema = [(name, _type_name(array), array.shape[1:]) for name, array in arrays.items()]
    start = blake2b(digest_size=KEY_BYTES)
    _encode(schema, start.update)
    digests = bytearray()
    for row in _joined_rows(list(arrays.values())):
        digest = start.copy()
        digest.update(row)
        digests += digest.digest()
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, KEY_BYTES)


def chunk_keys(row_keys: Keys, chunk: int) -> Keys:
    """One key for each run of `chunk` rows: `(n, 16)` → `(ceil(n / chunk), 16)`.

    The last run's key depends on how many rows it has, so appending changes it.
    """
    runs = range(0, len(row_keys), chunk)
    return as_keys([fingerprint(row_keys[start : start + chunk]) for start in runs])


def grid_keys(prefix: str, *axes: Keys) -> Keys:
    """Keys of a grid of blocks: `(n, 16)`, `(m, 16)` → `(n, m, 16)`.

    `prefix` is the fingerprint of what all blocks share (formula version, method and settings,
    model); each axis contributes the key of what the block reads along it.
    """
    start = blake2b(prefix.encode(), digest_size=KEY_BYTES)
    digests = bytearray()
    for parts in itertools.product(*([key.tobytes() for key in axis] for axis in axes)):
        digest = start.copy()
        digest.update(b"".join(parts))
        digests += digest.digest()
    shape = (*(len(axis) for axis in axes), KEY_BYTES)
    return np.frombuffer(bytes(digests), np.uint8).reshape(shape)


def as_keys(fingerprints: Sequence[str]) -> Keys:
    """Keys `(n, 16)` from fingerprints as text."""
    digits = b"".join(map(bytes.fromhex, fingerprints))
    return np.frombuffer(digits, np.uint8).reshape(-1, KEY_BYTES)


def _encode(value: object, add: Add) -> None:
    """Hand on the value's canonical bytes, piece by piece; what is commonest is asked first."""
    if isinstance(value, str):
        add(_tagged(b"s", _bytes(value)))
    elif isinstance(value, list | tuple):
        add(b"l%d:" % len(value))
        for item in value:
            _encode(item, add)
    elif isinstance(value, dict | Mapping):  # a dict is known at once
        _encode_mapping(value, add)
    elif value is None or isinstance(value, bool):
        add(_tagged(b"c", repr(value).encode()))
    elif isinstance(value, int):
        add(_tagged(b"i", str(value).encode()))
    elif isinstance(value, float):
        add(_tagged(b"f", struct.pack("<d", value)))
    elif isinstance(value, np.ndarray):
        _encode_array(value, add)
    elif isinstance(value, bytes):
        add(_tagged(b"b", value))
    else:
        raise TypeError(
            f"cannot fingerprint a {type(value).__name__}: {value!r}; "
            "give None, bool, int, float, str, bytes, arrays, or lists and dictionaries of them"
        )


def _encode_mapping(value: Mapping, add: Add) -> None:
    if unnamed := [key for key in value if not isinstance(key, str)]:
        raise TypeError(f"keys of a fingerprinted dictionary are strings, got {unnamed[0]!r}")
    add(b"d%d:" % len(value))
    for key in sorted(value):
        add(_tagged(b"s", _bytes(key)))
        _encode(value[key], add)


def _encode_array(array: NDArray, add: Add) -> None:
    add(_tagged(b"a", f"{_type_name(array)}{array.shape}".encode()))
    if _is_text(array):
        _encode_texts(array.ravel().tolist(), add)
    else:
        add(_little_endian(array).tobytes())


def _encode_texts(texts: list, add: Add) -> None:
    """How long each text is, and all of them: one pass a step, not one a text."""
    try:
        joined = "".join(texts)
    except TypeError:
        _text(next(text for text in texts if not isinstance(text, str)))
        raise
    add(_tagged(b"n", np.fromiter(map(len, texts), "<i8", len(texts)).tobytes()))
    add(_bytes(joined))


def _joined_rows(columns: list[NDArray]) -> Iterator[bytes | memoryview]:
    """Each row's canonical bytes, column after column."""
    if any(_is_text(each) or not each.size for each in columns):
        yield from map(b"".join, zip(*map(_rows_as_bytes, columns), strict=True))
        return
    n = len(columns[0])
    flat = [
        np.ascontiguousarray(_little_endian(each)).reshape(n, -1).view(np.uint8) for each in columns
    ]
    table = np.concatenate(flat, axis=1)
    rows, size = memoryview(table.tobytes()), table.shape[1]
    for start in range(0, n * size, size):
        yield rows[start : start + size]


def _rows_as_bytes(array: NDArray) -> Iterator[bytes]:
    """Each row's canonical bytes; one `memoryview` slice a row for numbers."""
    if _is_text(array):
        for row in array.reshape(len(array), -1).tolist():
            yield b"".join(map(_text, row))
        return
    flat = _little_endian(array).tobytes()
    size = len(flat) // max(len(array), 1)
    for position in range(len(array)):
        yield flat[position * size : (position + 1) * size]


def _is_text(array: NDArray) -> bool:
    return array.dtype.kind in "UTO"


def _type_name(array: NDArray) -> str:
    if _is_text(array):
        return "text"
    if array.dtype.kind not in "biufcSMm":
        raise TypeError(f"cannot fingerprint an array of {array.dtype}; give numbers or strings")
    return array.dtype.newbyteorder("<").str


def _little_endian(array: NDArray) -> NDArray:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _text(value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError(
            f"cannot fingerprint an array that holds a {type(value).__name__}: {value!r}"
        )
    return _tagged(b"s", _bytes(value))


def _bytes(text: str) -> bytes:
    """In UTF-8, names of files that are no text too: who reads them says so."""
    return text.encode(errors="surrogatepass")


def _tagged(tag: bytes, payload: bytes) -> bytes:
    return tag + b"%d:" % len(payload) + payload
