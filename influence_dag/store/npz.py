"""Small arrays in one file, as `np.savez` writes and `np.load` reads it, in a tenth of their time.

Each version of each artifact has one, which every refresh reads. Only what is written here is read:
plain arrays in C order, not compressed, in a file whose checksum was looked at.
"""

import ast
import io
import struct
import zipfile
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_ENDING = ".npy"
_BEGINS = npy.magic(1, 0)
_LOCAL_HEADER = 30  # bytes of the header before an entry, to which its name and more is added
_LENGTHS = 26  # where in it the lengths of these are


def packed(arrays: Mapping[str, NDArray]) -> bytes:
    """The file's content; the same arrays are the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, values in arrays.items():
            header = _header(values.dtype.str, values.shape)
            file.writestr(zipfile.ZipInfo(f"{name}{_ENDING}"), header + values.tobytes())
    return content.getvalue()


def unpacked(content: bytes) -> dict[str, NDArray]:
    """The arrays, which are not to be written into; a `ValueError` for what is no such file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            entries = file.infolist()
        return {each.filename.removesuffix(_ENDING): _array(content, each) for each in entries}
    except (zipfile.BadZipFile, struct.error, SyntaxError, KeyError) as error:
        raise ValueError("it is no file of arrays") from error


def _array(content: bytes, entry: zipfile.ZipInfo) -> NDArray:
    lengths = struct.unpack_from("<HH", content, entry.header_offset + _LENGTHS)
    start = entry.header_offset + _LOCAL_HEADER + sum(lengths)
    (size,) = struct.unpack_from("<H", content, start + len(_BEGINS))
    after = start + len(_BEGINS) + 2 + size
    dtype, shape = _described(content[start:after])
    count = (start + entry.file_size - after) // dtype.itemsize
    return np.frombuffer(content, dtype, count, after).reshape(shape)


@lru_cache(maxsize=1024)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue()


@lru_cache(maxsize=1024)
def _described(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """What a header says of an array's numbers; a `ValueError` where they are kept otherwise."""
    if not header.startswith(_BEGINS):
        raise ValueError("an array in it is of another version of the format")
    said = ast.literal_eval(header[len(_BEGINS) + 2 :].decode("latin1"))
    if said["fortran_order"]:
        raise ValueError("an array in it is not in C order")
    return np.dtype(said["descr"]), said["shape"]
