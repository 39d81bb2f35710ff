"""Gauss-Newton products of many vectors by captured pairs, against autograd."""

from unittest import mock

import pytest
import torch
from interrupts import each_interruption
from networks import CASES
from networks import make_weighted as make
from torch import nn
from torch.testing import assert_close

from influence_dag.curvature import (
    GaussNewton,
    captured_blocks,
    captured_products,
    gauss_newton,
    kronecker_pairs,
)
from influence_dag.curvature.batched import BatchedCurvature
from influence_dag.curvature.captured_products import CapturedSum
from influence_dag.curvature.kronecker_pairs import FisherPairs
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.gradients.uncaptured import NotCaptured
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC, KFAC
from influence_dag.solvers.kronecker_scores import RotatedGradients


def both(objective, rows, count=40, **kwargs):
    """By pairs (or what "auto" takes) and by autograd; how many vectors autograd was given."""
    vectors = torch.randn(count, objective.size, generator=torch.Generator().manual_seed(0))
    vectors, given = vectors.to(objective.dtype), []
    plain = BatchedCurvature._sum_of

    def counted(self, vectors, rows, **how):
        given.append(len(vectors))
        return plain(self, vectors, rows, **how)

    with mock.patch.object(BatchedCurvature, "_sum_of", counted):
        found = GaussNewton(objective, rows, checked=True, **kwargs).apply(vectors)
    expected = GaussNewton(objective, rows, checked=True, route="autograd").apply(vectors)
    return found, expected, sum(given)


@pytest.mark.parametrize("name", CASES)
def test_products_over_weighted_rows_are_autograds(name):
    objective, rows = make(name)
    found, expected, _ = both(objective, rows, count=8, batch_size=5)
    assert_close(found, expected)


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_takes_one_vector_through_the_network(bias):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv1d(2, 3, 3, bias=bias), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(21, 3)
    )
    objective = Objective(module.double().eval(), "cross_entropy")
    rows = Rows(torch.randn(30, 2, 9).double(), torch.arange(30) % 3)
    found, expected, given = both(objective, rows)
    assert_close(found, expected)
    assert given == 2  # the random vectors that confirm


class Conv1D(nn.Module):
    """As GPT-2 has it: a Linear layer whose weight is (inputs, outputs)."""

    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_in, d_out))
        self.bias = nn.Parameter(torch.randn(d_out))

    def forward(self, x):
        return x @ self.weight + self.bias


@pytest.mark.parametrize("positions", [2, 7])
def test_a_layer_with_its_weight_the_other_way_round(positions):
    torch.manual_seed(0)
    layers = [Conv1D(4, 3), nn.Tanh(), nn.Flatten(), Conv1D(3 * positions, 3)]
    objective = Objective(nn.Sequential(*layers).double(), "cross_entropy")
    rows = Rows(torch.randn(8, positions, 4).double(), torch.arange(8) % 3)
    found, expected, given = both(objective, rows)
    assert given == 2
    assert_close(found, expected)


@pytest.mark.parametrize("method", [EKFAC(), KFAC()], ids=repr)
@pytest.mark.parametrize("positions", [(), (3,)], ids=str)
def test_kronecker_factors_of_weights_the_other_way_round_are_the_same(positions, method):
    """As those of a network of Linear layers with the transposed weights."""
    torch.manual_seed(0)
    width = 5 * (positions[0] if positions else 1)
    one, other = (
        nn.Sequential(kind(4, 5), nn.Tanh(), nn.Flatten(), kind(width, 3)).double()
        for kind in (nn.Linear, Conv1D)
    )
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        theirs.data = mine.data.t().clone()
    rows = Rows(torch.randn(8, *positions, 4).double(), torch.arange(8) % 3)
    objectives = [Objective(module, "cross_entropy") for module in (one, other)]
    place, start = [], 0  # of each parameter of the other network, among those of the one
    for mine in one.parameters():
        place.append(torch.arange(start, start + mine.numel()).view(mine.shape).t().flatten())
        start += mine.numel()
    order, g = torch.cat(place), torch.randn(4, start).double()
    factors = [method.factorize(GaussNewton(each, rows)) for each in objectives]
    x, turned = (f.solve(b, damping=0.1).x for f, b in zip(factors, (g, g[:, order]), strict=True))
    assert_close(turned, x[:, order])
    found, expected = (
        RotatedGradients.of(f, gradients).influences(gradients, damping=0.1)
        for f, gradients in zip(
            factors, (per_sample_gradients(each, rows) for each in objectives), strict=True
        )
    )
    assert_close(found, expected)


class Optional(nn.Module):
    """Layers, not square, that no row of a batch may call."""

    def __init__(self, kind):
        super().__init__()
        self.inner, self.extra = nn.Linear(3, 3), nn.Sequential(kind(3, 5), kind(5, 3))

    def forward(self, x):
        hidden = torch.tanh(self.inner(x))
        return self.extra(hidden) if bool((x > 100).any()) else hidden


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_layers_that_no_row_calls_add_nothing(kind):
    objective = Objective(Optional(kind).double(), "cross_entropy")
    rows = Rows(torch.randn(6, 3).double(), torch.arange(6) % 3)
    found, expected, given = both(objective, rows)
    assert given == 2
    assert_close(found, expected)
    g = torch.randn(4, objective.size).double()
    for method in (EKFAC(), KFAC()):
        x = method.factorize(GaussNewton(objective, rows)).solve(g, damping=0.1).x
        uncalled = slice(objective.slices["extra.0.weight"].start, None)
        assert_close(x[:, uncalled], g[:, uncalled] / 0.1)
        assert not torch.allclose(x, g / 0.1)


def test_few_vectors_go_through_the_network():
    objective, rows = make("pooled signal")
    found, expected, given = both(objective, rows, count=2)
    assert given == 2
    assert_close(found, expected)


def test_many_outputs_go_through_the_network():
    module = nn.Linear(4, 50).double()
    objective = Objective(module, "cross_entropy")
    rows = Rows(torch.randn(6, 4).double(), torch.arange(6))
    assert both(objective, rows, count=40)[2] == 40


def test_a_loss_that_is_not_convex_in_the_outputs_goes_through_the_network():
    def loss(output, target):
        return torch.sin(3 * output).sum(1) + target

    objective = Objective(nn.Linear(4, 2).double(), loss)
    rows = Rows(torch.randn(6, 4).double(), torch.zeros(6).double())
    found, expected, given = both(objective, rows)
    assert given == 40
    assert_close(found, expected)


@pytest.mark.parametrize("shown", [256, 5], ids=["all rows", "some"])
@pytest.mark.parametrize("wrong", [None, 1.001], ids=["not captured", "wrong"])
def test_products_that_are_not_confirmed_are_autograds(wrong, shown, monkeypatch):
    monkeypatch.setattr(gauss_newton, "_SHOWN", shown)
    objective, rows = make("pooled signal")
    real = CapturedSum.summed

    def other(self, vectors):
        if wrong is None:
            raise NotCaptured({"0"})
        return real(self, vectors) * wrong

    with mock.patch.object(CapturedSum, "summed", other):
        found, expected, given = both(objective, rows)
    assert given >= 40
    assert_close(found, expected)


def test_of_many_rows_some_go_through_the_network(monkeypatch):
    monkeypatch.setattr(gauss_newton, "_SHOWN", 5)
    objective, rows = make("pooled signal")
    given, plain = [], BatchedCurvature._sum_of

    def counted(self, vectors, rows, **how):
        given.append((len(vectors), len(rows)))
        return plain(self, vectors, rows, **how)

    vectors = torch.randn(40, objective.size, dtype=torch.float64)
    with mock.patch.object(BatchedCurvature, "_sum_of", counted):
        found = GaussNewton(objective, rows, checked=True).apply(vectors)
    assert given == [(2, 5)]
    assert len(rows) > 5
    assert_close(found, GaussNewton(objective, rows, route="autograd").apply(vectors))


def test_a_row_whose_pair_is_another_is_seen_wherever_it_is(monkeypatch):
    """Not by the few rows that go through the network: by the pass that all are held against."""
    monkeypatch.setattr(gauss_newton, "_SHOWN", 2)
    objective, rows = make("pooled signal")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    row, real = int(order[-1]), kronecker_pairs._pair  # drawn last: none of the two

    def other(name, layer, x, parts, count):
        a, g = real(name, layer, x, parts, count)
        if count == len(rows):
            g = g.clone()
            g[:, row] *= 1.01
        return a, g

    monkeypatch.setattr(kronecker_pairs, "_pair", other)
    found, expected, given = both(objective, rows)
    assert given >= 40
    assert_close(found, expected)


def test_products_are_the_same_however_rows_and_vectors_are_cut(monkeypatch):
    objective, rows = make("pooled signal")
    vectors = torch.randn(9, objective.size, dtype=torch.float64)
    expected = GaussNewton(objective, rows, route="autograd").apply(vectors)
    cuts = {
        "_PIECE": (2**19, 100, 7, 2**19, 2**19),
        "_COLUMNS": (64, 64, 2, 4, 64),
        "_WAITING": (2**21, 2**21, 1, 300, 2**21),
        "_WRITTEN": (2**20, 2**20, 1, 2**20, 1),
    }
    for chosen in zip(*cuts.values(), strict=True):
        for name, value in zip(cuts, chosen, strict=True):
            where = captured_products if name == "_COLUMNS" else captured_blocks
            monkeypatch.setattr(where, name, value)
        found = GaussNewton(objective, rows, checked=True, batch_size=4).apply(vectors)
        assert_close(found, expected)


def test_pairs_that_are_right_for_some_vectors_alone_are_not_kept():
    """Others come next: a vector that has nothing to do with the first ones is tried as well."""
    objective, rows = make("pooled signal")
    real, first = CapturedSum.summed, torch.zeros(20, objective.size, dtype=torch.float64)
    first[:, :3] = torch.randn(20, 3, dtype=torch.float64)

    def other(self, vectors):
        return real(self, vectors) * (1.0 if (vectors[:, 3:] == 0).all() else 1.001)

    curvature = GaussNewton(objective, rows, checked=True)
    with mock.patch.object(CapturedSum, "summed", other):
        curvature.apply(first)
        then = torch.randn(20, objective.size, dtype=torch.float64)
        found = curvature.apply(then)
    expected = GaussNewton(objective, rows, checked=True, route="autograd").apply(then)
    assert_close(found, expected)


@pytest.mark.parametrize("room", [2**30, 5000, 1], ids=["all", "some", "none"])
def test_what_is_captured_is_kept_for_products_to_come(room, monkeypatch):
    monkeypatch.setattr(captured_products, "_KEPT_BYTES", room)
    objective, rows = make("pooled signal")
    curvature = GaussNewton(objective, rows, checked=True, batch_size=5)
    plain = GaussNewton(objective, rows, checked=True, route="autograd")
    captured, real = [], FisherPairs._batch

    def counted(self, rows, *args):
        captured.append(len(rows))
        return real(self, rows, *args)

    monkeypatch.setattr(FisherPairs, "_batch", counted)
    monkeypatch.setattr(FisherPairs, "numbers_per_row", 1)
    generator = torch.Generator().manual_seed(1)
    for count in (20, 3, 20, 1):
        vectors = torch.randn(count, objective.size, generator=generator, dtype=torch.float64)
        assert_close(curvature.apply(vectors), plain.apply(vectors))
    captured.clear()
    curvature.apply(torch.randn(40, objective.size, dtype=torch.float64))
    least, most = {2**30: (0, 0), 1: (len(rows), len(rows)), 5000: (1, len(rows) - 1)}[room]
    assert least <= sum(captured) <= most


def test_a_ctrl_c_while_pairs_are_kept_has_none_counted_twice():
    objective, rows = make("pooled signal")
    vectors = torch.randn(8, objective.size, dtype=torch.float64)
    layout = captured_products.CapturedLayout.of(objective, rows)

    def fresh():
        return CapturedSum(objective, rows, layout, batch_size=5)

    expected, sums = fresh().summed(vectors), []

    def work():
        sums.append(fresh())
        sums[-1].summed(vectors)

    for _ in each_interruption(work, lambda code: code is CapturedSum._keep.__code__):
        assert_close(sums[-1].summed(vectors), expected)
    assert len(sums) > 5


def test_few_vectors_again_and_again_come_to_be_made_of_pairs():
    """As many as a row has outputs cost what sending those back does."""
    objective, rows = make("pooled signal")
    curvature = GaussNewton(objective, rows, checked=True)
    vectors = torch.randn(2, objective.size, dtype=torch.float64)
    for _ in range(3):
        curvature.apply(vectors)
    given, plain = [], BatchedCurvature._sum_of

    def counted(self, vectors, rows, **how):
        given.append(len(vectors))
        return plain(self, vectors, rows, **how)

    with mock.patch.object(BatchedCurvature, "_sum_of", counted):
        found = curvature.apply(vectors)
    assert not given
    assert_close(found, GaussNewton(objective, rows, route="autograd").apply(vectors))


def test_float32_is_near_float64():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(21, 3))
    x, y = torch.randn(30, 2, 9), torch.arange(30) % 3
    found, _, given = both(Objective(module, "cross_entropy"), Rows(x, y))
    _, expected, _ = both(Objective(module.double(), "cross_entropy"), Rows(x.double(), y))
    assert given == 2
    assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
