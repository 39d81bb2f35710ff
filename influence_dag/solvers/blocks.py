"""Block-diagonal curvature: one solve for each group of parameters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influence_dag.curvature.operators import Curvature, DenseCurvature
from influence_dag.solvers.base import (
    Factorization,
    Method,
    Solution,
    carried_on,
    relative,
    residuals,
)
from influence_dag.solvers.rounding import lengths_of
from influence_dag.solvers.settings import checked_damping

Blocks = Literal["full", "layer"] | Sequence[Sequence[str]]

_COLUMNS = 256


@dataclass(frozen=True, eq=False)
class Restricted:
    """A curvature on some of its parameters, the others held fixed: $H[index, index]$."""

    curvature: Curvature
    index: Int[Tensor, " q"]

    @property
    def size(self) -> int:
        return len(self.index)

    @property
    def dtype(self) -> torch.dtype:
        return self.curvature.dtype

    @property
    def device(self) -> torch.device:
        return self.curvature.device

    def apply(self, vectors: Float[Tensor, "k q"]) -> Float[Tensor, "k q"]:
        """Products of the whole curvature with padded vectors, cut out."""
        padded = vectors.new_zeros(len(vectors), self.curvature.size)
        padded[:, self.index] = vectors
        return self.curvature.apply(padded)[:, self.index]

    def dense(self) -> Float[Tensor, "q q"]:
        """From one product a parameter of the block: the whole matrix never has to exist."""
        if isinstance(self.curvature, DenseCurvature):
            return self.curvature.matrix[self.index[:, None], self.index]
        unit = torch.eye(self.size, dtype=self.dtype, device=self.device)
        matrix = torch.cat([self.apply(rows) for rows in unit.split(_COLUMNS)])
        return (matrix + matrix.T) / 2


def parameter_blocks(
    slices: Mapping[str, slice], blocks: Blocks = "full"
) -> dict[str, Int[Tensor, " q"]]:
    """Positions in the parameter vector of each block, by name.

    `"full"` is one block of all parameters, `"layer"` one for each module that has any (named like
    it, the network itself `""`), lists of parameter names, or names alone, one block each (`"0",
    "1", …`); names left out of every list are an error. `slices` says where each named parameter
    lies (`Objective.slices`).

    >>> parameter_blocks({"0.weight": slice(0, 2), "0.bias": slice(2, 3)}, "layer")
    {'0': tensor([0, 1, 2])}
    """
    groups = _groups(list(slices), blocks)
    return {
        group: torch.cat([torch.arange(slices[n].start, slices[n].stop) for n in names])
        for group, names in groups.items()
    }


def _groups(names: list[str], blocks: Blocks) -> dict[str, list[str]]:
    if blocks == "full":
        return {"full": names}
    if blocks == "layer":
        layers: dict[str, list[str]] = {}
        for name in names:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        return layers
    if isinstance(blocks, str) or not isinstance(blocks, Iterable):
        raise ValueError(f"blocks={blocks!r} is unknown; use full, layer or lists of names")
    groups = [[group] if isinstance(group, str) else list(group) for group in blocks]
    _check_cover(groups, names)
    return {str(i): group for i, group in enumerate(groups)}


def _check_cover(groups: list[list[str]], names: list[str]) -> None:
    listed = [name for group in groups for name in group]
    problems = {
        "without any": [f"block {i}" for i, group in enumerate(groups) if not group],
        "unknown": [name for name in listed if name not in names],
        "listed twice": sorted({name for name in listed if listed.count(name) > 1}),
        "in no block": [name for name in names if name not in listed],
    }
    told = "; ".join(f"{what}: {', '.join(which)}" for what, which in problems.items() if which)
    if told:
        raise ValueError(f"blocks have to hold each parameter once ({told})")


@dataclass(frozen=True, eq=False, kw_only=True)
class Blockwise:
    r"""A method on each diagonal block of H, what couples the blocks left out.

    `blocks` are positions in the parameter vector by name (`parameter_blocks`); `dampings` replaces
    the damping of the solve for the blocks that it names. $x$ is the blocks' answers side by
    side, so influences are the sum of the blocks' own (`split_by_block`).
    """

    method: Method
    blocks: Mapping[str, Int[Tensor, " q"]]
    dampings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.dampings) - set(self.blocks))
        if unknown:
            raise ValueError(
                f"dampings names {', '.join(unknown)}; the blocks are {', '.join(self.blocks)}"
            )
        for name, value in self.dampings.items():
            checked_damping(value, f"the damping of block {name}")

    def factorize(self, curvature: Curvature) -> "BlockFactorization":
        """Raises `ValueError` for blocks that do not hold each parameter once."""
        held = torch.cat([index.cpu() for index in self.blocks.values()])
        times = torch.bincount(held, minlength=curvature.size)
        if len(times) != curvature.size or bool((times != 1).any()):
            raise ValueError(
                f"the blocks hold {len(held.unique())} of the curvature's {curvature.size} "
                f"parameters, by {len(held)} positions; they have to hold each once, as those of "
                "parameter_blocks do"
            )
        return BlockFactorization(
            {
                name: self.method.factorize(self.restricted(curvature, index))
                for name, index in self.blocks.items()
            },
            self,
        )

    def restore(
        self, tensors: Mapping[str, Tensor], curvature: Curvature | None
    ) -> "BlockFactorization":
        def of_block(name: str) -> dict[str, Tensor]:
            keys = [key for key in tensors if self.owner(key) == name]
            return {key.removeprefix(f"{name}."): tensors[key] for key in keys}

        return BlockFactorization(
            {
                name: self.method.restore(
                    of_block(name), curvature and self.restricted(curvature, index)
                )
                for name, index in self.blocks.items()
            },
            self,
        )

    def owner(self, key: str) -> str:
        """The block of a stored tensor: of "net.0.rows" "net.0" if there is one, else "net"."""
        return max((name for name in self.blocks if key.startswith(f"{name}.")), key=len)

    def restricted(self, curvature: Curvature, index: Tensor) -> Restricted:
        """The curvature on a block's parameters."""
        return Restricted(curvature, index.to(curvature.device))

    def damping_of(self, block: str, damping: float) -> float:
        """λ of a block in a solve with this damping."""
        return self.dampings.get(block, damping)


@dataclass(frozen=True, eq=False)
class BlockFactorization:
    """One factorisation a block; its tensors are named `block.tensor`."""

    parts: Mapping[str, Factorization]
    settings: Blockwise

    def tensors(self) -> dict[str, Tensor]:
        """Raises `ValueError` where one would be read as another block's."""
        named = {}
        for block, part in self.parts.items():
            for name, tensor in part.tensors().items():
                named[key := f"{block}.{name}"] = tensor
                if (other := self.settings.owner(key)) != block:
                    raise ValueError(
                        f"the tensor {key!r} of block {block!r} would be read as one of block "
                        f"{other!r}: list the blocks' parameters (blocks: [[…], […]]), whose names "
                        "are numbers then"
                    )
        return named

    @property
    def info(self) -> dict[str, Any]:
        """What is known before any solve, by block."""
        return {
            f"{block}.{key}": value
            for block, part in self.parts.items()
            for key, value in getattr(part, "info", {}).items()
        }

    def solve(
        self, rhs: Float[Tensor, "k p"], *, damping: float, x0: Float[Tensor, "#k p"] | None = None
    ) -> Solution:
        """Solve block by block; info keys are `block.key`. Raises what the method raises.

        What iterative methods tell of each row is told of the blocks together as well: the most
        `niter`, whether all are `converged`, and the relative `residual` of the whole row.
        """
        x, info, lengths = torch.zeros_like(rhs), {}, {}
        for block, part in self.parts.items():
            index = self.settings.blocks[block].to(rhs.device)
            solution = part.solve(
                rhs[:, index],
                damping=self.settings.damping_of(block, damping),
                x0=None if x0 is None else x0.to(rhs)[..., index],
            )
            x[:, index], lengths[block] = solution.x, lengths_of(rhs[:, index])
            info |= {f"{block}.{key}": value for key, value in solution.info.items()}
        return Solution(x, info | _of_whole_rows(info, lengths))

    def residuals(
        self,
        curvature: Curvature,
        x: Float[Tensor, "k p"],
        rhs: Float[Tensor, "k p"],
        damping: float,
    ) -> Float[Tensor, " k"]:
        r"""$\lVert (H_B + \lambda_B) x - b \rVert / \lVert b \rVert$ with H's blocks alone."""
        parts, lengths = {}, {}
        for block, index in self.settings.blocks.items():
            part, index = self.settings.restricted(curvature, index), index.to(rhs.device)
            b, lam = rhs[:, index], self.settings.damping_of(block, damping)
            parts[f"{block}.residual"] = residuals(part, x[:, index], b, damping=lam)
            lengths[block] = lengths_of(b)
        return _of_whole_rows(parts, lengths)["residual"]


_TOGETHER: dict[str, Callable[[Tensor], Tensor]] = {
    "niter": lambda each: each.amax(dim=0),
    "converged": lambda each: each.all(dim=0),
    "max_perc_residual": lambda each: each.amax(dim=0),
}


def _of_whole_rows(info: Mapping[str, Any], lengths: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is told of every block's part of a row, told of the row; `lengths` are ‖b‖ by block.

    These in float64, in which squares of short and long rows are numbers.
    """

    def each(key: str) -> list[Tensor]:
        return [info[name] for block in lengths if (name := f"{block}.{key}") in info]

    whole = {key: join(torch.stack(each(key))) for key, join in _TOGETHER.items() if each(key)}
    norms = torch.stack(list(lengths.values()))
    if shares := each("residual"):
        residual = relative((torch.stack(shares) * norms).norm(dim=0), norms.T)
        whole["residual"] = residual.to(shares[0].dtype)
    if histories := each("residual_history"):
        steps = max(history.shape[1] for history in histories)
        shares = torch.stack([carried_on(history, steps) for history in histories])
        curve = relative((shares * norms[..., None]).norm(dim=0), norms.T).to(shares.dtype)
        late = torch.arange(steps, device=curve.device) >= whole["niter"][:, None]
        whole["residual_history"] = curve.masked_fill(late, torch.nan)
    return whole


def split_by_block(
    x: Float[Tensor, "k p"], blocks: Mapping[str, Int[Tensor, " q"]]
) -> dict[str, Float[Tensor, "k p"]]:
    """Parts of x that add up to it, each zero outside its block."""
    parts = {name: torch.zeros_like(x) for name in blocks}
    for name, index in blocks.items():
        parts[name][:, index.to(x.device)] = x[:, index.to(x.device)]
    return parts
