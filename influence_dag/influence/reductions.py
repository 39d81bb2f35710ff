r"""Perturbation influences $P_{jif}$ reduced where they are computed, block after block.

Only what is left travels from the device: a number a pair, a map a training row, the strongest
pairs of a test row.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influence_dag.study.groups import By

_FEW = 1024  # numbers that can be added in float32
_SMALL = 1e-15  # root mean square below which squares are among the smallest float32 numbers


def over_features(values: Float[Tensor, "k n *features"], by: By) -> Float[Tensor, "k n"]:
    r"""Of each pair, $\frac1F \sum_f P_f$, $\max_f |P_f|$ or $\sqrt{\sum_f P_f^2}$.

    >>> over_features(torch.tensor([[[3.0, -4.0]]]), "l2")
    tensor([[5.]])
    """
    flat = values.reshape(*values.shape[:2], -1)
    if by == "mean":
        return flat.mean(dim=2)
    if by == "absmax":
        return flat.abs().amax(dim=2)
    return _norms(flat)


def _norms(flat: Float[Tensor, "k n f"]) -> Float[Tensor, "k n"]:
    """In float32 a sixth of the time of float64, which is left to pairs whose squares it loses."""
    features = flat.shape[2]
    if flat.dtype != torch.float32 or flat.device.type != "cpu" or features > _FEW:
        return lengths([flat]).to(flat.dtype)
    found = torch.linalg.vector_norm(flat, dim=2)
    lost = ~(found.isfinite() & (found > _SMALL * features**0.5))
    if lost.any():
        found[lost] = torch.linalg.vector_norm(flat[lost], dim=1, dtype=torch.float64).float()
    return found


def lengths(parts: Sequence[Float[Tensor, "k n ..."]]) -> Float[Tensor, "k n"]:
    """The Euclidean norm of each pair over all parts, in float64: squares overflow in less."""
    flat = (part.reshape(*part.shape[:2], -1) for part in parts)
    norms = [torch.linalg.vector_norm(part, dim=2, dtype=torch.float64) for part in flat]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


class OverTests:
    r"""$\max_j |P_j|$ or $\sqrt{\sum_j P_j^2}$ of blocks of test rows that come one after another.

    A mean needs no blocks: P is linear in the factors, so it is P of the mean factor.
    """

    def __init__(self, by: Literal["absmax", "l2"]):
        self.by: Literal["absmax", "l2"] = by
        self._kept: Tensor | None = None

    def add(self, values: Float[Tensor, "k n *features"]) -> None:
        if self.by == "absmax":
            new, joined = values.abs().amax(dim=0), torch.maximum
        else:
            new = torch.linalg.vector_norm(values, dim=0, dtype=torch.float64)
            joined = torch.hypot
        self._kept = new if self._kept is None else joined(self._kept, new)

    def result(self) -> Float[Tensor, " n *features"]:
        assert self._kept is not None
        return self._kept


class StrongestPairs:
    """Of each test row the `top` training rows with the longest P, of blocks of rows in order.

    Longest first; of equal ones the earlier row. Several inputs are ranked by the norm over all.
    """

    def __init__(self, top: int):
        self.top = top
        self._norms: Tensor | None = None
        self.slots: Int[Tensor, "k rank"] = torch.empty(0)
        self.parts: list[Float[Tensor, "k rank ..."]] = []

    def add(self, parts: Sequence[Float[Tensor, "k n ..."]], slots: Int[Tensor, " n"]) -> None:
        norms = lengths(parts)
        self._keep(norms, slots.expand(len(norms), -1), parts)

    def _keep(self, norms: Tensor, slots: Tensor, parts: Sequence[Tensor]) -> None:
        order = norms.sort(dim=1, descending=True, stable=True).indices[:, : self.top]
        lines = torch.arange(len(order), device=order.device).unsqueeze(1)
        norms, slots = norms.gather(1, order), slots.gather(1, order)
        found = [part[lines, order] for part in parts]  # few, before they join those kept
        if self._norms is not None:
            kept, self._norms = self._norms, None
            joined = zip(self.parts, found, strict=True)
            both = [torch.cat(pair, dim=1) for pair in joined]
            self._keep(torch.cat([kept, norms], 1), torch.cat([self.slots, slots], 1), both)
            return
        self._norms, self.slots, self.parts = norms, slots, found
