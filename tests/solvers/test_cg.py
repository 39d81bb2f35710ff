import warnings

import pytest
import reference
import torch
from solver_systems import Counted, SecondMoment, random_rhs, relative_error, spd_matrix

from influence_dag.curvature import DenseCurvature
from influence_dag.errors import IndefiniteError, NotConvergedError
from influence_dag.solvers import ConjugateGradient, Direct

P = 60


def test_one_product_an_iteration_serves_all_unfinished_rows():
    curvature = Counted(spd_matrix(P))
    rhs = random_rhs(9, P)
    factorization = ConjugateGradient(rtol=1e-8, preconditioner="none").factorize(curvature)
    solution = factorization.solve(rhs, damping=0.1)
    iterations = int(solution.info["niter"].max())
    assert curvature.calls == iterations + 1  # the last one is for the true residual
    assert curvature.rows_seen[:-1] == sorted(curvature.rows_seen[:-1], reverse=True)
    assert sum(curvature.rows_seen[:-1]) == int(solution.info["niter"].sum())


def test_a_power_iteration_of_the_sketch_takes_products_off_many_rows():
    H, rhs = spd_matrix(300, decay=0.05), random_rhs(40, 300)

    def solved(power_iterations):
        curvature = Counted(H)
        settings = ConjugateGradient(rtol=1e-6, rank=60, power_iterations=power_iterations)
        x = settings.factorize(curvature).solve(rhs, damping=1e-3).x
        return x, sum(curvature.rows_seen)

    (plain, many), (powered, fewer) = solved(0), solved(1)
    assert fewer < 0.9 * many
    assert relative_error(powered, plain) <= 1e-5


def test_an_early_stop_does_not_depend_on_the_rows_beside_it():
    # Far from convergence: a search space shared by the rows would give other iterates.
    factorization = ConjugateGradient(rtol=1e-1, preconditioner="none").factorize(
        DenseCurvature(spd_matrix(P))
    )
    rhs = random_rhs(6, P)
    together = factorization.solve(rhs, damping=0.1)
    for i in range(6):
        alone = factorization.solve(rhs[i : i + 1], damping=0.1)
        torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=1e-10, atol=1e-10)
        assert together.info["niter"][i] == alone.info["niter"][0]


def test_the_history_ends_where_each_row_stopped():
    rhs = random_rhs(4, P) * torch.tensor([[1e-3], [1.0], [1e3], [0.0]])
    settings = ConjugateGradient(rtol=1e-6, atol=1e-5, preconditioner="none")
    info = settings.factorize(DenseCurvature(spd_matrix(P))).solve(rhs, damping=0.1).info
    history = info["residual_history"]
    assert history.shape == (4, int(info["niter"].max()))
    assert (~history.isnan()).sum(dim=1).tolist() == info["niter"].tolist()
    for i in range(3):
        last = history[i][~history[i].isnan()][-1]
        torch.testing.assert_close(last, info["residual"][i], rtol=1e-3, atol=0)


@pytest.mark.parametrize(("rtol", "atol"), [(1e-3, 0.0), (1e-12, 1e-2)])
def test_rows_stop_at_their_own_tolerance(rtol, atol):
    H, rhs = spd_matrix(P), random_rhs(5, P) * torch.tensor([[1e-3], [1.0], [1e3], [1.0], [10.0]])
    system = ConjugateGradient(rtol=rtol, atol=atol).factorize(DenseCurvature(H))
    solution = system.solve(rhs, damping=1e-2)
    defect = (solution.x @ H + 1e-2 * solution.x - rhs).norm(dim=1)
    assert (defect <= (rtol * rhs.norm(dim=1)).clamp(min=atol)).all()
    assert solution.info["converged"].all()
    expected = defect / rhs.norm(dim=1)
    torch.testing.assert_close(solution.info["residual"], expected, rtol=1e-6, atol=1e-12)


def test_the_true_residual_counts_where_the_recurrence_drifts():
    # Condition 1e5 in float32: the recurrence reaches any tolerance, the residual does not.
    H, rhs = spd_matrix(P, decay=0.2).float(), random_rhs(3, P).float()
    system = ConjugateGradient(rtol=1e-7).factorize(DenseCurvature(H))
    with pytest.raises(
        NotConvergedError, match=r"float32 holds no more digits: .* rtol to [\d.e-]+"
    ):
        system.solve(rhs, damping=1e-5)


def test_many_rows_whose_recurrence_drifts_are_looked_at_singly():
    H, rhs = spd_matrix(P, decay=0.2).float(), random_rhs(60, P).float()
    system = ConjugateGradient(rtol=1e-7).factorize(DenseCurvature(H))
    with pytest.raises(NotConvergedError, match=r"float32 holds no more digits"):
        system.solve(rhs, damping=1e-5)


@pytest.mark.parametrize("wrong", [0.0, 1e-3])
def test_residuals_of_many_rows_are_confirmed_in_random_combinations(wrong):
    """One product that is off for one row is noticed among sixty, and mended."""

    class Off(Counted):
        def apply(self, vectors):
            products = super().apply(vectors)
            if self.calls == 3:
                products[17] += wrong * products[17].norm()
            return products

    curvature, rhs = Off(spd_matrix(P)), random_rhs(60, P)
    rhs[17] *= 1e-6  # a row as small as a test row that is fitted well
    solution = (
        ConjugateGradient(rtol=1e-6, preconditioner="none")
        .factorize(curvature)
        .solve(rhs, damping=0.1)
    )
    left = curvature.inner.matrix @ solution.x.T + 0.1 * solution.x.T - rhs.T
    residual = left.norm(dim=0) / rhs.norm(dim=1)
    assert residual.max() <= 1e-6
    torch.testing.assert_close(solution.info["residual"], residual, rtol=1e-3, atol=0)
    iterations = int(solution.info["niter"].sum())
    looked_at = sum(curvature.rows_seen) - iterations
    assert looked_at > 60 if wrong else looked_at < 30


def test_nystroem_saves_iterations():
    H, rhs = spd_matrix(P), random_rhs(4, P)

    def iterations(**settings):
        system = ConjugateGradient(rtol=1e-8, **settings).factorize(DenseCurvature(H))
        return int(system.solve(rhs, damping=1e-4).info["niter"].max())

    assert iterations(rank=20) <= iterations(preconditioner="none") / 2


def test_jacobi_saves_iterations_on_a_badly_scaled_diagonal():
    scale = torch.logspace(0, 4, P, dtype=torch.float64)
    H = torch.diag(scale) + 0.1 * spd_matrix(P)

    def iterations(name):
        system = ConjugateGradient(rtol=1e-6, preconditioner=name).factorize(DenseCurvature(H))
        return int(system.solve(random_rhs(3, P), damping=1e-3).info["niter"].max())

    assert iterations("jacobi") <= iterations("none") / 5


@pytest.mark.parametrize("one_for_all", [True, False])
def test_x0_is_where_the_iteration_starts(one_for_all):
    H, rhs = spd_matrix(P), random_rhs(1, P).expand(3, P)
    answer = reference.damped_solve(H, rhs[:1], 0.1).expand(3, P)
    system = ConjugateGradient().factorize(DenseCurvature(H))
    x0 = answer[:1] if one_for_all else answer
    warm = system.solve(rhs, damping=0.1, x0=x0)
    assert warm.info["niter"].tolist() == [0, 0, 0]
    assert torch.equal(warm.x, answer)
    far = system.solve(rhs, damping=0.1, x0=100 * answer)
    assert relative_error(far.x, answer) <= 1e-5


def test_a_row_of_zeros_is_at_its_answer_wherever_it_starts():
    system = ConjugateGradient().factorize(DenseCurvature(spd_matrix(P)))
    solution = system.solve(torch.zeros(1, P).double(), damping=0.1, x0=random_rhs(1, P))
    assert not solution.x.any()
    assert solution.info["niter"].tolist() == [0]


def test_a_curvature_may_return_the_rows_that_it_is_given():
    class One(Counted):
        def apply(self, vectors):
            return vectors

    rhs, one = random_rhs(2, P), One(torch.eye(P).double())
    system = ConjugateGradient(preconditioner="none").factorize(one)
    torch.testing.assert_close(system.solve(rhs, damping=0.5).x, rhs / 1.5)


def test_rows_that_miss_the_tolerance_are_named():
    rhs = random_rhs(4, P)
    rhs[2] = 0
    system = ConjugateGradient(maxiter=2, preconditioner="none").factorize(
        DenseCurvature(spd_matrix(P))
    )
    with pytest.raises(
        NotConvergedError,
        match=r"3 of 4 systems missed rtol=1e-06.* after 2 iterations \(rows 0, 1, 3; worst",
    ):
        system.solve(rhs, damping=1e-3)


def test_rows_that_miss_the_tolerance_are_kept_and_marked_when_asked_for():
    rhs = random_rhs(3, P)
    rhs[1] = 0
    settings = ConjugateGradient(maxiter=2, preconditioner="none", on_failure="warn")
    with pytest.warns(RuntimeWarning, match="2 of 3 systems missed"):
        solution = settings.factorize(DenseCurvature(spd_matrix(P))).solve(rhs, damping=1e-3)
    assert solution.info["converged"].tolist() == [False, True, False]
    assert solution.info["niter"].tolist() == [2, 0, 2]
    assert solution.x[0].norm() > 0


def test_negative_curvature_is_an_error_that_names_a_damping():
    H = spd_matrix(P) - 0.3 * torch.eye(P, dtype=torch.float64)
    rhs = random_rhs(3, P)
    system = ConjugateGradient(preconditioner="none").factorize(DenseCurvature(H))
    with pytest.raises(IndefiniteError, match=r"not positive definite at damping=0\.01") as caught:
        system.solve(rhs, damping=0.01)
    damping = caught.value.suggested_damping
    expected = reference.damped_solve(H, rhs, damping)
    assert relative_error(system.solve(rhs, damping=damping).x, expected) <= 1e-4


def test_an_indefinite_curvature_with_enough_damping_is_solved_without_a_word():
    H = spd_matrix(P) - 0.01 * torch.eye(P, dtype=torch.float64)
    rhs = random_rhs(3, P)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = ConjugateGradient().factorize(DenseCurvature(H)).solve(rhs, damping=0.05).x
    exact = Direct(damping=0.05).factorize(DenseCurvature(H)).solve(rhs, damping=0.05).x
    assert relative_error(x, exact) <= 1e-4


# Directions that the rows share


def flat_spectrum(size=300):
    """Eigenvalues over four decades, without gaps: every direction counts."""
    basis, _ = torch.linalg.qr(random_rhs(size, size, seed=3))
    matrix = (basis * torch.logspace(0, -4, size, dtype=torch.float64)) @ basis.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("preconditioner", ["none", "jacobi", "nystroem"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shared_directions_give_the_same_answer_by_fewer_products(dtype, preconditioner):
    H, products = flat_spectrum().to(dtype), {}
    rhs = (random_rhs(40, 300) @ H.double()).to(dtype)
    exact = reference.damped_solve(H.double(), rhs.double(), 1e-3)
    for search in ("own", "shared"):
        curvature = Counted(H)
        rank = {} if preconditioner == "none" else {"rank": 20}
        method = ConjugateGradient(rtol=1e-4, preconditioner=preconditioner, search=search, **rank)
        solution = method.factorize(curvature).solve(rhs, damping=1e-3)
        products[search] = sum(curvature.rows_seen)
        assert solution.info["converged"].all()
        defect = rhs.double() - solution.x.double() @ H.double() - 1e-3 * solution.x.double()
        torch.testing.assert_close(
            solution.info["residual"].double(), defect.norm(dim=1) / rhs.double().norm(dim=1),
            rtol=1e-2, atol=1e-7,
        )  # fmt: skip
        assert relative_error(solution.x, exact) <= 2e-2
    assert products["shared"] <= products["own"] / 2


@pytest.mark.parametrize("preconditioner", ["none", "nystroem"])
def test_rows_that_depend_on_each_other_share_directions(preconditioner):
    """Rows twice, a sum of rows, zero, and lengths far apart."""
    H, rhs = flat_spectrum(), random_rhs(8, 300)
    rhs[1], rhs[2], rhs[3], rhs[4] = rhs[0], rhs[0] + rhs[5], 0, 1e-9 * rhs[4]
    method = ConjugateGradient(rtol=1e-10, preconditioner=preconditioner, search="shared")
    solution = method.factorize(DenseCurvature(H)).solve(rhs, damping=1e-2)
    expected = reference.damped_solve(H, rhs, 1e-2)
    for row, wanted in zip(solution.x, expected, strict=True):
        assert (row - wanted).norm() <= 1e-8 * wanted.norm()
    assert solution.info["niter"][3] == 0


def test_shared_directions_may_come_to_be_as_many_as_there_are():
    H, rhs = spd_matrix(12), random_rhs(30, 12)
    method = ConjugateGradient(rtol=1e-10, preconditioner="none", search="shared")
    solution = method.factorize(DenseCurvature(H)).solve(rhs, damping=1e-3)
    assert relative_error(solution.x, reference.damped_solve(H, rhs, 1e-3)) <= 1e-8
    assert int(solution.info["niter"].max()) <= 3


def test_shared_directions_of_a_singular_curvature_give_the_answer_of_least_norm():
    moment = SecondMoment(random_rhs(20, P, seed=5))
    rhs = random_rhs(6, 20) @ moment.rows
    method = ConjugateGradient(rtol=1e-9, preconditioner="none", search="shared")
    solution = method.factorize(moment).solve(rhs, damping=0.0)
    wanted = torch.linalg.lstsq(moment.dense(), rhs.mT, driver="gelsd").solution.mT
    assert relative_error(solution.x, wanted) <= 1e-6


def test_negative_curvature_along_a_shared_direction_is_an_error_that_names_a_damping():
    H = spd_matrix(P) - 0.3 * torch.eye(P, dtype=torch.float64)
    rhs = random_rhs(3, P)
    system = ConjugateGradient(preconditioner="none", search="shared").factorize(DenseCurvature(H))
    with pytest.raises(IndefiniteError, match=r"not positive definite at damping=0\.01") as caught:
        system.solve(rhs, damping=0.01)
    damping = caught.value.suggested_damping
    expected = reference.damped_solve(H, rhs, damping)
    assert relative_error(system.solve(rhs, damping=damping).x, expected) <= 1e-4


def test_rows_of_shared_directions_that_miss_the_tolerance_are_named():
    method = ConjugateGradient(maxiter=2, preconditioner="none", search="shared", rtol=1e-10)
    system = method.factorize(DenseCurvature(flat_spectrum()))
    with pytest.raises(NotConvergedError, match=r"4 of 4 systems missed .* after 2 iterations"):
        system.solve(random_rhs(4, 300), damping=1e-3)


def test_restoring_without_a_curvature_is_refused():
    with pytest.raises(ValueError, match="cg multiplies with the curvature"):
        ConjugateGradient(preconditioner="none").restore({}, None)


def test_an_unknown_preconditioner_is_refused():
    with pytest.raises(ValueError, match="preconditioner='ilu' is unknown; choose one of none"):
        ConjugateGradient(preconditioner="ilu")


@pytest.mark.parametrize("search", ["own", "shared"])
def test_a_right_hand_side_that_is_not_a_number_is_a_row_that_missed(search):
    rhs = random_rhs(3, P)
    rhs[1, 3] = torch.nan
    system = ConjugateGradient(search=search).factorize(DenseCurvature(spd_matrix(P)))
    with pytest.raises(NotConvergedError, match=r"1 of 3 systems missed .*\(rows 1;"):
        system.solve(rhs, damping=0.1)


class Coarse(DenseCurvature):
    """Products with three digits: a further descent often ends where it is worse."""

    def apply(self, vectors):
        return super().apply(vectors).bfloat16().to(vectors)


@pytest.mark.parametrize("search", ["own", "shared"])
def test_a_descent_that_ends_further_off_than_it_began_is_undone(search):
    curvature, rhs = Coarse(spd_matrix(P)), random_rhs(40, P)
    method = ConjugateGradient(search=search, preconditioner="none", on_failure="warn")
    system = method.factorize(curvature)
    with pytest.warns(RuntimeWarning, match="systems missed"):
        first = system.solve(rhs, damping=0.1)
    with pytest.warns(RuntimeWarning, match="systems missed"):
        again = system.solve(rhs, damping=0.1, x0=first.x)
    assert (again.info["residual"] <= 1.001 * first.info["residual"]).all()
    left = rhs - curvature.apply(again.x) - 0.1 * again.x
    torch.testing.assert_close(again.info["residual"], left.norm(dim=1) / rhs.norm(dim=1))
