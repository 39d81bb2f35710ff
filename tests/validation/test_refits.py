import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from influence_dag.errors import ModelError, NotConvergedError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation.refits import leaving_out, refit

PENALTY = 0.05


def half_square(output, target):
    return (output.squeeze(1) - target).square() / 2


@pytest.fixture
def regression() -> tuple[Objective, Rows]:
    x = torch.randn(30, 4, dtype=torch.float64)
    y = x @ torch.arange(4.0, dtype=torch.float64) + torch.randn(30, dtype=torch.float64)
    return Objective(nn.Linear(4, 1, bias=False).double(), half_square), Rows(x, y)


@pytest.fixture
def clouds() -> Rows:
    y = torch.arange(60) % 3
    return Rows(torch.randn(60, 3, dtype=torch.float64) + 1.5 * F.one_hot(y, 3), y)


def network(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> Objective:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return Objective(module.to(dtype), "cross_entropy")


def weighted_ridge(rows: Rows, weights: torch.Tensor) -> torch.Tensor:
    H = rows.x.T @ (weights[:, None] * rows.x) + PENALTY * torch.eye(4, dtype=torch.float64)
    return torch.linalg.solve(H, rows.x.T @ (weights * rows.y))


@pytest.mark.parametrize("start", ["given", "own"])
def test_weighted_ridge_regressions_are_those_of_the_normal_equations(regression, start):
    objective, rows = regression
    weights = torch.rand(7, 30, dtype=torch.float64) / 30
    first = None if start == "given" else torch.randn(7, 4, dtype=torch.float64)
    refits = refit(objective, rows, weights, weight_decay=PENALTY, start=first, tolerance=1e-11)
    expected = torch.stack([weighted_ridge(rows, w) for w in weights])
    assert (refits.params - expected).abs().max() <= 1e-9


def test_leaving_out_keeps_the_weights_of_the_others(regression):
    objective, rows = regression
    refits = refit(objective, rows, leaving_out(rows.shares, [4, 17]), weight_decay=PENALTY)
    for position, theta in zip([4, 17], refits.params, strict=True):
        weights = torch.full((30,), 1 / 30, dtype=torch.float64)
        weights[position] = 0
        assert (theta - weighted_ridge(rows, weights)).abs().max() <= 1e-7


def test_convex_refits_are_scipys(clouds):
    objective = Objective(nn.Linear(3, 3).double(), "cross_entropy")
    weights = torch.rand(3, 60, dtype=torch.float64) / 60
    refits = refit(objective, clouds, weights, weight_decay=PENALTY)

    def value_and_gradient(theta, w):
        theta = torch.tensor(theta, requires_grad=True)
        logits = clouds.x @ theta[:9].view(3, 3).T + theta[9:]
        loss = w @ F.cross_entropy(logits, clouds.y, reduction="none")
        loss = loss + PENALTY / 2 * theta @ theta
        return loss.item(), torch.autograd.grad(loss, theta)[0].numpy()

    for w, theta in zip(weights, refits.params, strict=True):
        result = minimize(value_and_gradient, np.zeros(12), args=(w,), jac=True, tol=1e-12)
        assert np.abs(theta.numpy() - result.x).max() <= 1e-6


@pytest.mark.parametrize("subset", [20, 60])
def test_a_network_refitted_from_other_weights_reaches_a_stationary_point(clouds, subset):
    weights = torch.zeros(5, 60, dtype=torch.float64)
    for row in weights:
        row[torch.randperm(60)[:subset]] = 1 / subset
    start = torch.stack([network(seed=k).params for k in range(5)])
    refits = refit(
        network(), clouds, weights, weight_decay=PENALTY, start=start, tolerance=1e-7, max_steps=500
    )
    for w, theta in zip(weights, refits.params, strict=True):
        first, bias, second, last = theta.requires_grad_().split([12, 4, 12, 3])
        hidden = torch.tanh(clouds.x @ first.view(4, 3).T + bias)
        losses = F.cross_entropy(hidden @ second.view(3, 4).T + last, clouds.y, reduction="none")
        value = w @ losses + PENALTY / 2 * theta @ theta
        assert torch.autograd.grad(value, theta)[0].norm() <= 1.1e-7
        assert value < np.log(3)


def test_members_do_not_influence_each_other(clouds):
    weights = torch.rand(6, 60, dtype=torch.float64) / 60
    together = refit(network(), clouds, weights, weight_decay=PENALTY, start=network(seed=3).params)
    alone = refit(
        network(), clouds, weights[4:5], weight_decay=PENALTY, start=network(seed=3).params
    )
    assert (together.params[4] - alone.params[0]).abs().max() <= 1e-7


def test_rows_without_weight_may_be_anything_finite(clouds):
    weights = torch.zeros(2, 60, dtype=torch.float64)
    weights[0, :20], weights[1, 30:60] = 1 / 20, 1 / 30
    both = refit(network(), clouds, weights, weight_decay=PENALTY)
    few = refit(
        network(), clouds[:20], weights[:1, :20], weight_decay=PENALTY, start=network().params
    )
    assert (both.losses(clouds)[0] - few.losses(clouds)[0]).abs().max() <= 1e-6


def test_refits_of_a_float32_model_are_float64(clouds):
    weights = torch.full((1, 60), 1 / 60)
    refits = refit(
        network(dtype=torch.float32), clouds.to(dtype=torch.float32), weights, weight_decay=PENALTY
    )
    assert refits.params.dtype == torch.float64
    assert refits.converged.all()


def test_refits_start_at_the_objectives_parameters_whatever_became_of_its_module(clouds):
    objective = network(dtype=torch.float32)
    start = objective.params.double()
    with torch.no_grad():
        for parameter in objective.module.parameters():
            parameter.zero_()
    weights = torch.full((1, 60), 1 / 60)
    kept = refit(objective, clouds, weights, weight_decay=PENALTY, max_steps=0, on_failure="keep")
    assert torch.equal(kept.params[0], start)
    assert torch.equal(kept.member(0).params, start)


def test_a_start_from_a_modules_parameters_leaves_no_graph(regression):
    """Each step would be kept with all before it: theta of autograd is a start like any other."""
    objective, rows = regression
    start = nn.utils.parameters_to_vector(objective.module.parameters())
    assert start.requires_grad
    refits = refit(objective, rows, rows.shares[None], weight_decay=PENALTY, start=start)
    assert not refits.params.requires_grad


def test_convolutions_and_recurrent_models_refit_too():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    images = Rows(torch.randn(12, 1, 4, 4, dtype=torch.float64), torch.arange(12) % 2)
    sequences = Rows(torch.randn(12, 5, 2, dtype=torch.float64), torch.arange(12) % 2)
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    for module, rows in [(convolution, images), (Recurrent(), sequences)]:
        objective = Objective(module.double(), "cross_entropy")
        refits = refit(objective, rows, leaving_out(rows.shares, [0, 5]), weight_decay=0.1)
        assert refits.converged.all()


def test_a_refit_that_misses_its_tolerance_is_an_error_that_says_by_how_much(clouds):
    weights = torch.full((3, 60), 1 / 60)
    hopeless = {"weight_decay": PENALTY, "tolerance": 1e-9, "max_steps": 2, "metric": None}
    with pytest.raises(NotConvergedError, match="3 of 3 refits missed tolerance=1e-09"):
        refit(network(), clouds, weights, **hopeless)
    kept = refit(network(), clouds, weights, **hopeless, on_failure="keep")
    assert not kept.converged.any()
    assert kept.summary()["worst_gradient_norm"] > 1e-9


def test_weights_and_starts_of_another_shape_are_refused(clouds):
    with pytest.raises(ModelError, match=r"weights have shape \(2, 59\); wanted \(members, 60\)"):
        refit(network(), clouds, torch.ones(2, 59), weight_decay=PENALTY)
    with pytest.raises(ModelError, match=r"start has shape \(30,\); wanted \(31,\) or \(2, 31\)"):
        refit(network(), clouds, torch.ones(2, 60), weight_decay=PENALTY, start=torch.ones(30))
