"""JSON that begins with its own checksum, as a version's manifest; what that says of its arrays."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from influence_dag.store.arrays import crc32c
from influence_dag.store.layout import Variable

MANIFEST = "manifest.json"
BLOCKS = "blocks.npz"
FORMAT = 4  # of the bookkeeping and of the chunks' names
UNKNOWN = -1  # of a chunk that an interrupted run wrote: its file ends in its checksum
KEYS, STAMPS = "keys", "files"  # of each variable's chunks, in that file


def sealed(value: Mapping[str, Any]) -> bytes:
    """A manifest, or an entry of a journal, as JSON that begins with its own checksum."""
    content = json.dumps(value)
    return f'{{"crc32c": {crc32c(content.encode())}, {content[1:]}'.encode()


def unsealed(content: bytes) -> dict[str, Any]:
    """What was `sealed`; a `ValueError` for anything else.

    A manifest without a checksum is of an earlier format, if it says so.
    """
    try:
        manifest = json.loads(content)
    except RecursionError as error:
        raise ValueError("lists within lists without an end") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"a manifest is a JSON object, not a {type(manifest).__name__}")
    known = manifest.pop("crc32c", None)
    earlier = known is None and manifest.get("format") in range(1, FORMAT)
    if not (earlier or _is_as_sealed(content, known) or known == _checksum(manifest)):
        raise ValueError("its checksum does not match")
    return manifest


def _is_as_sealed(content: bytes, known: object) -> bool:
    """Whether these are the bytes that were `sealed`; other ones may say the same still."""
    begins = f'{{"crc32c": {known}, '.encode()
    return content.startswith(begins) and known == crc32c(b"{" + content[len(begins) :])


def _checksum(manifest: dict[str, Any]) -> int:
    return crc32c(json.dumps(manifest).encode())


def stored_variable(name: str, stored: dict[str, Any]) -> Variable:
    """A variable as a manifest describes it."""
    encoding = stored["encoding"]
    return Variable(
        name,
        dims=tuple(encoding["dims"]),
        shape=tuple(stored["shape"]),
        dtype=encoding["dtype"],
        chunks=tuple(encoding["chunks"]),
        max_relative_error=encoding["max_relative_error"],
    )


@dataclass
class Results:
    """What was set beside the planned variables: arrays (name → dims), attributes, added files."""

    arrays: dict[str, list[str]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def with_newer(self, newer: "Results") -> "Results":
        """These results, replaced by newer ones where both have a name."""
        kept = [name for name in self.files if name not in newer.files]
        return Results(self.arrays | newer.arrays, self.attrs | newer.attrs, [*kept, *newer.files])

    def without(self, names: Iterable[str]) -> "Results":
        names = set(names)
        arrays = {name: dims for name, dims in self.arrays.items() if name not in names}
        return Results(arrays, self.attrs, [name for name in self.files if name not in names])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
