"""Random products with a curvature: they show whether two routes agree, and its symmetry."""

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.objective import Objective

_GROUPS = 8  # of parameters, whose blocks of the matrix are compared one by one
# Largest differences that rounding explains, relative to a block's norm: float64, and below.
_AGREEMENT, _LOOSE_AGREEMENT = {torch.float64: 1e-9}, 1e-3
_ASYMMETRY, _LOOSE_ASYMMETRY = {torch.float64: 1e-7}, 1e-3
_ROUNDING = 100  # units of the whole matrix's


def parameter_groups(objective: Objective) -> list[slice]:
    """The places of the parameters in θ, neighbours together where there are many."""
    places = list(objective.slices.values())
    each = -(-len(places) // _GROUPS)
    runs = [places[start : start + each] for start in range(0, len(places), each)]
    return [slice(run[0].start, run[-1].stop) for run in runs]


def random_in_groups(groups: list[slice], size: int) -> Float[Tensor, "k p"]:
    """A random vector for each group of parameters, zero outside of it; the same every time."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.zeros(len(groups), size, dtype=torch.float64)
    for vector, place in zip(vectors, groups, strict=True):
        vector[place] = torch.randn(place.stop - place.start, generator=generator).double()
    return vectors


def products_agree(
    matrix: Float[Tensor, "p p"],
    vectors: Float[Tensor, "k p"],
    products: Float[Tensor, "k p"],
    groups: list[slice],
    dtype: torch.dtype,
) -> bool:
    """Whether `products` are the matrix times `vectors`, in every block of parameters.

    `vectors` are those of `random_in_groups`; a block counts by its own norm, so that one of
    small numbers is not hidden by another's.
    """
    if not products.isfinite().all():
        return True  # neither route has numbers: for others to tell
    tolerance = _AGREEMENT.get(dtype, _LOOSE_AGREEMENT)
    rounding = _ROUNDING * torch.finfo(dtype).eps * matrix.norm()
    for vector, product, columns in zip(vectors, products, groups, strict=True):
        for rows in groups:
            block = matrix[rows, columns]
            difference = (block @ vector[columns].to(matrix) - product[rows]).norm()
            if not difference <= tolerance * block.norm() + rounding:
                return False
    return True


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
        raise ModelError(
            f"the second derivatives that torch gives of {type(objective.module).__name__} are not "
            f"symmetric (relative asymmetry {difference / scale:.1e}, limit {limit:.0e}), so some "
            "part of it has a wrong one: an autograd.Function whose backward is not differentiable "
            "(detached or saved values), or a fused kernel; write that part in plain operations"
        )
