"""Solves with Kronecker factors: another library's scores, dense inverses, stored and restored."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CASES, digits, digits_mlp
from solver_systems import random_rhs, relative_error
from torch import nn
from torch.testing import assert_close

from influence_dag.curvature import DenseCurvature, GaussNewton, Hessian
from influence_dag.errors import IndefiniteError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC, KFAC, Blockwise, build, parameter_blocks

METHODS = [EKFAC(), KFAC(), EKFAC(fisher="empirical"), KFAC(fisher="sampled", seed=1)]
every = pytest.mark.parametrize("method", METHODS, ids=repr)


def make(name, dtype=torch.float64):
    module, x, y = CASES[name].make(dtype)
    return Objective(module, "cross_entropy"), Rows(x, y)


def digits_rows(arrays, which, dtype):
    return Rows(arrays[f"x_{which}"].to(dtype), arrays[f"y_{which}"])


def test_empirical_scores_are_kronfluences():
    arrays, module = digits(), digits_mlp()
    objective = Objective(module, "cross_entropy")
    train = digits_rows(arrays, "train", torch.float32)
    test = digits_rows(arrays, "test", torch.float32)[:100]
    factorization = EKFAC(fisher="empirical").factorize(Hessian(objective, train))
    factors = factorization.solve(per_sample_gradients(objective, test).dense(), damping=0.01).x
    expected = arrays["kronfluence_ekfac_empirical"]
    scores = per_sample_gradients(objective, train).inner(factors)
    assert (scores - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exact_fisher_is_nearer_to_the_hessian_than_the_empirical_one(dtype):
    arrays, module = digits(), digits_mlp(dtype)
    objective = Objective(module, "cross_entropy")
    train = digits_rows(arrays, "train", dtype)
    gradients = per_sample_gradients(objective, train)
    test = per_sample_gradients(objective, digits_rows(arrays, "test", dtype)[:100]).dense()

    def correlation(fisher):
        factors = EKFAC(fisher=fisher).factorize(GaussNewton(objective, train))
        scores = gradients.inner(factors.solve(test, damping=0.01).x).to(dtype)
        pairs = torch.stack([scores.flatten(), arrays["pydvl_direct_influences"].flatten()])
        return torch.corrcoef(pairs)[0, 1].item()

    assert correlation("exact") >= 0.86 > correlation("sampled") > correlation("empirical")


@every
@pytest.mark.parametrize("name", ["deep", "images", "norms", "frozen weight", "recurrent"])
@pytest.mark.parametrize("damping", [1.0, 1e-2, 1e-4])
def test_solves_are_those_of_the_matrix_that_the_blocks_stand_for(method, name, damping):
    objective, rows = make(name)
    factorization = method.factorize(GaussNewton(objective, rows))
    identity = torch.eye(objective.size, dtype=torch.float64)
    matrix = torch.linalg.inv(factorization.solve(identity, damping=1.0).x) - identity
    rhs = random_rhs(5, objective.size)
    expected = reference.damped_solve(matrix, rhs, damping)
    assert relative_error(factorization.solve(rhs, damping=damping).x, expected) <= 1e-7


@settings(max_examples=20, deadline=None)
@given(
    widths=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    bias=st.booleans(),
    n=st.integers(1, 12),
    method=st.sampled_from([EKFAC(), KFAC()]),
    damping=st.sampled_from([1e-1, 1e-3]),
    seed=st.integers(0, 10_000),
)
def test_bias_and_weight_keep_their_places(widths, bias, n, method, damping, seed):
    """One Linear layer with squared loss, where the factors are exact: G ⊗ A = 2/C I ⊗ A."""
    torch.manual_seed(seed)
    module = nn.Linear(*widths, bias=bias).double()
    objective = Objective(module, "mse")
    x, y = torch.randn(n, widths[0]).double() + 1, torch.randn(n, widths[1]).double()
    H = reference.hessian(module, nn.functional.mse_loss, x, y)
    rhs = random_rhs(6, objective.size)
    actual = method.factorize(Hessian(objective, Rows(x, y))).solve(rhs, damping=damping).x
    assert_close(actual, reference.damped_solve(H, rhs, damping), rtol=1e-6, atol=1e-8)


@settings(max_examples=10, deadline=None)
@given(method=st.sampled_from(METHODS), seed=st.integers(0, 10_000))
def test_signs_of_eigenvectors_do_not_matter(method, seed):
    objective, rows = make("images")
    factorization = method.factorize(GaussNewton(objective, rows))
    generator = torch.Generator().manual_seed(seed)

    def flipped(name, tensor):
        if not name.endswith("eigenvectors"):
            return tensor
        return tensor * (2 * torch.randint(0, 2, tensor.shape[1:], generator=generator) - 1)

    tensors = {name: flipped(name, tensor) for name, tensor in factorization.tensors().items()}
    rhs = random_rhs(5, objective.size)
    expected = factorization.solve(rhs, damping=0.01).x
    assert_close(method.restore(tensors, None).solve(rhs, damping=0.01).x, expected)


@every
@pytest.mark.parametrize("name", ["deep", "linear", "images", "norms", "tokens", "frozen layer"])
def test_stored_tensors_are_all_that_a_solve_needs(method, name):
    objective, rows = make(name)
    factorization = method.factorize(GaussNewton(objective, rows))
    stored = {
        name: factorization.tensors()[name].clone() for name in sorted(factorization.tensors())
    }
    restored = method.restore(stored, None)
    rhs = random_rhs(5, objective.size)
    expected, actual = (f.solve(rhs, damping=0.01) for f in (factorization, restored))
    assert_close(actual.x, expected.x, rtol=0, atol=0)
    assert actual.info == expected.info
    assert_close(restored.tensors(), stored, rtol=0, atol=0)


def test_info_names_layers_and_dense_blocks():
    objective, rows = make("norms")
    info = (
        EKFAC()
        .factorize(GaussNewton(objective, rows))
        .solve(random_rhs(1, objective.size), damping=0.1)
        .info
    )
    assert (info["captured_layers"], info["dense_blocks"]) == ("0, 4", "1, 3")
    assert 0 <= info["smallest_eigenvalue"] < info["largest_eigenvalue"]


@every
def test_the_dtype_of_the_right_hand_side_is_kept(method):
    objective, rows = make("deep", torch.float32)
    factorization = method.factorize(GaussNewton(objective, rows))
    rhs = random_rhs(3, objective.size)
    double = factorization.solve(rhs, damping=0.1).x
    single = factorization.solve(rhs.float(), damping=0.1).x
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert relative_error(single, double) <= 1e-5


def test_no_damping_is_refused_with_one_that_would_do():
    objective, rows = make("deep")
    rows.x[:, 0] = 0  # nothing is known about what it is multiplied with
    factorization = EKFAC().factorize(GaussNewton(objective, rows))
    rhs = random_rhs(1, objective.size)
    with pytest.raises(IndefiniteError, match="damping=0") as raised:
        factorization.solve(rhs, damping=0.0)
    assert factorization.solve(rhs, damping=raised.value.suggested_damping).x.isfinite().all()


@every
def test_as_a_preconditioner_it_is_the_damped_inverse(method):
    objective, rows = make("images")
    factorization = method.factorize(GaussNewton(objective, rows))
    rhs = random_rhs(4, objective.size)
    expected = factorization.solve(rhs, damping=0.05).x
    assert_close(factorization.precondition(rhs, damping=0.05), expected)
    assert factorization.precondition(rhs, damping=0.0).isfinite().all()


def test_a_curvature_without_a_model_is_refused():
    with pytest.raises(ValueError, match=r"KFAC looks into the layers .* DenseCurvature has none"):
        KFAC().factorize(DenseCurvature(torch.eye(3)))


def test_both_are_methods_by_name():
    assert build("ekfac", {"fisher": "sampled", "seed": 3}) == EKFAC(fisher="sampled", seed=3)
    assert build("kfac") == KFAC()


@pytest.mark.parametrize("method", [EKFAC(), KFAC(fisher="empirical")], ids=repr)
@pytest.mark.parametrize("name", ["deep", "images", "norms", "frozen layer", "recurrent"])
def test_by_layer_it_is_itself_with_a_damping_for_each(method, name):
    objective, rows = make(name)
    curvature = GaussNewton(objective, rows)
    blocks = parameter_blocks(objective.slices, "layer")
    first, *_ = blocks
    blockwise = Blockwise(method=method, blocks=blocks, dampings={first: 0.5})
    factorization = blockwise.factorize(curvature)
    rhs = random_rhs(3, objective.size)
    actual = factorization.solve(rhs, damping=0.01).x
    whole = method.factorize(curvature)
    expected = whole.solve(rhs, damping=0.01).x
    expected[:, blocks[first]] = whole.solve(rhs, damping=0.5).x[:, blocks[first]]
    assert_close(actual, expected)
    restored = blockwise.restore(factorization.tensors(), None)
    assert_close(restored.solve(rhs, damping=0.01).x, actual)


class Scaled(nn.Module):
    """With a parameter of its own beside a layer."""

    def __init__(self):
        super().__init__()
        self.net, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.net(x) * self.scale


def test_tensors_that_would_be_read_as_another_blocks_are_not_stored():
    torch.manual_seed(0)
    module = nn.ModuleDict({"net": Scaled()})
    module.forward = lambda x: module["net"](x)
    objective = Objective(module.double(), "cross_entropy")
    curvature = GaussNewton(objective, Rows(random_rhs(9, 3), torch.arange(9) % 2))
    blocks = parameter_blocks(objective.slices, "layer")
    assert list(blocks) == ["net", "net.net"]
    factorization = Blockwise(method=EKFAC(), blocks=blocks).factorize(curvature)
    with pytest.raises(ValueError, match=r"'net\.net\.dense_places' of block 'net' would be read"):
        factorization.tensors()
    names = [["net.scale"], ["net.net.weight", "net.net.bias"]]
    listed = Blockwise(method=EKFAC(), blocks=parameter_blocks(objective.slices, names))
    restored = listed.restore(listed.factorize(curvature).tensors(), None)
    rhs = random_rhs(3, objective.size)
    expected = factorization.solve(rhs, damping=0.1).x
    assert_close(restored.solve(rhs, damping=0.1).x, expected)


def test_a_bias_apart_from_its_weight_is_a_dense_block():
    objective, rows = make("linear")
    curvature = GaussNewton(objective, rows)
    blocks = parameter_blocks(objective.slices, [["bias"], ["weight"]])
    factorization = Blockwise(method=EKFAC(), blocks=blocks).factorize(curvature)
    rhs = random_rhs(3, objective.size)
    info = factorization.solve(rhs, damping=0.01)
    assert info.info["0.dense_blocks"] == info.info["1.captured_layers"] == "model"
    index = blocks["0"]
    H = curvature.dense()[index][:, index]
    assert_close(info.x[:, index], reference.damped_solve(H, rhs[:, index], 0.01))


def test_part_of_a_parameter_is_refused():
    objective, rows = make("linear")
    blocks = {"a": torch.arange(3), "b": torch.arange(3, objective.size)}
    with pytest.raises(ValueError, match=r"3 of the 15 numbers .* at 0:15 .* whole parameters"):
        Blockwise(method=EKFAC(), blocks=blocks).factorize(GaussNewton(objective, rows))


class SharedTable(nn.Module):
    """A table of tokens that puts them out as well, which no layer has as a product."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner = nn.Embedding(5, 3), nn.Linear(3, 3)

    def forward(self, tokens):
        return torch.tanh(self.inner(self.embed(tokens).mean(1))) @ self.embed.weight.T


def test_parameters_without_their_layer_stand_in_any_order_in_a_block():
    torch.manual_seed(0)
    tokens = torch.randint(5, (7, 4))
    objective = Objective(SharedTable().double(), "cross_entropy")
    G = GaussNewton(objective, Rows(tokens, torch.arange(7) % 5))
    names = [["inner.bias", "embed.weight"], ["inner.weight"]]
    blocks = parameter_blocks(objective.slices, names)
    rhs = random_rhs(2, objective.size)
    x = Blockwise(method=EKFAC(), blocks=blocks).factorize(G).solve(rhs, damping=0.1).x
    for name in names[0]:  # dense each, and what couples them left out
        own = objective.slices[name]
        expected = reference.damped_solve(G.dense()[own, own], rhs[:, own], 0.1)
        assert_close(x[:, own], expected)
