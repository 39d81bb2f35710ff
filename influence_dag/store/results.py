"""Small things that come out of a computation and are kept with it: solver info, spectra, files."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


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
