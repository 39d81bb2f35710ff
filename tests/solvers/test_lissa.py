from dataclasses import dataclass

import pytest
import reference
import torch
from solver_systems import Counted, SecondMoment, random_rhs, relative_error, spd_matrix

from influence_dag.curvature import DenseCurvature
from influence_dag.errors import IndefiniteError, NotConvergedError
from influence_dag.solvers import LiSSA
from influence_dag.solvers.minibatches import random_batches

P = 20


def solve(rhs=None, H=None, *, damping=0.1, x0=None, **settings):
    H = spd_matrix(P) if H is None else H
    rhs = random_rhs(5, P) if rhs is None else rhs
    return LiSSA(**settings).factorize(DenseCurvature(H)).solve(rhs, damping=damping, x0=x0)


def test_each_step_is_the_recursion():
    H, b, damping, scale, dampen = spd_matrix(P), random_rhs(3, P), 0.1, 2.0, 0.05
    h = b.clone()
    for _ in range(3):
        h = b + (1 - dampen) * h - (h @ H + damping * h) / scale
    with pytest.warns(RuntimeWarning):
        solution = solve(b, H, maxiter=3, scale=scale, dampen=dampen, on_failure="warn")
    torch.testing.assert_close(solution.x, h / scale)


def test_dampen_adds_its_product_with_the_scale_to_the_damping():
    x = solve(rtol=1e-10, scale=2.0, dampen=0.05, maxiter=5000).x
    expected = reference.damped_solve(spd_matrix(P), random_rhs(5, P), 0.1 + 0.05 * 2.0)
    assert relative_error(x, expected) <= 1e-7


def test_without_a_scale_one_that_converges_is_found():
    solution = solve()
    largest = torch.linalg.eigvalsh(spd_matrix(P))[-1].item()
    assert largest + 0.1 < solution.info["scale"] <= 1.2 * (largest + 0.1)


def test_one_product_a_step_serves_all_unfinished_rows():
    curvature = Counted(spd_matrix(P))
    solution = LiSSA(scale=1.5).factorize(curvature).solve(random_rhs(5, P), damping=0.1)
    assert curvature.calls == int(solution.info["niter"].max()) + 1  # the last is for the residual
    assert sum(curvature.rows_seen[:-1]) == int(solution.info["niter"].sum())


def test_info_of_each_row():
    H, rhs = spd_matrix(P), random_rhs(5, P)
    solution = solve(rhs, H, rtol=1e-6)
    x, info = solution.x, solution.info
    defect = rhs - x @ H - 0.1 * x
    torch.testing.assert_close(info["residual"], defect.norm(dim=1) / rhs.norm(dim=1))
    share = (defect / (info["scale"] * x)).abs()
    torch.testing.assert_close(info["max_perc_residual"], 100 * share.amax(dim=1))
    torch.testing.assert_close(info["mean_perc_residual"], 100 * share.mean(dim=1))
    assert info["converged"].all()


def test_a_start_at_the_answer_stays_there():
    answer = reference.damped_solve(spd_matrix(P), random_rhs(5, P), 0.1)
    solution = solve(x0=answer)
    assert solution.info["niter"].tolist() == [1] * 5
    torch.testing.assert_close(solution.x, answer)


def test_a_row_of_zeros_is_at_its_answer_wherever_it_starts():
    assert not solve(torch.zeros(1, P).double(), x0=random_rhs(1, P)).x.any()


def test_divergence_is_noticed_early_and_names_a_scale_that_works():
    curvature = Counted(10 * spd_matrix(P))
    with pytest.raises(NotConvergedError, match=r"diverges with scale=3: .* use scale=") as caught:
        LiSSA(scale=3.0, maxiter=10_000).factorize(curvature).solve(random_rhs(2, P), damping=0.1)
    assert curvature.calls <= 5 + 60  # a few steps, then the estimate of the largest eigenvalue
    scale = float(str(caught.value).rpartition("scale=")[2])
    assert 10.1 < scale <= 12.5
    assert solve(H=10 * spd_matrix(P), scale=scale).info["converged"].all()


def test_no_scale_helps_an_indefinite_curvature():
    H = spd_matrix(P) - 0.5 * torch.eye(P, dtype=torch.float64)
    with pytest.raises(IndefiniteError, match=r"not positive definite at damping=0\.1"):
        solve(H=H, scale=1.0)


def test_rows_that_are_not_converged_are_named():
    rhs = random_rhs(3, P)
    rhs[1] = 0
    with pytest.raises(
        NotConvergedError, match=r"2 of 3 series still move .* after 4 steps .*\(rows 0, 2;"
    ):
        solve(rhs, maxiter=4)
    with pytest.warns(RuntimeWarning, match="2 of 3 series"):
        solution = solve(rhs, maxiter=4, on_failure="warn")
    assert solution.info["converged"].tolist() == [False, True, False]


# Mini-batches ------------------------------------------------------------------------------------


MOMENT = SecondMoment(random_rhs(60, 6, seed=4))


def by_minibatches(*, seed=0, maxiter=2000, scale=None, rtol=0.1):
    method = LiSSA(batch_size=10, seed=seed, maxiter=maxiter, scale=scale, rtol=rtol)
    return method.factorize(MOMENT).solve(random_rhs(4, 6), damping=0.1)


def test_minibatches_approach_the_answer():
    expected = reference.damped_solve(MOMENT.dense(), random_rhs(4, 6), 0.1)
    solution = by_minibatches()
    assert relative_error(solution.x, expected) <= 0.05
    assert solution.info["niter"].tolist() == [2000] * 4
    defect = random_rhs(4, 6) - MOMENT.apply(solution.x) - 0.1 * solution.x
    expected = defect.norm(dim=1) / random_rhs(4, 6).norm(dim=1)
    torch.testing.assert_close(solution.info["residual"], expected)


def test_more_steps_with_minibatches_come_closer():
    expected = reference.damped_solve(MOMENT.dense(), random_rhs(4, 6), 0.1)
    few, many = (by_minibatches(maxiter=steps).x for steps in (200, 4000))
    assert relative_error(many, expected) <= relative_error(few, expected) / 2


def test_minibatches_repeat_for_a_seed():
    first, again, other = (by_minibatches(seed=seed, maxiter=50).x for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_minibatches_that_diverge_name_a_scale_that_works():
    with pytest.raises(NotConvergedError, match=r"diverges with scale=0.5") as caught:
        by_minibatches(scale=0.5)
    scale = float(str(caught.value).rpartition("scale=")[2])
    expected = reference.damped_solve(MOMENT.dense(), random_rhs(4, 6), 0.1)
    assert relative_error(by_minibatches(scale=scale).x, expected) <= 0.05


# Anchored by products with all rows ---------------------------------------------------------------


DIRECTIONS = 5**0.5 * torch.eye(6, dtype=torch.float64) * torch.linspace(1, 1.5, 6)[:, None]
ANCHORED = {
    "alike": (MOMENT.rows, 10, 6),  # rows, of a batch, steps of a pass
    "a pass leads astray": (DIRECTIONS.repeat(2, 1), 2, 6),
    "far above the scale": (DIRECTIONS.repeat(10, 1), 1, 1),  # given up in the first pass
}


@dataclass(frozen=True, eq=False)
class Watched(SecondMoment):
    """It notes the vectors that all rows are multiplied with."""

    whole: int
    seen: list[int]

    def apply(self, vectors):
        if len(self.rows) == self.whole:
            self.seen.append(len(vectors))
        return super().apply(vectors)


@pytest.mark.parametrize("case", ANCHORED)
def test_anchored_minibatches_end_at_the_answer(case):
    rows, batch_size, steps = ANCHORED[case]
    curvature, rhs = Watched(rows, len(rows), []), random_rhs(4, 6)
    rhs[2] = 0
    scale = 1.1 * (torch.linalg.eigvalsh(curvature.dense())[-1].item() + 0.1)
    method = LiSSA(batch_size=batch_size, anchored=True, rtol=1e-9, scale=scale, maxiter=2000)
    solution = method.factorize(curvature).solve(rhs, damping=0.1)
    expected = reference.damped_solve(curvature.dense(), rhs, 0.1)
    assert relative_error(solution.x, expected) <= 1e-7
    info = solution.info
    assert info["converged"].all()
    defect = rhs - solution.x @ curvature.dense() - 0.1 * solution.x
    torch.testing.assert_close(
        info["residual"] * rhs.norm(dim=1), defect.norm(dim=1), rtol=1e-5, atol=1e-13
    )
    niter, history = info["niter"], info["residual_history"]
    told = ~history.isnan()
    assert torch.equal(told.sum(1), niter)
    assert torch.equal(told.cummin(1).values, told), "a row that has stopped does not go on"
    assert niter[2] <= steps
    assert niter.max() % steps == 0
    whole = int(niter.max()) // steps
    again = whole if case == "a pass leads astray" else 1  # for the row of zeros: none is nearer
    assert 0 < len(curvature.seen) <= 3 + whole + again, "one product with all rows a pass"


@pytest.mark.parametrize("case", ANCHORED)
def test_anchored_minibatches_take_no_more_steps_than_allowed(case):
    rows, batch_size, _ = ANCHORED[case]
    scale = 1.1 * (torch.linalg.eigvalsh(SecondMoment(rows).dense())[-1].item() + 0.1)
    settings = {"rtol": 1e-12, "scale": scale, "maxiter": 8, "on_failure": "warn"}
    method = LiSSA(batch_size=batch_size, anchored=True, **settings)
    with pytest.warns(RuntimeWarning, match="4 of 4 series .* raise maxiter or rtol, lower scale"):
        solution = method.factorize(SecondMoment(rows)).solve(random_rhs(4, 6), damping=0.1)
    assert solution.info["niter"].tolist() == [8] * 4


def test_a_later_pass_that_is_given_up_leaves_what_was_taken_and_who_had_stopped():
    rows = 0.1 * DIRECTIONS.repeat(6, 1)[:32]
    rows[0, 0] = len(rows) ** 0.5  # drawn twice in a pass, it leads far off
    rhs = random_rhs(3, 6)
    rhs[1] = 0
    settings = {"rtol": 1e-9, "scale": 1.3, "maxiter": 150, "on_failure": "warn", "seed": 6}
    system = LiSSA(batch_size=1, anchored=True, **settings).factorize(SecondMoment(rows))
    with pytest.warns(RuntimeWarning, match="2 of 3 series .* after 150 steps"):
        info = system.solve(rhs, damping=0.01).info
    assert info["niter"].tolist() == [150, 32, 150]
    told = ~info["residual_history"].isnan()
    assert torch.equal(told.cummin(1).values, told), "a row that has stopped does not go on"


def test_minibatches_need_a_curvature_of_rows():
    with pytest.raises(ValueError, match="DenseCurvature is not a mean over rows"):
        LiSSA(batch_size=5).factorize(DenseCurvature(spd_matrix(P)))


def test_batches_are_distinct_rows():
    batches = random_batches(12, 5, seed=0)
    drawn = [next(batches).tolist() for _ in range(200)]
    assert all(len(set(rows)) == 5 for rows in drawn)
    assert {row for rows in drawn for row in rows} == set(range(12))
    assert sorted(next(random_batches(3, 5, seed=0)).tolist()) == [0, 1, 2]
