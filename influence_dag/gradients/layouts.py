"""How per-sample gradients are kept: which layers as pairs, which parameters dense. No torch.

A plan needs to know no more of them: it is made without a tensor.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any


def joined(*names: str) -> str:
    """A dotted name; the module itself has an empty one, which leaves no dot."""
    return ".".join(name for name in names if name)


@dataclass(frozen=True)
class LinearLayout:
    """How one layer's pairs are kept: places in θ as (start, stop), widths, positions (0: none)."""

    name: str
    weight: tuple[int, int]
    bias: tuple[int, int] | None
    d_in: int
    d_out: int
    positions: int = 0
    transposed: bool = False

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        positions = (self.positions,) if self.positions else ()
        return {
            joined(self.name, "activations"): (*positions, self.d_in),
            joined(self.name, "output_gradients"): (*positions, self.d_out),
        }


@dataclass(frozen=True)
class DenseLayout:
    """A parameter kept dense; `layer` is the captured layer it is formed from, if any.

    `transposed`: a captured layer's weight is (inputs, outputs).
    """

    name: str
    start: int
    stop: int
    layer: str | None = None
    transposed: bool = False

    @property
    def is_bias(self) -> bool:
        """Of a captured layer's two parameters."""
        return self.name.endswith("bias")

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        return {joined(self.name, "dense"): (self.stop - self.start,)}


@dataclass(frozen=True)
class GradientLayout:
    """Which layers are kept as pairs and which parameters dense; `size` is p."""

    blocks: tuple[LinearLayout | DenseLayout, ...]
    size: int

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each stored tensor."""
        return {name: shape for block in self.blocks for name, shape in block.row_shapes.items()}

    @property
    def numbers_per_row(self) -> int:
        """How many numbers are kept of one row: at most p, of wide layers far fewer."""
        return sum(math.prod(shape) for shape in self.row_shapes.values())

    def to_json(self) -> dict[str, Any]:
        blocks = [{"kind": type(block).__name__, **asdict(block)} for block in self.blocks]
        return {"size": self.size, "blocks": blocks}

    @classmethod
    def from_json(cls, json: dict[str, Any]) -> "GradientLayout":
        return cls(tuple(_block_from_json(block) for block in json["blocks"]), json["size"])


def _block_from_json(json: dict[str, Any]) -> LinearLayout | DenseLayout:
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.items()
        if name != "kind"
    }
    return {"LinearLayout": LinearLayout, "DenseLayout": DenseLayout}[json["kind"]](**fields)
