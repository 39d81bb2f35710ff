"""Kronecker factors against Fisher matrices by plain autograd."""

import pytest
import torch
from kronecker_matrices import assembled, blocks_of, factorize
from networks import CASES, CLASSES
from torch import nn
from torch.testing import assert_close

from influence_dag.curvature import GaussNewton, kronecker
from influence_dag.curvature.kronecker import (
    KroneckerEigenbasis,
    corrected_eigenvalues,
    eigenbases,
    kronecker_factors,
    kronecker_sums,
)
from influence_dag.curvature.kronecker_fisher import output_roots
from influence_dag.curvature.kronecker_layout import KroneckerLayout
from influence_dag.curvature.kronecker_pairs import FisherBatch, FisherPairs
from influence_dag.errors import ModelError
from influence_dag.losses import bce_with_logits, cross_entropy, mse
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC, KFAC

N = 400


def make(name, dtype=torch.float64):
    module, x, y = CASES[name].make(dtype)
    return module, Objective(module, "cross_entropy"), Rows(x, y)


def fisher_of(module, x, middle):
    """Mean over samples of Jᵀ M J, M = `middle(output, i)`, one Jacobian row at a time."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = 0.0
    for i in range(len(x)):
        output = module(x[i : i + 1])[0]
        rows = [
            torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
            for value in output
        ]
        J = torch.stack([torch.cat([piece.flatten() for piece in row]) for row in rows])
        total = total + J.T @ middle(output.detach(), i) @ J
    return total / len(x)


def softmax_curvature(output, _):
    p = output.softmax(0)
    return p.diag() - p.outer(p)


def empirical(y):
    def middle(output, i):
        v = output.softmax(0) - nn.functional.one_hot(y[i], len(output))
        return v.outer(v)

    return middle


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("name", CASES)
def test_eigenvalues_are_the_fishers_diagonal_in_the_kronecker_eigenbasis(name, fisher):
    module, objective, rows = make(name)
    middle = softmax_curvature if fisher == "exact" else empirical(rows.y)
    F = fisher_of(module, rows.x, middle)
    covered = []
    for index, vectors, values in blocks_of(
        factorize(EKFAC(fisher=fisher), objective, rows).tensors()
    ):
        covered += index.tolist()
        assert_close(vectors.T @ vectors, torch.eye(len(vectors), dtype=torch.float64))
        assert_close((vectors.T @ F[index][:, index] @ vectors).diagonal(), values)
    assert sorted(covered) == list(range(objective.size))


@pytest.mark.parametrize("name", CASES)
def test_corrected_eigenvalues_are_closer_to_the_fisher_than_kfacs(name):
    module, objective, rows = make(name)
    ekfac, inside = assembled(factorize(EKFAC(), objective, rows), objective.size)
    kfac, _ = assembled(factorize(KFAC(), objective, rows), objective.size)
    F = fisher_of(module, rows.x, softmax_curvature) * inside
    assert (ekfac - F).norm() <= (kfac - F).norm() * (1 + 1e-12)


@pytest.mark.parametrize("name", ["norms", "recurrent", "attention", "tokens", "tied", "reused"])
def test_what_is_not_captured_is_an_exact_dense_block(name):
    module, objective, rows = make(name)
    factorization = factorize(EKFAC(), objective, rows)
    F = fisher_of(module, rows.x, softmax_curvature)
    dense = factorization.info["dense_blocks"]
    assert dense
    for group, total in zip(factorization.sums.layout.dense, factorization.sums.dense, strict=True):
        index = torch.cat([torch.arange(*place) for place in group.places])
        assert_close(total / len(rows), F[index][:, index])


# Where the theory says that K-FAC is exact -----------------------------------------------------


@pytest.mark.parametrize("method", [EKFAC(), KFAC()], ids=repr)
@pytest.mark.parametrize("bias", [True, False])
def test_one_linear_layer_with_squared_loss_is_its_gauss_newton_matrix(method, bias):
    module = nn.Linear(5, 3, bias=bias).double()
    objective = Objective(module, "mse")
    rows = Rows(torch.randn(20, 5).double(), torch.randn(20, 3).double())
    matrix, inside = assembled(factorize(method, objective, rows), objective.size)
    assert inside.all()
    assert_close(matrix, GaussNewton(objective, rows).dense())
    assert_close(matrix, fisher_of(module, rows.x, lambda f, _: 2 / 3 * torch.eye(3).to(f)))


@pytest.mark.parametrize("method", [EKFAC(), KFAC()], ids=repr)
def test_every_layer_of_a_linear_network_with_squared_loss_is_exact(method):
    module = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 6, bias=False), nn.Linear(6, 3)).double()
    objective = Objective(module, "mse")
    rows = Rows(torch.randn(20, 5).double(), torch.randn(20, 3).double())
    matrix, inside = assembled(factorize(method, objective, rows), objective.size)
    assert_close(matrix, GaussNewton(objective, rows).dense() * inside)


@pytest.mark.parametrize("method", [EKFAC(), KFAC()], ids=repr)
def test_a_single_sample_is_exact_whatever_the_loss(method):
    module, objective, rows = make("deep")
    matrix, inside = assembled(factorize(method, objective, rows[:1]), objective.size)
    assert_close(matrix, fisher_of(module, rows.x[:1], softmax_curvature) * inside)


# Fishers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [cross_entropy, mse, bce_with_logits])
def test_sampled_labels_have_the_exact_fisher_on_average(loss):
    outputs = torch.randn(3, CLASSES).double().repeat_interleave(20_000, 0)
    targets = torch.zeros(len(outputs)).long() if loss is cross_entropy else outputs

    def covariance(fisher, loss=loss):
        roots = output_roots(
            loss, outputs, targets, fisher=fisher, generator=torch.Generator().manual_seed(3)
        )
        sums = torch.einsum("cni,cnj->nij", roots, roots)
        return sums.view(3, -1, CLASSES, CLASSES).mean(1)

    exact = covariance("exact")
    assert_close(covariance("sampled"), exact, rtol=0, atol=0.03 * float(exact.max()))
    unknown = covariance("sampled", loss=lambda f, y: loss(f, y))
    assert_close(unknown, exact, rtol=0, atol=0.03 * float(exact.max()))


def test_sampled_labels_of_several_positions_have_the_exact_fisher_on_average():
    outputs = torch.randn(1, CLASSES, 2).double().expand(40_000, -1, -1)
    targets = torch.zeros(40_000, 2).long()

    def covariance(fisher):
        roots = output_roots(
            cross_entropy, outputs, targets, fisher=fisher, generator=torch.Generator()
        ).flatten(2)
        return torch.einsum("cni,cnj->ij", roots, roots) / 40_000

    exact = covariance("exact")
    assert_close(covariance("sampled"), exact, rtol=0, atol=0.03 * float(exact.max()))


def test_exact_roots_of_softmax_are_one_fewer_than_the_classes():
    outputs, targets = torch.randn(7, 5), torch.zeros(7).long()
    roots = output_roots(
        cross_entropy, outputs, targets, fisher="exact", generator=torch.Generator()
    )
    assert roots.shape == (4, 7, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confident_predictions_keep_a_fisher(dtype):
    outputs = torch.tensor([[20.0, 0.0, 1.0], [40.0, 0.0, -3.0]], dtype=dtype)
    roots = output_roots(
        cross_entropy, outputs, torch.zeros(2).long(), fisher="exact", generator=torch.Generator()
    )
    p = outputs.double().softmax(1)
    expected = p.diag_embed() - p[:, :, None] * p[:, None]
    actual = torch.einsum("cni,cnj->nij", roots, roots).double()
    assert_close(actual, expected, rtol=0, atol=1e-13 if dtype is torch.float64 else 2e-7)


def test_outputs_of_several_positions_count_together():
    module = nn.Conv1d(2, CLASSES, 3, padding=1).double()
    rows = Rows(torch.randn(6, 2, 4).double(), torch.randint(0, CLASSES, (6, 4)))
    objective = Objective(module, "cross_entropy")
    values = factorize(EKFAC(), objective, rows).tensors()
    dense = GaussNewton(objective, rows, route="autograd").dense()
    (index, vectors, eigenvalues), *_ = blocks_of(values)
    assert_close((vectors.T @ dense[index][:, index] @ vectors).diagonal(), eigenvalues)
    sampled = factorize(EKFAC(fisher="sampled"), objective, rows)
    assert sampled.largest_eigenvalue > 0


def test_a_loss_that_is_not_convex_in_the_outputs_has_no_exact_fisher():
    module = nn.Linear(3, 1).double()
    objective = Objective(module, lambda f, y: -(f - y).square().sum(1))
    rows = Rows(torch.randn(4, 3).double(), torch.randn(4, 1).double())
    with pytest.raises(ModelError, match=r"not convex .* 4 of 4 rows .* -2\b.*fisher='empirical'"):
        factorize(EKFAC(), objective, rows)
    assert factorize(EKFAC(fisher="empirical"), objective, rows).largest_eigenvalue > 0


def test_a_loss_linear_in_the_outputs_has_no_fisher_but_the_empirical_one():
    module, _, rows = make("mlp")
    objective = Objective(module, lambda output, target: output[:, 0])
    g = torch.randn(3, objective.size, dtype=torch.float64)
    assert_close(factorize(EKFAC(), objective, rows).solve(g, damping=0.1).x, g / 0.1)
    x = factorize(EKFAC(fisher="empirical"), objective, rows).solve(g, damping=0.1).x
    assert not torch.allclose(x, g / 0.1)


class OneForAll(nn.Module):
    """A scale of all rows beside the outputs of each."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(5, 3), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.inner(x), 1.0 * self.scale


def test_an_output_without_rows_has_no_fisher_unless_the_loss_leaves_it_out():
    _, _, rows = make("mlp")
    objective = Objective(
        OneForAll().double(), lambda output, y: cross_entropy(output[0] * output[1], y)
    )
    with pytest.raises(ModelError, match=r"output of shape \(1,\), without a row for each of 9"):
        factorize(EKFAC(), objective, rows, batch_size=9)
    alone = Objective(OneForAll().double(), lambda output, y: cross_entropy(output[0], y))
    plain = Objective(alone.module.inner, "cross_entropy")
    g = torch.randn(3, plain.size, dtype=torch.float64)
    places = torch.cat(
        [torch.arange(*alone.slices[f"inner.{n}"].indices(99)) for n in ("weight", "bias")]
    )
    whole = torch.zeros(3, alone.size, dtype=torch.float64)
    whole[:, places] = g
    found = factorize(EKFAC(), alone, rows).solve(whole, damping=0.1).x[:, places]
    assert_close(found, factorize(EKFAC(), plain, rows).solve(g, damping=0.1).x)


def test_an_unknown_fisher_is_refused_with_the_known_ones():
    _, objective, rows = make("mlp")
    with pytest.raises(ValueError, match="'emp' is unknown; choose one of exact, sampled"):
        factorize(EKFAC(fisher="emp"), objective, rows)


def test_a_dense_block_that_is_too_large_is_named():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.outer = nn.Embedding(5000, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.outer(self.embed(x).mean(1))

    objective = Objective(Large(), "cross_entropy")
    rows = Rows(torch.randint(0, 9, (5, 3)), torch.randint(0, 2, (5,)))
    with pytest.raises(ModelError, match=r"10000 parameters of 'embed' .* limited to 8192; freeze"):
        factorize(EKFAC(), objective, rows)


# Laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fisher"),
    [(EKFAC, "exact"), (EKFAC, "sampled"), (EKFAC, "empirical"), (KFAC, "exact")],
)
@pytest.mark.parametrize("name", ["deep", "images", "signal", "norms", "positions"])
def test_the_batch_size_does_not_matter(method, name, fisher):
    """KFAC's sums are EKFAC's, of which each Fisher is asked."""
    _, objective, rows = make(name)
    whole, _ = assembled(factorize(method(fisher=fisher), objective, rows), objective.size)
    for size in (1, 9):  # four rows at a time are 4, 4 and 1
        split = factorize(method(fisher=fisher), objective, rows, batch_size=size)
        assert_close(assembled(split, objective.size)[0], whole)


@pytest.mark.parametrize("name", ["deep", "images", "norms", "frozen weight"])
def test_float32_agrees_with_float64(name):
    _, objective, rows = make(name)
    exact, _ = assembled(factorize(EKFAC(), objective, rows), objective.size)
    _, objective, rows = make(name, torch.float32)
    single = factorize(EKFAC(), objective, rows)
    vectors = [t for n, t in single.tensors().items() if n.endswith("eigenvectors")]
    assert {t.dtype for t in vectors} == {torch.float32}
    matrix, _ = assembled(_doubled(single), objective.size)
    # A basis of nearly equal eigenvalues may turn, and the diagonal in it with it.
    assert (matrix - exact).norm() <= 2e-3 * exact.norm()


def _doubled(factorization):
    tensors = {
        n: t.double() if t.is_floating_point() else t for n, t in factorization.tensors().items()
    }
    return EKFAC().restore(tensors, None)


def test_seeds_change_the_labels_drawn_and_what_draws_none_takes_none():
    _, objective, rows = make("mlp")

    def eigenvalues(**settings):
        return factorize(EKFAC(**settings), objective, rows).tensors()["0.eigenvalues"]

    assert_close(eigenvalues(fisher="sampled", seed=1), eigenvalues(fisher="sampled", seed=1))
    one, two = eigenvalues(fisher="sampled", seed=1), eigenvalues(fisher="sampled", seed=2)
    assert not torch.allclose(one, two)
    with pytest.raises(ValueError, match=r"seed 1 .* exact draws none; add fisher: sampled"):
        EKFAC(seed=1)


@pytest.mark.parametrize("name", ["frozen weight", "frozen layer"])
def test_frozen_parameters_are_in_no_block(name):
    module, objective, rows = make(name)
    factorization = factorize(EKFAC(), objective, rows)
    matrix, inside = assembled(factorization, objective.size)
    F = fisher_of(module, rows.x, softmax_curvature)
    assert len(F) == objective.size
    assert inside.diagonal().all()
    assert_close(matrix.trace(), F.trace())
    frozen_weights = {n for n, p in module.named_parameters() if not p.requires_grad}
    captured = factorization.info["captured_layers"].split(", ")
    assert not {f"{layer}.weight" for layer in captured} & frozen_weights


@pytest.mark.parametrize("name", ["norms", "deep", "recurrent"])
def test_the_blocks_of_some_parameters_cover_those_and_no_others(name):
    """Every layer and every module of several parameters, with any one of them left out."""
    _, objective, rows = make(name)
    whole = KroneckerLayout.of(objective, rows)
    places = [(where.start, where.stop) for where in objective.slices.values()]
    for kept in [*([p for p in places if p != one] for one in places), *([p] for p in places)]:
        index = torch.cat([torch.arange(*place) for place in kept])
        layout = whole.within(index)
        assert sorted(_places(layout)) == kept
        weights = {layer.weight for layer in whole.layers} & set(kept)
        assert {layer.weight for layer in layout.layers} == weights
        moved = _places(layout.relocated(index))
        assert sorted(i for place in moved for i in range(*place)) == list(range(len(index)))
        assert torch.equal(
            torch.cat([index[slice(*place)] for place in moved]),
            torch.cat([torch.arange(*place) for place in _places(layout)]),
        )


def _places(layout):
    return [place for block in (*layout.layers, *layout.dense) for place in block.places]


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("name", ["deep", "images", "norms"])
def test_sums_follow_a_change_of_rows(name, fisher):
    _, objective, rows = make(name)
    layout = KroneckerLayout.of(objective, rows)

    def sums(part):
        return kronecker_sums(FisherPairs(objective, part, layout, fisher), layout)

    kept, removed, added = rows[:4], rows[4:6], rows[6:]
    changed = sums(rows[:6]) - sums(removed) + sums(added)
    now = rows[torch.tensor([0, 1, 2, 3, 6, 7, 8])]
    fresh = sums(now)
    assert (changed.rows, changed.positions) == (fresh.rows, fresh.positions)
    assert_close(changed.tensors(), fresh.tensors())
    assert sums(kept).rows == 4
    curvature = GaussNewton(objective, now)
    updated = EKFAC(fisher=fisher).factorize(curvature, sums=changed)
    again = EKFAC(fisher=fisher).factorize(curvature)
    actual, _ = assembled(updated, objective.size)
    assert_close(actual, assembled(again, objective.size)[0])


def test_sums_of_different_inputs_are_not_combined():
    module = nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    objective = Objective(module, "cross_entropy")

    def sums(length):
        rows = Rows(torch.randn(4, 2, length).double(), torch.randint(0, 3, (4,)))
        layout = KroneckerLayout.of(objective, rows)
        return kronecker_sums(FisherPairs(objective, rows, layout), layout)

    with pytest.raises(ValueError, match="input shapes cannot be combined"):
        sums(5) + sums(6)


@pytest.mark.parametrize(
    ("rows", "vectors", "positions", "width"),
    [(50, 1, 2, 40), (600, 3, 30, 40), (50, 3, 9, 4), (50, 1, 30, 4)],
)
def test_eigenvalues_over_positions_are_squares_of_their_sums(rows, vectors, positions, width):
    """Few positions and wide layers go by pairs of positions, the others by forming matrices."""
    a = torch.randn(rows, positions, width).double()
    g = torch.randn(vectors, rows, positions, width + 1).double()
    A, G = (torch.linalg.eigh(torch.cov(torch.randn(d, 99).double())) for d in (width, width + 1))
    basis = KroneckerEigenbasis(A.eigenvectors, A.eigenvalues, G.eigenvectors, G.eigenvalues)
    (actual,) = corrected_eigenvalues([FisherBatch(rows, [(a, g)], [])], [basis])
    matrices = G.eigenvectors.T @ torch.einsum("cnto,nti->cnoi", g, a) @ A.eigenvectors
    assert_close(actual, matrices.square().sum((0, 1)) / rows)


@pytest.mark.parametrize("numbers", [1, 3_000, 2**27])
@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_what_is_kept_of_the_first_pass_does_not_show(monkeypatch, fisher, numbers):
    """Nothing, the first rows of a convolution as matrices, or all of them."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    ).double()
    objective, x = Objective(module, "cross_entropy"), torch.randn(32, 1, 8, 8).double()
    rows = Rows(x, torch.arange(32) % 3)
    layout = KroneckerLayout.of(objective, rows)
    pairs = FisherPairs(objective, rows, layout, fisher, batch_size=8)
    batches = list(pairs)
    bases = eigenbases(kronecker_sums(batches, layout))
    monkeypatch.setattr(kronecker, "_KEPT", numbers)
    found = kronecker_factors(pairs)
    for mine, expected in zip(
        found.eigenvalues, corrected_eigenvalues(batches, bases), strict=True
    ):
        assert_close(mine, expected)
