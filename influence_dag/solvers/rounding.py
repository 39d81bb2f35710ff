"""What rounding leaves of a curvature: which eigenvalues are zero, which b have an answer."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from influence_dag.errors import IndefiniteError
from influence_dag.study.curvatures import rounding_share

_NOISE = 16  # units of rounding, of the longest right-hand side, that any of them may be off
_OUTSIDE = 1e-6, 1e-2  # share of ‖b‖ that may lie outside the range, in float64 and in float32
_LEFT_OUT = 0.05  # share of bᵀ(H + λI)⁻¹b that rounding may leave out


def rounding(dtype: torch.dtype, size: int) -> float:
    """`rounding_share` of a curvature in this precision."""
    return rounding_share(torch.finfo(dtype).eps, size)


def zero_share(asked: float | None, dtype: torch.dtype, size: int) -> float:
    """What is asked to count as zero, 0 too, or else `rounding`."""
    return rounding(dtype, size) if asked is None else asked


def noise(rhs: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
    """How far from what they are meant to be any of these rows may be: rounding of the longest.

    In float64: squares of float32 numbers overflow and vanish.
    """
    return _NOISE * torch.finfo(rhs.dtype).eps * lengths_of(rhs).max()


def lengths_of(rows: Float[Tensor, "k p"]) -> Float[Tensor, " k"]:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def check_in_range(
    outside: Float[Tensor, " k"],
    rhs: Float[Tensor, "k p"],
    eigenvalues: Float[Tensor, " rank"],
    *,
    zeros: int,
    damping: float,
) -> None:
    r"""Raise `IndefiniteError` where $(H + \lambda I)\, x = b$ has no answer.

    `outside` are the lengths of what the rows of `rhs` have along the `zeros` eigenvectors whose
    eigenvalue is zero. A share of 1e-6 (float64) or 1e-2 (float32) of the row is let pass, and so
    is `noise`: the gradient of a row that a model fits almost exactly is a difference of numbers as
    large as those of other rows, and most of it rounding.
    """
    if len(rhs) and not outside.any():
        return
    lengths = lengths_of(rhs)
    allowed = _OUTSIDE[rhs.dtype != torch.float64] * lengths
    bad = outside > torch.maximum(allowed, noise(rhs)) if len(rhs) else outside > 0
    if not zeros or not bad.any():
        return
    worst = (outside / lengths)[bad].max().item()
    which = bad.nonzero()[:, 0].tolist()
    raise _singular(
        f"and {len(which)} of {len(rhs)} right-hand sides (rows {_first(which)}) have up to "
        f"{worst:.1e} of their length along them: no x solves that",
        eigenvalues,
        rhs,
        zeros=zeros,
        damping=damping,
    )


def check_left_out(
    coordinates: Float[Tensor, "k rank"],
    shifted: Float[Tensor, " rank"],
    held: Bool[Tensor, " rank"],
    rhs: Float[Tensor, "k p"],
    *,
    damping: float,
) -> None:
    r"""Raise `IndefiniteError` where what counts as zero decides the answer.

    `coordinates` are those of `rhs` along eigenvectors, of which only those `held` are used. A
    small part of b along an eigenvector of a small eigenvalue can be most of

    $$ b^\top (H + \lambda I)^{-1} b = \sum_i c_i^2 / (\mu_i + \lambda) , $$

    as where columns are of very different sizes. Parts within `noise` count as none.
    """
    if damping <= 0 or bool(held.all()) or not len(rhs):
        return
    real = (coordinates.double().abs() - noise(rhs)).clamp(min=0)
    terms = real.square() / shifted.double().abs().clamp(min=damping)
    left = (terms * ~held).sum(1) / terms.sum(1).clamp(min=torch.finfo(terms.dtype).tiny)
    bad = (left > _LEFT_OUT).nonzero()[:, 0].tolist()
    if bad:
        raise _singular(
            f"and {len(bad)} of {len(rhs)} right-hand sides (rows {_first(bad)}) have up to "
            f"{left.max().item():.0%} of their answer along them, which would be lost",
            shifted - damping,
            rhs,
            zeros=int((~held).sum()),
            damping=damping,
        )


def _singular(
    told: str,
    eigenvalues: Float[Tensor, " rank"],
    rhs: Float[Tensor, "k p"],
    *,
    zeros: int,
    damping: float,
) -> IndefiniteError:
    """The error for `H + λI` of which some eigenvalues are zero to rounding, and b along them."""
    largest = eigenvalues.abs().max().item() if len(eigenvalues) else 0.0
    floor = rounding(rhs.dtype, rhs.shape[1]) * largest
    return IndefiniteError(
        f"H + λI is singular to rounding at damping={damping:g}: {zeros} of {rhs.shape[1]} "
        f"eigenvalues are below {floor:.1e} (the largest is {largest:.3g}), {told}; "
        f"{_cure(rhs.dtype)}",
        smallest_eigenvalue=eigenvalues.min().item() if len(eigenvalues) else 0.0,
        suggested_damping=round_up(100 * torch.finfo(rhs.dtype).eps * largest),
    )


def _first(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:10])) + (", …" if len(rows) > 10 else "")


def indefinite_error(
    smallest: float, largest: float, *, damping: float, dtype: torch.dtype, size: int = 1
) -> IndefiniteError:
    r"""The error for `H + λI` that is not positive definite, with a damping that would do.

    The one named is $2\,|\mu_{min}|$: just above $|\mu_{min}|$ the damped curvature is invertible
    and its inverse little but the direction of most negative curvature. Where the smallest
    eigenvalue is no further from zero than rounding, no damping is named but what has more digits.
    """
    floor = rounding(dtype, size) * abs(largest)
    seen = (
        f"H + λI is not positive definite at damping={damping:g}: the smallest eigenvalue of H is "
        f"{smallest:.3g} (the largest {largest:.3g})"
    )
    if smallest >= -floor:
        enough = round_up(100 * torch.finfo(dtype).eps * abs(largest))
        message = f"{seen}, which {_name(dtype)} cannot tell from zero; {_cure(dtype)}"
    else:
        enough = round_up(-2.0 * smallest)
        message = (
            f"{seen}; use damping >= {enough:g} (twice its size), train closer to a minimum, or "
            "take the Gauss-Newton curvature (direct: or on_indefinite='absolute')"
        )
    return IndefiniteError(message, smallest_eigenvalue=smallest, suggested_damping=enough)


def _cure(dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return (
            "standardise the columns, leave out those that others determine or that are constant "
            "in the training rows, or use a damping above zero"
        )
    return f"use float64 or standardise the columns: {_name(dtype)} has too few digits here"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def round_up(value: float) -> float:
    """The next number with two significant digits: 0.001434 → 0.0015; what is none stays none."""
    if not math.isfinite(value):
        return value
    if value <= 0:
        return torch.finfo(torch.float64).tiny
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit
