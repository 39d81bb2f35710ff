"""The λ of each method's solves, and their axis, which is always there while anything is computed.

What has one λ is stored and shown without the axis, and keyed without it: `stored` and `at` are the
two ways between, and nobody else asks whether a study has one λ or several.
"""

from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from influence_dag.fingerprints import Keys, as_keys, fingerprint, grid_keys
from influence_dag.stages import naming
from influence_dag.stages.wording import wording_of
from influence_dag.store import Coordinate, Layout, Variable, Version

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from influence_dag.stages.workbench import Workbench

DAMPING = "damping"
_ROUNDING = 1e-9  # by which a λ that is computed or typed may be off


def of_method(bench: "Workbench", method: str) -> tuple[float, ...]:
    """One λ or several; an automatic one as it was settled with the method's curvature."""
    if not bench.settings.is_auto_damped:
        return bench.settings.dampings
    return (bench.require(naming.curvature(method)).attrs["automatic_damping"],)


def told(bench: "Workbench", method: str) -> dict[str, str]:
    """Where λ comes from, in words, for attributes; nothing where the study says it."""
    if not bench.settings.is_auto_damped:
        return {}
    return {"damping_reason": bench.require(naming.curvature(method)).attrs["damping_reason"]}


def in_key(bench: "Workbench", method: str) -> str | tuple[float, ...]:
    """What a key that all blocks share says of λ: of several each block's own says it."""
    return "sweep" if len(bench.settings.dampings) > 1 else of_method(bench, method)


class _More(TypedDict, total=False):
    max_relative_error: float
    coordinate: bool


@dataclass(frozen=True)
class DampingAxis:
    """The leading axis of what is computed for each λ of a study, in chunks of one."""

    coordinate: Coordinate

    @classmethod
    def of(cls, bench: "Workbench", method: str) -> "DampingAxis":
        """Of an automatic λ, which is settled later, the axis has a place only."""
        about = {"long_name": wording_of(bench, method).damping_axis}
        values = np.array(bench.settings.dampings or (np.nan,))
        return cls(Coordinate(DAMPING, (DAMPING,), values, about))

    def __len__(self) -> int:
        return len(self.coordinate.values)

    def variable(
        self,
        name: str,
        *axes: tuple[str, int, int],
        dtype: str,
        about: dict[str, str],
        **more: Unpack[_More],
    ) -> Variable:
        """A variable with this axis first; of each axis that follows its name, length and chunk."""
        dims, shape, chunks = zip((DAMPING, len(self), 1), *axes, strict=True)
        return Variable(name, dims, shape, dtype, chunks, about, **more)

    def keys(self, base: str, *axes: Keys) -> Keys:
        """Keys of a grid of blocks that has this axis first; the base is that of a single λ."""
        if len(self) == 1:
            return grid_keys(base, *axes)[None]
        values = self.coordinate.values.tolist()
        return grid_keys(base, as_keys([fingerprint(value) for value in values]), *axes)


def stored(layout: Layout) -> Layout:
    """The layout as it is stored and shown: without the axis where it has one place."""
    if layout.sizes.get(DAMPING) != 1:
        return layout
    return replace(
        layout,
        variables=tuple(map(_without, layout.variables)),
        coordinates=tuple(each for each in layout.coordinates if each.name != DAMPING),
    )


def _without(variable: Variable) -> Variable:
    if DAMPING not in variable.dims:
        return variable
    at = variable.dims.index(DAMPING)

    def rest(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*values[:at], *values[at + 1 :])

    dims, shape, chunks = map(rest, (variable.dims, variable.shape, variable.chunks))
    return replace(variable, dims=dims, shape=shape, chunks=chunks)


def lead(variable: Variable, place: int) -> tuple[slice, ...]:
    """How a region of a stored array begins that is of one λ, by its place; −1 is the last."""
    if variable.dims[0] != DAMPING:
        return ()
    place %= variable.shape[0]
    return (slice(place, place + 1),)


def at(version: Version, name: str, place: int, *region: slice) -> "NDArray[Any]":
    """A stored array, or a region of what follows the axis, at one λ; −1 is the last."""
    begin = lead(version.variables[name], place)
    values = version.read(name, *begin, *region)
    return values[0] if begin else values


def stored_values(version: Version) -> list[float]:
    """The λ of an axis that is stored; none of a single one, which is an attribute."""
    known = version.coordinate(DAMPING).tolist() if DAMPING in version.coordinates else []
    return [float(value) for value in known]


def is_same(stored: Any, asked: Any) -> bool:
    """Whether a stored λ is the one that is asked for; blocks' own and none are no number."""
    are_numbers = isinstance(stored, int | float) and isinstance(asked, Real)
    return are_numbers and bool(np.isclose(stored, float(asked), rtol=_ROUNDING, atol=0.0))
