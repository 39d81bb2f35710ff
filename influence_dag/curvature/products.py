"""Random products with a curvature: they show whether two routes agree, and its symmetry."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.finite import all_finite
from influence_dag.errors import ModelError
from influence_dag.objective.objective import Objective

# Largest differences that rounding explains, relative to a product's norm: float64, and below.
_AGREEMENT, _LOOSE_AGREEMENT = {torch.float64: 1e-9}, 1e-3
_ASYMMETRY, _LOOSE_ASYMMETRY = {torch.float64: 1e-7}, 1e-3
_ROUNDING = 100  # units, of the largest entry of a product


def random_vectors(count: int, size: int) -> Float[Tensor, "k p"]:
    """Random rows, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def is_matrix_of(
    multiply: Callable[[Float[Tensor, " p"]], Float[Tensor, " p"]],
    matrix: Float[Tensor, "p p"],
    places: list[slice],
    dtype: torch.dtype,
) -> bool:
    """Whether a product in `dtype` is that with the matrix, which is symmetric, tensor by tensor.

    Of a random vector that is large where the matrix's entries are small, tensor by tensor: so no
    parameter's columns are hidden by those of another, of inputs a thousand times as large.
    """
    sizes = _sizes(matrix)
    vector = _balanced(sizes, places).to(dtype)
    product = multiply(vector)
    if not product.isfinite().all():
        return not all_finite(matrix)  # neither route has numbers: for others to tell
    tolerance = _AGREEMENT.get(dtype, _LOOSE_AGREEMENT)
    found, least = vector.to(matrix) @ matrix, torch.finfo(matrix.dtype).tiny
    rounding = _ROUNDING * torch.finfo(dtype).eps * (found / sizes.clamp(min=least)).abs().max()
    for place in places:
        difference = (found[place] - product[place]).norm()
        allowed = rounding * sizes[place].norm() + tolerance * product[place].norm()
        if not difference <= allowed:
            return False
    return True


def _sizes(matrix: Float[Tensor, "p p"]) -> Float[Tensor, " p"]:
    r"""$s_i$ with $|H_{ij}| \le s_i \max_k s_k$: of a semi-definite matrix $\sqrt{H_{ii}}$.

    Others may have zeros on the diagonal in rows that are none: a loss linear in the outputs.
    """
    largest = torch.maximum(matrix.amax(1), -matrix.amin(1))
    widest = largest.max().clamp(min=torch.finfo(matrix.dtype).tiny).sqrt()
    return torch.maximum(matrix.diagonal().abs().sqrt(), largest / widest)


def _balanced(sizes: Float[Tensor, " p"], places: list[slice]) -> Float[Tensor, " p"]:
    (vector,), squares = random_vectors(1, len(sizes)).to(sizes), sizes.square()
    floor = torch.finfo(torch.float32).eps * squares.max()
    if floor > 0:  # else nothing is known
        for place in places:
            vector[place] /= (squares[place].mean() + floor).sqrt()
    return vector


def same_product(
    found: Float[Tensor, " p"],
    product: Float[Tensor, " p"],
    places: list[slice],
    dtype: torch.dtype,
    *,
    loose: float = _LOOSE_AGREEMENT,
) -> bool:
    """Whether two routes to a product of a curvature agree, tensor by tensor.

    `loose` is by how much they may differ in float32 and below.
    """
    tolerance = _AGREEMENT.get(dtype, loose)
    rounding = _ROUNDING * torch.finfo(dtype).eps * product.norm()
    return all(
        (found[place] - product[place]).norm() <= tolerance * product[place].norm() + rounding
        for place in places
    )


def check_symmetric(matrix: Float[Tensor, "p p"], objective: Objective) -> None:
    """Raise `ModelError` for columns of second derivatives that are not symmetric."""
    squares = sum(
        (rows - columns.T).square().sum()
        for rows, columns in zip(matrix.split(1024), matrix.split(1024, dim=1), strict=True)
    )
    _refuse_above(float(torch.as_tensor(squares).sqrt()), float(matrix.norm()), objective, 1.0)


def check_symmetric_products(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], objective: Objective
) -> None:
    """The same by two vectors with their products: u · C v = v · C u."""
    (u, Cu), (v, Cv) = first, second
    difference = float((u.double() @ Cv.double() - v.double() @ Cu.double()).abs())
    # A product in lower precision is off by rounding in each of its p entries.
    slack = max(1.0, len(u) ** 0.5 / 100)
    _refuse_above(difference, float(Cu.double().norm() + Cv.double().norm()), objective, slack)


def _refuse_above(difference: float, scale: float, objective: Objective, slack: float) -> None:
    limit = slack * _ASYMMETRY.get(objective.dtype, _LOOSE_ASYMMETRY)
    if difference > limit * scale:
        double = objective.dtype == torch.float64
        cause = "" if double else "rounding (saturated outputs, large inputs: use float64), or "
        raise ModelError(
            f"the second derivatives that torch gives of {type(objective.module).__name__} are not "
            f"symmetric (relative asymmetry {difference / scale:.1e}, limit {limit:.0e}): {cause}"
            "some part of it has a wrong one, an autograd.Function whose backward is not "
            "differentiable (detached or saved values) or a fused kernel; write that part in plain "
            "operations"
        )
