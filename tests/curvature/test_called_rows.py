"""K-FAC's activations are of the calls that a row makes by itself, whatever its batch calls."""

import warnings
from unittest import mock

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from influence_dag.curvature import GaussNewton, called_rows
from influence_dag.curvature.kronecker import kronecker_sums
from influence_dag.curvature.kronecker_layout import KroneckerLayout
from influence_dag.curvature.kronecker_pairs import FisherPairs
from influence_dag.gradients.uncaptured import NotCaptured
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import build


class Optional(nn.Module):
    """A second layer for rows that ask for it, called when one of a batch does."""

    def __init__(self, dead=False, trimmed=False):
        super().__init__()
        self.inner, self.extra = nn.Linear(3, 3), nn.Linear(3, 3)
        self.trimmed = trimmed
        if dead:
            nn.init.constant_(self.extra.bias, -100.0)

    def forward(self, x, asks):
        hidden = torch.tanh(self.inner(x))
        if self.trimmed:  # as many copies of a row as the longest of the batch has
            copies = hidden[:, None].expand(-1, int(asks.max()) + 1, -1)
            there = torch.arange(copies.shape[1]) <= asks[:, None]
            return (torch.relu(self.extra(copies)) * there[..., None]).sum(1)
        if (asks > 0).any():
            hidden = torch.where((asks > 0)[:, None], torch.relu(self.extra(hidden)), hidden)
        return hidden


def problem(n=12, **kwargs):
    torch.manual_seed(0)
    module = Optional(**kwargs).double()
    asks = torch.arange(n) % 3
    asks[:1] = 1
    x = {"x": torch.randn(n, 3, dtype=torch.float64), "asks": asks}
    return Objective(module, "cross_entropy"), Rows(x, torch.arange(n) % 3)


def activations(objective, rows, batch_size):
    layout = KroneckerLayout.of(objective, rows)
    return kronecker_sums(FisherPairs(objective, rows, layout, batch_size=batch_size), layout)


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "dead for all"])
def test_rows_that_do_not_call_a_layer_are_not_counted_for_it(dead):
    objective, rows = problem(dead=dead)
    inner = torch.tanh(objective.module.inner(rows.x["x"])).detach()
    asking = torch.cat([inner, torch.ones(len(inner), 1).double()], 1)[rows.x["asks"] > 0]
    for batch_size in (1, 5, 12):
        sums = activations(objective, rows, batch_size)
        assert [layer.name for layer in sums.layout.layers] == ["inner", "extra"]
        assert_close(sums.activations[1], asking.T @ asking)


def test_rows_whose_units_are_all_dead_count_as_published():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    objective = Objective(module, "cross_entropy")
    x = torch.randn(20, 3, dtype=torch.float64) * 3
    rows = Rows(x, torch.arange(20) % 2)
    assert (module[1](module[0](x)) == 0).all(1).any()  # such rows are there
    with mock.patch.object(called_rows, "_calls", side_effect=AssertionError):  # one look is enough
        sums = activations(objective, rows, 7)
    with_one = torch.cat([x, torch.ones(20, 1).double()], 1)
    assert_close(sums.activations[0], with_one.T @ with_one)


def test_a_layer_that_alone_sees_fewer_positions_is_not_captured():
    objective, rows = problem(trimmed=True)
    layout = KroneckerLayout.of(objective, rows)
    for batch_size in (1, 5, 12):
        with pytest.raises(NotCaptured, match="'extra'"):
            kronecker_sums(FisherPairs(objective, rows, layout, batch_size=batch_size), layout)


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize("trimmed", [False, True])
def test_neither_order_nor_batches_change_an_inverse(method, trimmed):
    objective, rows = problem(trimmed=trimmed)
    solver, rhs = build(method), torch.eye(objective.size, dtype=torch.float64)
    found = []
    for order in (torch.arange(12), torch.arange(12).flip(0), rows.x["asks"].argsort()):
        for batch_size in (1, 4, 12):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a layer that is left to autograd
                curvature = GaussNewton(objective, rows[order], batch_size=batch_size)
                found.append(solver.factorize(curvature).solve(rhs, damping=0.1).x)
    for other in found[1:]:
        assert_close(other, found[0])


class Padded(nn.Module):
    """An encoder layer of torch's, which runs as one kernel where no gradient is recorded."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x, padding):
        hidden = self.layer(x, src_key_padding_mask=padding)
        return self.out((hidden * ~padding[..., None]).sum(1))


def test_positions_that_are_padding_count_as_they_are_called():
    torch.manual_seed(0)
    module, n = Padded().double().eval(), 9
    padding = torch.arange(5) >= (torch.arange(n) % 4 + 2)[:, None]
    x = {"x": torch.randn(n, 5, 4, dtype=torch.float64), "padding": padding}
    rows, seen = Rows(x, torch.arange(n) % 3), []
    with module.layer.linear1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0])):
        module(**x)
    a = seen[0].detach().flatten(0, 1)
    a = torch.cat([a, torch.ones(len(a), 1).double()], 1)
    objective = Objective(module, "cross_entropy")
    for batch_size in (1, 4, 9):
        sums = activations(objective, rows, batch_size)
        place = [layer.name for layer in sums.layout.layers].index("layer.linear1")
        assert_close(sums.activations[place], a.T @ a)
