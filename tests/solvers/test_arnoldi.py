import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_systems import Counted, random_rhs, relative_error, spd_matrix

from influence_dag.curvature import DenseCurvature
from influence_dag.errors import IndefiniteError, NotConvergedError
from influence_dag.solvers import Arnoldi, krylov
from influence_dag.solvers.krylov import Subspace


def leading(H, rank):
    """Eigenpairs of largest magnitude by a dense decomposition."""
    values, vectors = torch.linalg.eigh(H)
    order = values.abs().argsort(descending=True)[:rank]
    return values[order], vectors[:, order]


def with_spectrum(eigenvalues, *, seed=0):
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(len(eigenvalues), len(eigenvalues), generator=generator).double()
    Q, _ = torch.linalg.qr(random)
    return (Q * eigenvalues) @ Q.T


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 40), decay=st.floats(0.01, 1.0))
def test_pairs_are_those_of_a_dense_decomposition(seed, rank, decay):
    H = spd_matrix(40, seed=seed, decay=decay)
    basis = Arnoldi(rank=rank, tol=1e-9, seed=seed).factorize(DenseCurvature(H))
    V, values = basis.eigenvectors, basis.eigenvalues
    assert (V.T @ V - torch.eye(rank, dtype=V.dtype)).abs().max() <= 1e-10
    torch.testing.assert_close(values, leading(H, rank)[0], rtol=1e-7, atol=1e-10)
    assert (H @ V - V * values).norm(dim=0).max() <= 3e-9 * values[0]


def test_float32_bases_stay_orthonormal():
    # The first eigenvalues converge long before the last: the case in which plain Lanczos fails.
    spectrum = torch.cat([torch.logspace(4, 0, 10), torch.linspace(0.5, 0.01, 190)])
    H = with_spectrum(spectrum).float()
    basis = Arnoldi(rank=60, tol=1e-6).factorize(DenseCurvature(H))
    V = basis.eigenvectors.double()
    assert (V.T @ V - torch.eye(60)).abs().max() <= 1e-5
    assert basis.diagnostics["residuals"].max() <= 2e-6


def test_negative_eigenvalues_count_by_their_magnitude():
    H = with_spectrum([-3.0, 2.0, -1.0, 0.5, *[0.01] * 16])
    values = Arnoldi(rank=3).factorize(DenseCurvature(H)).eigenvalues
    torch.testing.assert_close(values, torch.tensor([-3.0, 2.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("copies", [3, 12])
def test_copies_of_an_eigenvalue_beyond_the_block_are_found(copies):
    # Blocks of 2: a Krylov space holds two copies of each eigenvalue, whatever its length.
    H = with_spectrum([*[2.0] * copies, *[1.0] * copies, *[0.1] * 30])
    values = Arnoldi(rank=8).factorize(DenseCurvature(H)).eigenvalues
    torch.testing.assert_close(values, leading(H, 8)[0])


def test_a_curvature_of_lower_rank_than_asked_for():
    rows = random_rhs(3, 30)
    basis = Arnoldi(rank=10, complement="damping").factorize(DenseCurvature(rows.T @ rows))
    assert basis.eigenvalues[3:].abs().max() <= 1e-10
    expected = reference.damped_solve(rows.T @ rows, random_rhs(2, 30), 0.1)
    assert relative_error(basis.solve(random_rhs(2, 30), damping=0.1).x, expected) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("decades", [0, 1, 2])
def test_what_is_dropped_is_not_found_by_chance_beyond_the_rank(dtype, decades):
    spectrum = torch.cat([torch.logspace(0, -decades, 20), torch.zeros(40)])
    H, rhs = with_spectrum(spectrum), random_rhs(3, 60)
    values, V = leading(H, 20)
    expected = ((rhs @ V) / (values + 1e-3)) @ V.T
    for seed in range(2):
        basis = Arnoldi(rank=30, seed=seed).factorize(DenseCurvature(H.to(dtype)))
        solution = basis.solve(rhs.to(dtype), damping=1e-3)
        assert relative_error(solution.x, expected) <= (1e-10 if dtype == torch.float64 else 1e-4)
        assert solution.info["rank"] == 20


def test_a_curvature_of_zero_leaves_the_damping():
    zero = DenseCurvature(torch.zeros(6, 6, dtype=torch.float64))
    basis = Arnoldi(rank=3, complement="damping").factorize(zero)
    assert torch.allclose(basis.solve(random_rhs(2, 6), damping=0.5).x, random_rhs(2, 6) / 0.5)


def test_the_complement_is_dropped_or_damped():
    H, rhs, damping = spd_matrix(30), random_rhs(4, 30), 0.01
    values, V = leading(H, 6)
    inside = ((rhs @ V) / (values + damping)) @ V.T

    def solve(complement):
        method = Arnoldi(rank=6, tol=1e-10, complement=complement)
        return method.factorize(DenseCurvature(H)).solve(rhs, damping=damping).x

    torch.testing.assert_close(solve("drop"), inside)
    outside = (rhs - (rhs @ V) @ V.T) / damping
    torch.testing.assert_close(solve("damping"), inside + outside)


@settings(max_examples=20, deadline=None)
@given(
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=6, max_size=6),
    complement=st.sampled_from(["drop", "damping"]),
)
def test_signs_of_eigenvectors_do_not_matter(signs, complement):
    method = Arnoldi(rank=6, complement=complement)
    basis = method.factorize(DenseCurvature(spd_matrix(30)))
    vectors = basis.eigenvectors * torch.tensor(signs, dtype=torch.float64)
    flipped = method.restore(basis.tensors() | {"eigenvectors": vectors}, None)
    rhs = random_rhs(3, 30)
    expected = basis.solve(rhs, damping=0.1).x
    torch.testing.assert_close(flipped.solve(rhs, damping=0.1).x, expected)


def test_what_is_told_about_the_rest_of_the_spectrum():
    H = with_spectrum([4.0, 3.0, 2.0, *torch.linspace(1.0, 0.5, 57).tolist()])
    told = Arnoldi(rank=3).factorize(DenseCurvature(H)).info
    eigenvalues = torch.linalg.eigvalsh(H)
    share = 29.0 / eigenvalues.square().sum().item()
    assert told["captured"] == pytest.approx(share, abs=0.05)
    assert 0.9 <= told["left_out"] <= 1.0 + 1e-9


def test_products_come_in_blocks_of_a_quarter_of_the_rank():
    curvature = Counted(spd_matrix(60))
    basis = Arnoldi(rank=16).factorize(curvature)
    assert basis.info["products"] <= 3.5 * 16
    assert set(curvature.rows_seen) <= {4, 8, 16}  # blocks, probes, the residuals at the end


def test_many_pairs_take_narrower_blocks_and_fewer_products():
    eigenvalues = 1 / torch.arange(1, 401)
    curvature = Counted(with_spectrum(eigenvalues.tolist()))
    basis = Arnoldi(rank=50).factorize(curvature)
    assert curvature.rows_seen[:6] == [8] * 6
    assert basis.info["products"] <= 3.5 * 50
    torch.testing.assert_close(basis.eigenvalues, eigenvalues[:50].double(), rtol=0, atol=1e-8)


def test_a_seed_gives_the_same_pairs():
    def vectors(seed):
        return Arnoldi(rank=4, seed=seed).factorize(DenseCurvature(spd_matrix(30))).eigenvectors

    assert torch.equal(vectors(1), vectors(1))


def test_the_small_problem_may_stay_on_the_device():
    H, rhs = spd_matrix(30), random_rhs(2, 30)
    x = Arnoldi(rank=6, on_device=True).factorize(DenseCurvature(H)).solve(rhs, damping=0.1).x
    there = Arnoldi(rank=6).factorize(DenseCurvature(H)).solve(rhs, damping=0.1).x
    torch.testing.assert_close(x, there)


def test_pairs_that_are_not_found_are_an_error_that_counts_them():
    flat = with_spectrum(torch.linspace(1.0, 0.9, 200))
    method = Arnoldi(rank=20, max_products=40)
    with pytest.raises(NotConvergedError, match=r"of 20 eigenpairs missed tol=1e-06 after 40 prod"):
        method.factorize(DenseCurvature(flat))


@pytest.mark.parametrize("rank", [100, 30])
def test_a_search_that_ends_with_fewer_pairs_than_there_are_says_so(rank):
    """Of an eigenvalue with copies a block brings as many as it is wide, all of them exact."""
    curvature = DenseCurvature(2 * torch.eye(200, dtype=torch.float64))
    asked = {"rank": rank, "max_products": rank // 3}
    said = rf"\d\d of {rank} eigenpairs were found with \d\d products, and one of 2 or more is not"
    with pytest.raises(NotConvergedError, match=said):
        Arnoldi(**asked).factorize(curvature)
    with pytest.warns(RuntimeWarning, match=said):
        few = Arnoldi(**asked, on_failure="warn").factorize(curvature)
    assert len(few.eigenvalues) < rank


def test_pairs_that_are_not_found_may_be_kept():
    flat = with_spectrum(torch.linspace(1.0, 0.9, 200))
    method = Arnoldi(rank=20, max_products=40, on_failure="warn")
    with pytest.warns(RuntimeWarning, match="eigenpairs missed"):
        basis = method.factorize(DenseCurvature(flat))
    assert basis.diagnostics["residuals"].max() > 1e-6


def test_a_long_search_is_compressed():
    flat = with_spectrum(torch.linspace(1.0, 0.5, 150))
    method = Arnoldi(rank=4, tol=1e-8, max_products=5000)
    basis = method.factorize(DenseCurvature(flat))
    assert basis.info["products"] > 4 * 4 + 2  # longer than the basis may get
    torch.testing.assert_close(basis.eigenvalues, leading(flat, 4)[0], rtol=1e-8, atol=0)


def test_an_eigenvalue_at_minus_the_damping_is_refused():
    basis = Arnoldi(rank=2).factorize(DenseCurvature(with_spectrum([2.0, -1.0, *[0.1] * 10])))
    with pytest.raises(IndefiniteError, match="smallest eigenvalue of H is -1 "):
        basis.solve(random_rhs(1, 12), damping=1.0)


@pytest.mark.parametrize("decay", [0.02, 0.1, 0.5])
def test_residuals_are_looked_at_seldom_and_the_search_ends_where_it_did(decay, monkeypatch):
    matrix, rank, tol = spd_matrix(300, decay=decay), 12, 1e-7
    looks, distance = [], Subspace.distance

    def seen(self, rank, tol):
        found = distance(self, rank, tol)
        looks.append((len(self.basis), found))
        return found

    monkeypatch.setattr(Subspace, "distance", seen)
    basis = Arnoldi(rank=rank, tol=tol).factorize(Counted(matrix))
    seldom, looks[:] = list(looks), []
    monkeypatch.setattr(krylov, "_UNSEEN", 1)
    again = Arnoldi(rank=rank, tol=tol).factorize(Counted(matrix))
    assert len(seldom) < len(looks)
    assert [size for size, found in seldom if found <= 1] == [s for s, found in looks if found <= 1]
    torch.testing.assert_close(basis.eigenvalues, again.eigenvalues)
