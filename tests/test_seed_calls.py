"""Calls as other libraries document them, on ordinary models, with their default: no damping.

Compared with `reference`'s autograd Hessian in float64 and its pseudo-inverse.
"""

import time
import warnings

import pytest
import reference
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from influence_dag import (
    InverseHvpResult,
    TorchTwiceDifferentiable,
    compute_influence_factors,
    compute_influences,
    solve_hvp,
)
from influence_dag.errors import IndefiniteError
from influence_dag.solvers import parameter_blocks

SECONDS = 10  # for any one call
N, TEST, FEATURES = 120, 6, 8


def classification(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    score = x @ torch.randn(FEATURES, 3, generator=torch.Generator().manual_seed(9))
    return x, (score + 2 * torch.randn(n, 3, generator=generator)).argmax(1)


def regression(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    x = torch.cat([x, x[:, :1] - x[:, 1:2]], dim=1)  # a column that others determine
    return x, x[:, :1].sin() + 0.1 * torch.randn(n, 1, generator=generator)


def classifier():
    return nn.Linear(FEATURES, 3), nn.functional.cross_entropy, classification


def regressor():
    return nn.Linear(FEATURES + 1, 1), nn.functional.mse_loss, regression


def mlp():
    network = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 3))
    return network, nn.functional.cross_entropy, classification


class Problem:
    """A model fitted as users do, its loaders, and the curvature from elsewhere."""

    def __init__(self, make, dtype):
        torch.manual_seed(0)
        module, self.loss, rows = make()
        self.module = module.to(dtype)

        def of(n, seed):
            x, y = rows(n, seed)
            return x.to(dtype), y.to(dtype) if y.is_floating_point() else y

        self.train, self.test = of(N, 0), of(TEST, 1)
        self.fit(steps=20 if len(list(self.module.children())) > 1 else 300)
        self.wrapped = TorchTwiceDifferentiable(self.module, self.loss, torch.device("cpu"))
        self.loaders = [
            DataLoader(TensorDataset(*data), batch_size=size)
            for data, size in ((self.train, 32), (self.test, 5))
        ]
        self.H = reference.hessian(self.module, self.loss, *self.train)
        self.gradients = reference.per_sample_gradients(self.module, self.loss, *self.test)
        self.of_train = reference.per_sample_gradients(self.module, self.loss, *self.train)
        share = 1e-12 if dtype == torch.float64 else 1e-6
        self.inverse = torch.linalg.pinv(self.H, hermitian=True, rtol=share)

    def fit(self, steps):
        optimizer = torch.optim.Adam(self.module.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss(self.module(self.train[0]), self.train[1]).backward()
            optimizer.step()


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["single", "double"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=[classifier, regressor], ids=lambda make: make.__name__)
def convex(request, dtype):
    return Problem(request.param, dtype)


@pytest.fixture(scope="module")
def network(dtype):
    return Problem(mlp, dtype)


@pytest.fixture(autouse=True)
def within_seconds():
    start = time.process_time()
    yield
    assert time.process_time() - start <= SECONDS


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def limit(problem, method="direct"):
    if method == "lissa":  # steps of 1e-4 and directions of little curvature
        return 0.3
    return 2e-3 if next(problem.module.parameters()).dtype == torch.float32 else 1e-5


CG = {"x0": None, "rtol": 1e-7, "atol": 1e-7, "maxiter": None}
LISSA = {"maxiter": 1000, "dampen": 0.0, "scale": 10.0, "h0": None, "rtol": 1e-4}
ARNOLDI = {
    "hessian_perturbation": 0.0,
    "rank_estimate": 10,
    "tol": 1e-6,
    "eigen_computation_on_gpu": False,
}


def test_influences_without_any_setting(convex):
    values = compute_influences(convex.wrapped, *convex.loaders)
    expected = convex.gradients @ convex.inverse @ convex.of_train.T
    assert values.shape == (TEST, N)
    assert relative_error(values, expected) <= limit(convex)


def test_perturbation_influences_without_any_setting(convex):
    values = compute_influences(convex.wrapped, *convex.loaders, influence_type="perturbation")
    factors = convex.gradients @ convex.inverse
    expected = reference.mixed_products(convex.module, convex.loss, factors, *convex.train)
    assert values.shape == expected.shape
    assert relative_error(values, expected) <= limit(convex)


@pytest.mark.parametrize("method", ["direct", "cg"])
def test_influence_factors_without_damping(convex, method):
    result = compute_influence_factors(convex.wrapped, *convex.loaders, inversion_method=method)
    assert isinstance(result, InverseHvpResult)
    assert relative_error(result.x, convex.gradients @ convex.inverse) <= limit(convex)


def test_the_rank_is_told_and_the_answer_is_the_one_of_least_norm(convex):
    result = compute_influence_factors(convex.wrapped, *convex.loaders)
    values, vectors = torch.linalg.eigh(convex.H)
    zeros = values < 1e-5 * values[-1]
    assert zeros.any()
    assert result.info["rank"] == int((~zeros).sum())
    along = (result.x.double() @ vectors[:, zeros]).norm()
    assert along <= limit(convex) * result.x.double().norm()


def test_cg_with_settings(convex):
    values = compute_influences(
        convex.wrapped,
        *convex.loaders,
        inversion_method="cg",
        hessian_regularization=1e-4,
        maxiter=100,
        rtol=0.01,
    )
    damped = convex.H + 1e-4 * torch.eye(len(convex.H), dtype=torch.float64)
    expected = torch.linalg.solve(damped, convex.gradients.T).T @ convex.of_train.T
    assert relative_error(values, expected) <= 0.05


def test_solve_hvp_direct(convex):
    b = convex.gradients.to(convex.train[0])
    result = solve_hvp("direct", convex.wrapped, convex.loaders[0], b)
    assert relative_error(result.x, convex.gradients @ convex.inverse) <= limit(convex)
    assert relative_error(result.info["hessian"], convex.H) <= 1e-5


@pytest.mark.parametrize("preconditioner", [None, "none", "jacobi", "nystroem", "ekfac"])
def test_solve_hvp_cg(convex, preconditioner):
    b = convex.gradients.to(convex.train[0])
    extra = {} if preconditioner is None else {"preconditioner": preconditioner}
    result = solve_hvp("cg", convex.wrapped, convex.loaders[0], b, **CG, **extra)
    assert result.info["converged"].all()
    assert (result.info["gamma"] <= torch.maximum(2e-6 * b.norm(dim=1), torch.tensor(2e-6))).all()
    assert relative_error(result.x, convex.gradients @ convex.inverse) <= limit(convex)


@pytest.mark.filterwarnings("ignore:.*series still move:RuntimeWarning")
def test_solve_hvp_lissa(convex):
    b = convex.gradients.to(convex.train[0])
    result = solve_hvp("lissa", convex.wrapped, convex.loaders[0], b, **LISSA)
    expected = convex.gradients @ convex.inverse
    assert relative_error(result.x, expected) <= limit(convex, "lissa")
    assert result.info["converged"].shape == (TEST,)
    assert result.info["max_perc_residual"].shape == result.info["mean_perc_residual"].shape


def test_solve_hvp_arnoldi(convex):
    b = convex.gradients.to(convex.train[0])
    result = solve_hvp("arnoldi", convex.wrapped, convex.loaders[0], b, **ARNOLDI)
    values, vectors = torch.linalg.eigh(convex.H)
    order = values.abs().argsort(descending=True)[: min(10, int((values > 1e-5).sum()))]
    V, top = vectors[:, order], values[order]
    expected = ((convex.gradients @ V) / top) @ V.T
    assert relative_error(result.x, expected) <= limit(convex)
    assert set(result.info) >= {"eigenvalues", "eigenvectors"}


# A network, whose Hessian is indefinite ----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the smallest eigenvalue is:RuntimeWarning")
def test_direct_says_that_a_network_is_not_at_a_minimum_and_what_would_do(network):
    with pytest.raises(IndefiniteError) as caught:
        compute_influences(network.wrapped, *network.loaders)
    smallest = torch.linalg.eigvalsh(network.H)[0].item()
    assert caught.value.suggested_damping == pytest.approx(-2 * smallest, rel=0.1)
    for damping in (caught.value.suggested_damping, "auto"):
        values = compute_influences(
            network.wrapped, *network.loaders, hessian_regularization=damping
        )
        assert values.isfinite().all()


def test_cg_keeps_what_it_has_of_a_network_with_a_word(network):
    with pytest.warns(RuntimeWarning, match="systems missed"):
        result = compute_influence_factors(network.wrapped, *network.loaders, inversion_method="cg")
    assert not result.info["converged"].all()
    assert result.x.isfinite().all()


def test_arnoldi_on_a_network(network):
    b = network.gradients.to(network.train[0])
    result = solve_hvp("arnoldi", network.wrapped, network.loaders[0], b, **ARNOLDI)
    values, vectors = torch.linalg.eigh(network.H)
    order = values.abs().argsort(descending=True)[:10]
    V = vectors[:, order]
    expected = ((network.gradients @ V) / values[order]) @ V.T
    assert relative_error(result.x, expected) <= limit(network)


def test_lissa_on_a_network_diverges_as_published_and_says_why(network):
    b = network.gradients.to(network.train[0])
    with pytest.raises(IndefiniteError, match="smallest eigenvalue of H is -"):
        solve_hvp("lissa", network.wrapped, network.loaders[0], b, **LISSA)
    damped = LISSA | {"hessian_perturbation": 0.3}
    result = solve_hvp("lissa", network.wrapped, network.loaders[0], b, **damped)
    expected = reference.damped_solve(network.H, network.gradients, 0.3)
    assert relative_error(result.x, expected) <= 1e-2


def test_an_unlucky_right_hand_side_is_refused_with_numbers(dtype):
    problem = Problem(classifier, dtype)
    b = torch.randn(3, problem.wrapped.num_params, dtype=dtype)
    with pytest.raises(IndefiniteError, match=r"3 of 3 right-hand sides \(rows 0, 1, 2\)"):
        solve_hvp("direct", problem.wrapped, problem.loaders[0], b)


def test_a_damping_that_leaves_little_of_negative_curvature_is_warned_about(network):
    smallest = torch.linalg.eigvalsh(network.H)[0].item()
    with pytest.warns(RuntimeWarning, match="smallest eigenvalue is .* a damping of"):
        compute_influences(
            network.wrapped, *network.loaders, hessian_regularization=-1.5 * smallest
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute_influences(
            network.wrapped, *network.loaders, hessian_regularization=-2.1 * smallest
        )


def test_blocks_are_warned_about_by_their_own_curvature(network):
    cuts = parameter_blocks(network.wrapped.objective.slices, "layer")
    smallest = {
        name: torch.linalg.eigvalsh(network.H[k][:, k])[0].item() for name, k in cuts.items()
    }
    worst = min(smallest, key=smallest.__getitem__)
    of_blocks = {"blocks": "layer", "hessian_regularization": -1.5 * smallest[worst]}
    with pytest.warns(RuntimeWarning, match=f"eigenvalue of block '{worst}' is .* a damping of"):
        compute_influences(network.wrapped, *network.loaders, **of_blocks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        damped = of_blocks | {"block_damping": {worst: -2.1 * smallest[worst]}}
        compute_influences(network.wrapped, *network.loaders, **damped)


@pytest.mark.filterwarnings("ignore:the smallest eigenvalue is:RuntimeWarning")
@pytest.mark.parametrize("method", ["direct", "cg", "nystroem"])
def test_an_automatic_damping_is_told(network, method):
    result = compute_influence_factors(
        network.wrapped,
        *network.loaders,
        inversion_method=method,
        hessian_regularization="auto",
        curvature="gauss_newton",
    )
    G = result.info["damping"] * len(network.H)
    hessian = compute_influence_factors(
        network.wrapped, *network.loaders, curvature="gauss_newton", hessian_regularization=1.0
    ).info["hessian"]
    assert pytest.approx(hessian.diagonal().sum().item(), rel=0.3) == G
    assert "trace / p" in result.info["damping_reason"]
