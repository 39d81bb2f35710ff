"""Two steps of LiSSA's series by one product are the series that is taken step by step."""

import pytest
import torch
from solver_systems import random_rhs, relative_error, spd_matrix

from influence_dag.curvature import DenseCurvature
from influence_dag.errors import IndefiniteError
from influence_dag.solvers import LiSSA

P, ROWS = 20, 5


class Watched(DenseCurvature):
    """A matrix that counts its products with rows."""

    def apply(self, vectors):
        vars(self)["seen"] = vars(self).get("seen", 0) + len(vectors)
        return super().apply(vectors)


def solve(H, rhs, *, damping=0.01, **settings):
    curvature = Watched(H)
    solution = LiSSA(on_failure="warn", **settings).factorize(curvature).solve(rhs, damping=damping)
    return solution, vars(curvature)["seen"]


def by_single_steps(H, b, *, damping, scale, dampen=0.0, rtol, maxiter):
    """h, and the lengths of the steps of each row, by the recursion as it is written."""
    answers, lengths = [], []
    for row in b:
        h, taken = row.clone(), []
        while len(taken) < maxiter:
            step = row - dampen * h - (h @ H + damping * h) / scale
            h = h + step
            taken.append(step.norm())
            if step.norm() <= rtol * h.norm():
                break
        answers.append(h / scale)
        lengths.append(torch.stack(taken) / row.norm())
    return torch.stack(answers), lengths


@pytest.mark.filterwarnings("ignore:.* series still move")
@pytest.mark.parametrize("maxiter", [151, 152, 5000])
@pytest.mark.parametrize("dampen", [0.0, 0.002])
@pytest.mark.parametrize("shift", [0.0, -0.004], ids=["positive", "indefinite"])
def test_steps_are_those_of_the_recursion(maxiter, dampen, shift):
    H = spd_matrix(P) + shift * torch.eye(P, dtype=torch.float64)
    rhs = random_rhs(ROWS, P) * torch.logspace(-3, 3, ROWS, dtype=torch.float64)[:, None]
    rhs[1] = torch.linalg.eigh(H).eigenvectors[:, -1] + 1e-3 * rhs[1]  # ends long before others
    how = {"scale": 2.0, "dampen": dampen, "rtol": 1e-5, "maxiter": maxiter}
    solution, products = solve(H, rhs, **how)
    expected, lengths = by_single_steps(H, rhs, damping=0.01, **how)
    assert solution.info["niter"].tolist() == [len(each) for each in lengths]
    torch.testing.assert_close(solution.x, expected, rtol=1e-9, atol=1e-12)
    for history, each in zip(solution.info["residual_history"], lengths, strict=True):
        torch.testing.assert_close(history[: len(each)], each, rtol=1e-6, atol=1e-14)
        assert history[len(each) :].isnan().all()
    assert products < 0.5 * sum(map(len, lengths))  # pairs take theirs with N


@pytest.mark.filterwarnings("ignore:.* series still move")
def test_float32_is_as_near_as_step_by_step():
    H, rhs = spd_matrix(200, decay=0.05), random_rhs(ROWS, 200)
    how = {"scale": 2.0, "rtol": 1e-12, "maxiter": 1500}
    exact, _ = by_single_steps(H, rhs, damping=0.01, **how)
    single, _ = by_single_steps(H.float(), rhs.float(), damping=0.01, **how)
    solution, products = solve(H.float(), rhs.float(), **how)
    assert products < 0.5 * ROWS * 1500
    assert relative_error(solution.x, exact) <= 5 * relative_error(single, exact)


def test_a_series_that_one_step_nearly_ends_is_not_taken_by_twos():
    H = torch.eye(P, dtype=torch.float64) * (1 - 1e-5)
    H[0, 0] = 0.5
    rhs = random_rhs(ROWS, P)
    how = {"scale": 1.0, "rtol": 1e-9, "maxiter": 400}
    solution, _ = solve(H, rhs, damping=0.0, **how)
    expected, lengths = by_single_steps(H, rhs, damping=0.0, **how)
    assert solution.info["niter"].tolist() == [len(each) for each in lengths]
    torch.testing.assert_close(solution.x, expected, rtol=1e-12, atol=0)


def test_a_slow_divergence_is_noticed_within_pairs():
    H, rhs = spd_matrix(P), random_rhs(ROWS, P)
    H -= (torch.linalg.eigvalsh(H)[0] + 0.02) * torch.eye(P, dtype=torch.float64)
    with pytest.raises(IndefiniteError, match="not positive definite"):
        LiSSA(scale=0.49, maxiter=100_000).factorize(DenseCurvature(H)).solve(rhs, damping=0.0)
