"""Influences to be compared with each other: exact ones under three curvatures, and baselines."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from influence_dag.curvature import CURVATURES, Curvature, DenseCurvature
from influence_dag.errors import IndefiniteError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Direct
from influence_dag.suspicion import knn_shapley_of_each
from influence_dag.validation.ensembles import is_linear_in_parameters
from influence_dag.validation.representations import is_one_class_a_row, representations

# name → damping (None where there is none) → influences (test, train)
Candidates: TypeAlias = Mapping[str, Mapping[float | None, Tensor]]


def exact_candidates(
    objective: Objective, train: Rows, test: Rows, dampings: tuple[float, ...]
) -> dict[str, dict[float | None, Float[Tensor, "k n"]]]:
    """`gradient_candidates` and `representation_candidates`; whole numbers are classes."""
    return {
        **gradient_candidates(objective, train, test, dampings),
        **representation_candidates(objective, train, test),
    }


def gradient_candidates(
    objective: Objective, train: Rows, test: Rows, dampings: tuple[float, ...]
) -> dict[str, dict[float | None, Float[Tensor, "k n"]]]:
    r"""Influences by exact solves at each damping, and what gradients and losses say alone.

    `hessian`, `gauss_newton` (left out for a model linear in θ, where it is the Hessian),
    `empirical_fisher` $(1/n) \sum_i \nabla L_i \nabla L_i^\top$; `gradient_dot`, which is the
    influence with the identity for curvature; `loss`, for which a training row does as much
    harm to every test row as its own loss is high. Dampings that leave a curvature indefinite are
    left out.
    """
    gradients = per_sample_gradients(objective, train).dense()
    measured = per_sample_gradients(objective, test, of="measurement").dense()
    curvatures: dict[str, Curvature] = {"hessian": CURVATURES["hessian"](objective, train)}
    if not is_linear_in_parameters(objective, train):
        curvatures["gauss_newton"] = CURVATURES["gauss_newton"](objective, train)
    curvatures["empirical_fisher"] = DenseCurvature(_fisher(objective, train))
    losses = train.weighted(objective.losses(objective.params, train)).detach()
    return {
        **{
            name: _swept(curvature, measured, gradients, dampings)
            for name, curvature in curvatures.items()
        },
        "gradient_dot": {None: measured @ gradients.T},
        "loss": {None: -losses.expand(len(test), -1)},
    }


def representation_candidates(
    objective: Objective, train: Rows, test: Rows, *, of_amounts: bool = False
) -> dict[str, dict[float | None, Float[Tensor, "k n"]]]:
    r"""What is to be had without gradients, from what the last linear layer takes of each row.

    `representation_cosine`: $\cos(h_j, h_i)$, of classes with the sign + where the labels are the
    same and − where they are others. `nearest_neighbours`, of classes: the value of each training
    row in a nearest-neighbour classifier of the test row (KNN-Shapley). Whole numbers are classes
    unless they are said to be `of_amounts`. None of them where a model has no such layer.
    """
    rows, tests = representations(objective, train), representations(objective, test)
    if rows is None or tests is None:
        return {}
    cosine = normalize(tests) @ normalize(rows).T
    if of_amounts or not is_one_class_a_row(train.y):
        return {"representation_cosine": {None: cosine}}
    same = test.y[:, None] == train.y
    arrays = (each.numpy(force=True) for each in (rows, train.y, tests, test.y))
    values = knn_shapley_of_each(*arrays)
    return {
        "representation_cosine": {None: cosine.where(same, -cosine)},
        "nearest_neighbours": {None: torch.from_numpy(values)},
    }


def _fisher(objective: Objective, train: Rows) -> Float[Tensor, "p p"]:
    gradients = per_sample_gradients(objective, train.unweighted).dense()
    return gradients.T @ train.weighted(gradients) / train.weight_sum


def _swept(
    curvature: Curvature, measured: Tensor, gradients: Tensor, dampings: tuple[float, ...]
) -> dict[float | None, Tensor]:
    """Influences at each damping at which the curvature is positive definite."""
    method = Direct(damping=dampings[0] if len(dampings) == 1 else None)
    factorization, refused = method.factorize(curvature), None
    influences: dict[float | None, Tensor] = {}
    for damping in dampings:
        try:
            influences[damping] = factorization.solve(measured, damping=damping).x @ gradients.T
        except IndefiniteError as error:
            refused = error
    if not influences and refused is not None:
        raise refused
    return influences
