"""Self-influences by a Cholesky factor are those of float64, whatever they are computed in."""

import pytest
import torch
from torch.testing import assert_close

from influence_dag.influence import own_influences
from influence_dag.influence.own_influences import OwnInfluences
from influence_dag.solvers.direct import CholeskyFactor

P, N = 60, 400


def system(smallest: float) -> torch.Tensor:
    """A matrix with eigenvalues from this to 1, in a basis that has nothing to do with the axes."""
    generator = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(P, P, dtype=torch.float64, generator=generator))
    values = torch.logspace(0, torch.tensor(smallest).log10().item(), P, dtype=torch.float64)
    return Q @ torch.diag(values) @ Q.T


def gradients(*, like: torch.Tensor | None = None, size: float = 1.0) -> torch.Tensor:
    """Rows in all directions, or along large eigenvectors, where solves keep the fewest digits."""
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(N, P, dtype=torch.float64, generator=generator)
    return size * (g if like is None else g @ like @ like)


def expected(A: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linalg.solve(A, g.double().T).T
    return (x * g).sum(1), x.norm(dim=1)


def computed(A: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return OwnInfluences(CholeskyFactor(torch.linalg.cholesky(A), 0.0))(g, damping=0.0)


@pytest.fixture
def exact_rows(monkeypatch) -> list[int]:
    """How many rows each solve in float64 had."""
    counts: list[int] = []
    real = OwnInfluences._exactly

    def counted(self, g):
        counts.append(len(g))
        return real(self, g)

    monkeypatch.setattr(OwnInfluences, "_exactly", counted)
    return counts


def test_a_well_conditioned_matrix_takes_float32_alone(exact_rows):
    A, g = system(1e-2), gradients().float()
    assert_close(computed(A, g), expected(A, g), rtol=1e-5, atol=0)
    assert not exact_rows


@pytest.mark.parametrize("smallest", [1e-5, 1e-7, 1e-10])
def test_rows_of_which_float32_keeps_few_digits_are_solved_in_float64(exact_rows, smallest):
    A = system(smallest)
    g = torch.cat([gradients(like=A), gradients()]).float()
    assert_close(computed(A, g), expected(A, g), rtol=3e-5, atol=0)
    assert sum(exact_rows) > 100


def test_float32_is_not_tried_again_where_it_serves_few(monkeypatch, exact_rows):
    """Of the same rows: what comes of others depends on nothing that was asked before."""
    A = system(1e-9)
    own = OwnInfluences(CholeskyFactor(torch.linalg.cholesky(A), 0.0))
    looks, real = [], OwnInfluences._agrees
    monkeypatch.setattr(
        OwnInfluences, "_agrees", lambda self, *of: looks.append(1) or real(self, *of)
    )
    monkeypatch.setattr(own_influences, "_ROWS", 300)
    g = torch.cat([gradients(like=A)] * 2).float()
    first = own(g, damping=0.0)
    assert len(looks) == 1
    assert exact_rows[1:] == [300, 200]
    assert all(map(torch.equal, own(g, damping=0.0), first))


def test_rows_are_the_same_in_pieces(monkeypatch, exact_rows):
    A = system(1e-6)
    g = torch.cat([gradients(), gradients(like=A)]).float()
    monkeypatch.setattr(own_influences, "_ROWS", 300)
    assert_close(computed(A, g), expected(A, g), rtol=3e-5, atol=0)
    assert 0 < sum(exact_rows) < 2 * N


def test_rows_are_the_same_alone_and_together():
    A, g = system(1e-3), gradients().float()
    own, lengths = computed(A, g)
    assert_close(computed(A, g[7:8]), (own[7:8], lengths[7:8]), rtol=1e-5, atol=0)


def test_squares_of_small_gradients_are_not_lost():
    A, g = system(1e-2), gradients(size=1e-30).float()
    own, lengths = computed(A, g)
    assert own.dtype == torch.float64
    assert_close((own, lengths), expected(A, g), rtol=1e-5, atol=0)


def test_a_gradient_of_zeros_has_no_influence():
    A, g = system(1e-2), gradients().float()
    g[3] = 0
    own, lengths = computed(A, g)
    assert own[3] == lengths[3] == 0


def test_float64_stays_float64(exact_rows):
    A, g = system(1e-4), gradients()
    assert_close(computed(A, g), expected(A, g), rtol=1e-10, atol=0)
    assert exact_rows == [N]


def test_what_is_not_a_number_is_not_taken_for_one():
    A, g = system(1e-2), gradients().float()
    g[5, 2] = torch.nan
    own, _ = computed(A, g)
    assert own[5].isnan()
    assert own.isfinite().sum() == N - 1


def test_probes_find_out_every_row_of_a_factor_that_is_a_little_wrong(monkeypatch, exact_rows):
    A, g = system(1e-2), gradients().float()
    wrong = property(lambda self: 1.0001 * self.factor.cholesky.float())
    monkeypatch.setattr(OwnInfluences, "_rounded", wrong)
    assert_close(computed(A, g), expected(A, g), rtol=1e-10, atol=0)
    assert sum(exact_rows) == N


def test_another_damping_than_the_factors_is_refused():
    A, g = system(1e-2), gradients().float()
    own = OwnInfluences(CholeskyFactor(torch.linalg.cholesky(A), 0.0))
    with pytest.raises(ValueError, match=r"factorised for damping=0, asked .* damping=0.1"):
        own(g, damping=0.1)
