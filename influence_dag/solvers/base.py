"""A solver: settings, then a factorisation that is plain tensors, then many cheap solves."""

import math
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pkgutil import resolve_name
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from influence_dag.curvature.operators import Curvature

_TALL = 4  # times as many numbers as there are random rows
_KEPT_NUMBERS = 2**20  # of random rows, for who asks for the same again


@dataclass(frozen=True, eq=False)
class LowRank:
    r"""Rows $x = c \, b + Y V^\top$: what products with many vectors are cheaper by."""

    share: float  # c, the same for all rows; 0 where what V leaves out is dropped
    coordinates: Float[Tensor, "k rank"]
    eigenvectors: Float[Tensor, "p rank"]

    def of(self, rhs: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """The rows, written out."""
        inside = self.coordinates @ self.eigenvectors.T
        return inside.add_(rhs, alpha=self.share) if self.share else inside


@dataclass(frozen=True, eq=False)
class Solution:
    r"""Rows `x` with $(H + \lambda I)\, x = b$, and what is known about them.

    Entries of `info` that belong to single rows are tensors with leading axis `k`.
    """

    x: Float[Tensor, "k p"]
    info: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Factorization(Protocol):
    """The expensive part of a solve; the damping arrives afterwards."""

    def tensors(self) -> dict[str, Tensor]:
        """Named plain tensors: all that has to be stored."""
        ...

    def solve(
        self, rhs: Float[Tensor, "k p"], *, damping: float, x0: Float[Tensor, "#k p"] | None = None
    ) -> Solution:
        r"""Rows $(H + \lambda I)^{-1} b$ in the dtype of `rhs`; iterative methods start at `x0`."""
        ...


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of settings that knows how to factorise a curvature."""

    def factorize(self, curvature: Curvature) -> Factorization: ...

    def restore(self, tensors: Mapping[str, Tensor], curvature: Curvature | None) -> Factorization:
        """The inverse of `Factorization.tensors`; iterative methods need the curvature again."""
        ...


class _Methods(UserDict[str, Any]):
    """Classes, those of this package named as `module:class` and imported when they are asked."""

    def __getitem__(self, name: str) -> type[Any]:
        found = super().__getitem__(name)
        return resolve_name(f"influence_dag.solvers.{found}") if isinstance(found, str) else found


METHODS = _Methods(
    direct="direct:Direct",
    cg="cg:ConjugateGradient",
    lissa="lissa:LiSSA",
    arnoldi="arnoldi:Arnoldi",
    nystroem="nystroem:Nystroem",
    ekfac="ekfac:EKFAC",
    kfac="ekfac:KFAC",
    identity="identity:Identity",
)
"""By the names that studies and the façade have for them."""
_Class = TypeVar("_Class", bound=type)


def register(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: makes a method available under its name in studies and in the façade."""

    def add(method: _Class) -> _Class:
        METHODS[name] = method
        return method

    return add


def build(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method called `name` with these settings.

    Raises `ValueError` for a name that is not in `METHODS`, `TypeError` for an unknown setting;
    both say what is accepted.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; the methods are {', '.join(sorted(METHODS))}")
    accepted = [setting.name for setting in fields(METHODS[name])]
    unknown = sorted(set(settings or {}) - set(accepted))
    if unknown:
        raise TypeError(
            f"method {name!r} has no setting {', '.join(map(repr, unknown))}; "
            f"it accepts {', '.join(accepted) or 'none'}"
        )
    return METHODS[name](**(settings or {}))


def needed(curvature: Curvature | None, method: str) -> Curvature:
    """The curvature, or `ValueError` when an iterative method is restored without one."""
    if curvature is None:
        raise ValueError(
            f"{method} multiplies with the curvature at every step: give it to restore()"
        )
    return curvature


def residuals(
    curvature: Curvature,
    x: Float[Tensor, "k p"],
    rhs: Float[Tensor, "k p"],
    *,
    damping: float,
) -> Float[Tensor, " k"]:
    r"""$\lVert (H + \lambda I) x - b \rVert / \lVert b \rVert$ of each row (0 where $b = 0$)."""
    rhs, size = of_unit_size(rhs)
    x = x / size.to(x)
    return relative(curvature.apply(x).add_(x, alpha=damping).sub_(rhs).norm(dim=1), rhs)


def of_unit_size(rows: Float[Tensor, "k p"]) -> tuple[Float[Tensor, "k p"], Float[Tensor, "k 1"]]:
    """The rows over a power of two each, and these: largest entries are then from 1 to 2.

    That is exact, and squares of their entries neither vanish (as of the gradients of a test row
    that a float32 model is sure of) nor overflow. Zeros stay as they are.
    """
    largest = rows.abs().amax(dim=1, keepdim=True)
    exponent = torch.frexp(largest).exponent - 1
    least = math.frexp(torch.finfo(rows.dtype).tiny)[1] - 1
    size = torch.ldexp(torch.ones_like(largest), exponent.clamp(min=least))
    size = torch.where((largest > 0) & largest.isfinite(), size, 1.0)
    return rows / size, size


def start_of(
    x0: Float[Tensor, "#k p"], rhs: Float[Tensor, "k p"], size: Float[Tensor, "k 1"]
) -> Float[Tensor, "k p"]:
    """Where rows over `size` begin; those of b = 0 at their answer, of which no share is small.

    So do those whose start is the answer to rows so much longer that squares would overflow.
    """
    x = torch.where(rhs.any(dim=1, keepdim=True), x0.to(rhs) / size, 0)
    held = x.abs().amax(dim=1, keepdim=True) <= torch.finfo(x.dtype).max ** (1 / 3)
    return torch.where(held, x, 0)


def is_nearer(residual: Float[Tensor, "k p"], rhs: Float[Tensor, "k p"]) -> Bool[Tensor, "k 1"]:
    """Which rows have a start with this residual that leaves no more of b than zero does."""
    return residual.norm(dim=1, keepdim=True) <= rhs.norm(dim=1, keepdim=True)


def relative(residual: Float[Tensor, "k ..."], rhs: Float[Tensor, "k p"]) -> Float[Tensor, "k ..."]:
    """Norms of residuals, divided by those of the right-hand sides; 0 stays 0."""
    length = rhs.norm(dim=1)[(...,) + (None,) * (residual.ndim - 1)]
    return torch.where(residual == 0, residual, residual / length)


def carried_on(history: Float[Tensor, "k _"], steps: int) -> Float[Tensor, "k steps"]:
    """A residual by iteration, after the row has stopped the one that it stopped with."""
    padded = torch.nn.functional.pad(history, (0, steps - history.shape[1]), value=torch.nan)
    position = torch.arange(steps, device=history.device).expand_as(padded)
    last = position.masked_fill(padded.isnan(), 0).cummax(dim=1).values if steps else position
    return padded.gather(1, last).nan_to_num()


def random_rows(
    rows: int, size: int, *, seed: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "rows size"]:
    """Orthonormal rows, uniformly distributed; the same for a seed on every device and dtype.

    Drawing a hundred takes as long as a third of their products with the Hessian of a small
    network, so the last ones of a process are kept where they are small.
    """
    if rows * size > _KEPT_NUMBERS:
        return _orthonormal(rows, size, seed).to(device, dtype)
    return _kept_orthonormal(rows, size, seed, dtype).to(device, copy=True)


@lru_cache(maxsize=2)
def _kept_orthonormal(
    rows: int, size: int, seed: int, dtype: torch.dtype
) -> Float[Tensor, "rows size"]:
    return _orthonormal(rows, size, seed).to(dtype)


def _orthonormal(rows: int, size: int, seed: int) -> Float[Tensor, "rows size"]:
    """In float64, on the processor."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(size, rows, generator=generator, dtype=torch.float64)
    if size < _TALL * rows:
        return torch.linalg.qr(gaussian).Q.T.contiguous()
    # By Cholesky, half the time: columns so many times as long as they are many have a condition
    # of (√size + √rows) / (√size - √rows), 3 at most, and lose no digit.
    triangle = torch.linalg.cholesky(gaussian.T @ gaussian)
    inverse = torch.linalg.solve_triangular(triangle, torch.eye(rows).double(), upper=False)
    return inverse @ gaussian.T
