"""Scores computed inside the eigenbasis against those of solved factors."""

import pytest
import torch
from networks import CASES, digits, digits_mlp
from torch import nn
from torch.testing import assert_close

from influence_dag.curvature import GaussNewton
from influence_dag.errors import IndefiniteError
from influence_dag.gradients.per_sample import Gradients, LinearGradients, per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import kronecker_scores
from influence_dag.solvers.ekfac import EKFAC, KFAC
from influence_dag.solvers.kronecker_scores import RotatedGradients


def make(name, method):
    module, x, y = CASES[name].make()
    return scene(module, Rows(x, y), method)


def scene(module, rows, method):
    objective = Objective(module, "cross_entropy")
    factorization = method.factorize(GaussNewton(objective, rows))
    return factorization, per_sample_gradients(objective, rows)


def wide(positions=()):
    """Layers wide enough to be kept as pairs, on vectors or on sequences."""
    torch.manual_seed(0)
    flat = nn.Flatten() if not positions else nn.Sequential(nn.Flatten(), nn.Linear(20, 3))
    module = nn.Sequential(
        nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 10 if positions else 3), flat
    ).double()
    return module, Rows(torch.randn(25, *positions, 30).double(), torch.randint(0, 3, (25,)))


@pytest.mark.parametrize("method", [EKFAC(), KFAC()], ids=repr)
@pytest.mark.parametrize("name", ["deep", "images", "signal", "norms", "frozen weight", "linear"])
def test_scores_are_those_of_solved_factors(name, method):
    factorization, gradients = make(name, method)
    dense = gradients.dense()
    expected = factorization.solve(dense[:4], damping=0.01).x @ dense.T
    rotated = RotatedGradients.of(factorization, gradients)
    assert_close(rotated.influences(gradients[:4], damping=0.01), expected)


@pytest.mark.parametrize("method", [EKFAC(), KFAC()], ids=repr)
@pytest.mark.parametrize("name", ["deep", "images", "signal", "norms", "frozen weight", "linear"])
def test_own_influences_and_factors_are_those_of_solves(name, method):
    factorization, gradients = make(name, method)
    dense = gradients.dense()
    factors = factorization.solve(dense, damping=0.01).x
    rotated = RotatedGradients.of(factorization, gradients)
    own, lengths = rotated.own_influences(damping=0.01)
    assert_close(own, (factors * dense).sum(1))
    assert_close(lengths, factors.norm(dim=1))
    assert_close(rotated.solved(damping=0.01), factors)


@pytest.mark.parametrize("positions", [(), (2,)])
def test_own_influences_of_pairs_are_those_of_solves(positions):
    module, rows = wide(positions)
    factorization, gradients = scene(module, rows, EKFAC())
    dense = gradients.dense()
    factors = factorization.solve(dense, damping=0.01).x
    rotated = RotatedGradients.of(factorization, gradients)
    own, lengths = rotated.own_influences(damping=0.01)
    assert_close(own, (factors * dense).sum(1))
    assert_close(lengths, factors.norm(dim=1))
    assert_close(rotated.solved(damping=0.01), factors)


def test_own_influences_of_tiny_gradients_in_float32_are_not_lost():
    """Their squares are below the smallest number of that precision."""
    module, rows = wide()
    factorization, gradients = scene(module.float(), rows.to(dtype=torch.float32), EKFAC())
    own, lengths = RotatedGradients.of(factorization, gradients).own_influences(damping=0.01)
    tensors = {
        name: values * (1e-22 if "output" in name else 1)
        for name, values in gradients.tensors().items()
    }
    tiny = Gradients.assembled(gradients.layout, tensors)
    found, short = RotatedGradients.of(factorization, tiny).own_influences(damping=0.01)
    assert_close(found * 1e44, own, rtol=1e-4, atol=0)
    assert_close(short * 1e22, lengths, rtol=1e-4, atol=0)


@pytest.mark.parametrize("positions", [(), (2,)])
@pytest.mark.parametrize("bias", [True, False])
def test_pairs_stay_pairs_and_give_the_same_scores(positions, bias):
    module, rows = wide(positions)
    if not bias:
        module[0].bias = None
    factorization, gradients = scene(module, rows, EKFAC())
    rotated = RotatedGradients.of(factorization, gradients)
    kept = [type(block) for block in gradients.blocks]
    assert [type(block) for block in rotated.gradients.blocks] == kept
    assert kept[0] is LinearGradients
    dense = gradients.dense()
    expected = factorization.solve(dense[:4], damping=0.01).x @ dense.T
    assert_close(rotated.influences(gradients[:4], damping=0.01), expected)


def test_digits_scores_are_kronfluences():
    arrays, objective = digits(), Objective(digits_mlp(), "cross_entropy")
    train = Rows(arrays["x_train"], arrays["y_train"])
    test = per_sample_gradients(objective, Rows(arrays["x_test"][:100], arrays["y_test"][:100]))
    factorization = EKFAC(fisher="empirical").factorize(GaussNewton(objective, train))
    rotated = RotatedGradients.of(factorization, per_sample_gradients(objective, train))
    expected = arrays["kronfluence_ekfac_empirical"]
    scores = rotated.influences(test, damping=0.01)
    assert (scores - expected).abs().max() <= 5e-6 * expected.abs().max()


def test_gradients_of_another_network_are_refused():
    factorization, _ = make("deep", EKFAC())
    _, gradients = make("linear", EKFAC())
    with pytest.raises(ValueError, match=r"no parameter at 0:20 .* another network"):
        RotatedGradients.of(factorization, gradients)


def test_no_damping_is_refused_as_in_a_solve():
    module, rows = wide()
    rows.x[:, 0] = 0
    factorization, gradients = scene(module, rows, EKFAC())
    with pytest.raises(IndefiniteError):
        RotatedGradients.of(factorization, gradients).influences(gradients[:2], damping=0.0)
    with pytest.raises(IndefiniteError):
        RotatedGradients.of(factorization, gradients).own_influences(damping=0.0)
    with pytest.raises(IndefiniteError):
        RotatedGradients.of(factorization, gradients).solved(damping=0.0)


@pytest.mark.parametrize("positions", [(), (2,)], ids=str)
def test_what_is_held_at_once_changes_nothing(positions, monkeypatch):
    factorization, gradients = scene(*wide(positions), EKFAC())
    rotated = RotatedGradients.of(factorization, gradients)

    def found():
        own, lengths = rotated.own_influences(damping=0.1)
        return rotated.solved(damping=0.1), own, lengths, rotated.influences(gradients, damping=0.1)

    whole = found()
    monkeypatch.setattr(kronecker_scores, "_NUMBERS", 4_000)  # three rows of a layer
    monkeypatch.setattr(kronecker_scores, "_WRITTEN", 4_000)
    for part, all_at_once in zip(found(), whole, strict=True):
        assert_close(part, all_at_once)
