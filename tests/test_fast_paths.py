"""Short cuts serve only what they were shown right for: all rows, whichever come first."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.testing import assert_close

import influence_dag as idag
from influence_dag.curvature import GaussNewton, Hessian
from influence_dag.errors import ModelError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.influence.perturbation import perturbation_influences
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC

F64 = torch.float64


class Sorting(nn.Module):
    """Sorts its rows by length and puts the outputs back."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x, length):
        order = torch.argsort(length, descending=True, stable=True)
        hidden = torch.tanh(self.inner(x[order])) * length[order, None]
        return self.outer(hidden[torch.argsort(order)])


class Unrolled(nn.Module):
    """A cell that runs as often as the longest row of the batch is long."""

    def __init__(self):
        super().__init__()
        self.cell, self.outer = nn.Linear(9, 4), nn.Linear(4, 3)

    def forward(self, x, length):
        hidden = x.new_zeros(len(x), 4)
        for t in range(int(length.max())):
            new = torch.tanh(self.cell(torch.cat([x, hidden], 1)))
            hidden = torch.where((t < length)[:, None], new, hidden)
        return self.outer(hidden)


class Routed(nn.Module):
    """Sends each row to one of two experts, by its length."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])

    def forward(self, x, length):
        out = x.new_zeros(len(x), 3)
        for k, expert in enumerate(self.experts):
            out[length % 2 == k] = torch.tanh(expert(x[length % 2 == k]))
        return out


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x, length):
        steps = x[:, None].expand(-1, 3, -1) * torch.arange(1.0, 4)[:, None].to(x)
        packed = nn.utils.rnn.pack_padded_sequence(
            steps, length.cpu(), batch_first=True, enforce_sorted=False
        )
        return self.outer(self.inner(packed)[1][0])


class Clipped(nn.Module):
    """Hidden vectors cut to a largest norm, which short rows stay below."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x, length):
        hidden = self.inner(x * length[:, None])
        return self.outer(hidden * (3 / hidden.norm(dim=1, keepdim=True)).clamp(max=1))


MODELS = [Sorting, Unrolled, Routed, Packed, Clipped]


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def case(request):
    torch.manual_seed(0)
    module = request.param().to(F64).eval()
    length = torch.tensor([1, 1, 1, 1, 3, 2, 1, 3, 3, 2, 1, 3])
    x, y = torch.randn(12, 5, dtype=F64), torch.randint(0, 3, (12,))
    return module, Rows((x, length), y)


def true_gradients(module, rows):
    """Each row alone, by plain autograd."""
    parameters = list(module.parameters())
    each = []
    for row in rows.batches(1):
        loss = F.cross_entropy(module(*row.x), row.y)
        each.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(each)


def true_hessian(module, rows):
    parameters = list(module.parameters())
    total = 0.0
    for row in rows.batches(1):
        loss = F.cross_entropy(module(*row.x), row.y)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in gradients])
        columns = [
            torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True)
            for g in flat
        ]
        total = total + torch.stack([torch.cat([c.flatten() for c in cs]) for cs in columns])
    return total / len(rows)


ORDERS = {"as they come": torch.arange(12), "reversed": torch.arange(11, -1, -1)}


@pytest.mark.filterwarnings("ignore:the gradients of")
def test_gradients_are_each_rows_own(case):
    module, rows = case
    expected = true_gradients(module, rows)
    for order, batch_size in product(ORDERS.values(), (5, 12)):
        objective = Objective(deepcopy(module), "cross_entropy")  # of which nothing is known
        found = per_sample_gradients(objective, rows[order], batch_size=batch_size)
        assert_close(found.dense(), expected[order], rtol=1e-9, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*is no chain of Linear")
def test_hessians_are_autograds_over_all_rows(case):
    module, rows = case
    expected = true_hessian(module, rows)
    for order in ORDERS.values():
        objective = Objective(deepcopy(module), "cross_entropy")
        operator = Hessian(objective, rows[order], batch_size=5)
        assert_close(operator.dense(), expected, rtol=1e-8, atol=1e-12)
        vectors = torch.randn(3, objective.size, dtype=F64)
        assert_close(operator.apply(vectors), vectors @ expected, rtol=1e-8, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_perturbations_are_derivatives_of_each_rows_influence(case):
    module, rows = case
    objective = Objective(module, "cross_entropy")
    factors = torch.randn(70, objective.size, dtype=F64)
    x = rows.x[0].clone().requires_grad_()
    parameters = list(module.parameters())
    expected = torch.empty(70, 12, 5, dtype=F64)
    for i in range(12):
        loss = F.cross_entropy(module(x[i : i + 1], rows.x[1][i : i + 1]), rows.y[i : i + 1])
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in gradient])
        for j in range(70):
            expected[j, i] = torch.autograd.grad(factors[j] @ flat, x, retain_graph=True)[0][i]
    found = perturbation_influences(objective, factors, rows)[0]
    assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_kronecker_factors_do_not_depend_on_which_rows_come_first(case):
    module, rows = case
    objective = Objective(module, "cross_entropy")
    rhs = torch.randn(4, objective.size, dtype=F64)
    first, second = (
        EKFAC().factorize(GaussNewton(objective, rows[order])).solve(rhs, damping=0.1).x
        for order in ORDERS.values()
    )
    assert_close(first, second, rtol=1e-7, atol=1e-10)


def test_a_layer_that_later_rows_use_otherwise_is_named_once():
    module, length = Unrolled().to(F64), torch.tensor([1, 1, 1, 1, 2, 3])
    rows = Rows((torch.randn(6, 5, dtype=F64), length), torch.arange(6) % 3)
    with pytest.warns(
        RuntimeWarning, match=r"gradients of 'cell' are not sums of products"
    ) as seen:
        per_sample_gradients(Objective(module, "cross_entropy"), rows, batch_size=2)
    assert len(seen) == 1


def test_structure_that_ends_with_later_rows_is_said():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), _LargeRows(), nn.Linear(4, 3)).to(F64)
    x = torch.randn(8, 5, dtype=F64)
    x[5:] *= 100
    objective, rows = Objective(module, "cross_entropy"), Rows(x, torch.arange(8) % 3)
    with pytest.warns(RuntimeWarning, match="no chain of Linear and elementwise layers for all"):
        H = Hessian(objective, rows).dense()
    assert_close(H, Hessian(objective, rows, route="autograd").dense())
    with (
        pytest.raises(ModelError, match="not a chain"),
        pytest.warns(RuntimeWarning),
    ):
        Hessian(objective, rows, route="layered").dense()
    assert_close(
        Hessian(objective, rows[:5], route="layered").dense(), Hessian(objective, rows[:5]).dense()
    )


@pytest.mark.filterwarnings("ignore:.*is no chain of Linear")
def test_structure_that_ends_with_later_rows_is_seen_where_the_diagonal_is_zero():
    """Of a loss that is linear in the outputs, and a network of linear pieces."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), _Crowded(), nn.ReLU(), nn.Linear(4, 3)).to(F64)
    x = torch.randn(8, 5, dtype=F64)
    x[5:] *= 50
    rows = Rows(x, torch.randn(8, 3, dtype=F64))
    objective = Objective(module, lambda outputs, y: (outputs - y).abs().sum(1))
    H = Hessian(objective, rows, route="autograd").dense()
    assert_close(Hessian(objective, rows).dense(), H)
    assert_close(Hessian(objective, rows).apply(torch.eye(len(H), dtype=F64)), H)


class _Crowded(nn.Module):
    """Each entry with what the row's together are above a limit."""

    def forward(self, x):
        return x + torch.relu(x.abs().sum(1, keepdim=True) - 20)


class _LargeRows(nn.Module):
    """tanh, but of rows that are large somewhere a mixture over their entries."""

    def forward(self, x):
        large = x.abs().amax(1, keepdim=True) > 20
        return torch.where(large, x.softmax(1) * x.sum(1, keepdim=True), torch.tanh(x))


# Rows that do not stand for themselves --------------------------------------------------------


class CentredKind(nn.Module):
    """Centres rows of one kind among themselves; the first rows are of the other."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x, kind):
        x = x.clone()
        if (kind == 1).any():
            x[kind == 1] = x[kind == 1] - x[kind == 1].mean(0)
        return self.inner(x)


class Leaking(nn.Module):
    """Passes gradients, not values, from row to row."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x, kind):
        out = self.inner(x)
        shared = out.mean(0, keepdim=True)
        return out + shared - shared.detach()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (CentredKind, "loss of a row depends on the other rows"),
        (Leaking, "gradient of a row's loss depends on the other rows"),
    ],
)
def test_rows_that_depend_on_others_anywhere_are_refused(kind, message):
    rows = Rows((torch.randn(9, 5), torch.tensor([0] * 6 + [1] * 3)), torch.arange(9) % 3)
    objective = Objective(kind(), "cross_entropy")
    with pytest.raises(ModelError, match=message):
        objective.check(rows)


def test_an_embedding_that_counts_its_tokens_is_refused():
    module = nn.Sequential(
        nn.Embedding(5, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(8, 3)
    )
    rows = Rows(torch.randint(0, 5, (9, 2)), torch.arange(9) % 3)
    wrapped = idag.TorchTwiceDifferentiable(module, "cross_entropy")
    with pytest.raises(ModelError, match="depends on the other rows"):
        idag.compute_influences(wrapped, [(rows.x, rows.y)], hessian_regularization=1.0)


# Autograd itself ------------------------------------------------------------------------------


class _Square(torch.autograd.Function):
    """x², whose backward takes x for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0].detach() * g


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(_Square.apply(self.inner(x)))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_backward_that_is_not_differentiable_is_refused_for_the_hessian_only(dtype):
    rows = Rows(torch.randn(20, 5, dtype=dtype), torch.arange(20) % 3)
    objective = Objective(Squares().to(dtype), "cross_entropy")
    for use in (lambda H: H.dense(), lambda H: H.apply(objective.params[None])):
        with pytest.raises(ModelError, match=r"not those of its gradients.*detached"):
            use(Hessian(objective, rows))
    G = GaussNewton(objective, rows).dense()
    theta = objective.params.clone().requires_grad_()
    outputs = objective.outputs(theta, rows.x).flatten()
    J = torch.stack([torch.autograd.grad(f, theta, retain_graph=True)[0] for f in outputs])
    p = objective.outputs(objective.params, rows.x).softmax(1)
    S = torch.block_diag(*(torch.diag(q) - q.outer(q) for q in p))
    assert_close(G, J.T @ S @ J / 20, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh(), nn.Softshrink(0.01)])
def test_kinks_are_no_fault_even_where_rows_stand_on_them(module):
    network = nn.Sequential(nn.Linear(5, 4, bias=False), module, nn.Linear(4, 3))
    x = torch.randn(20, 5)
    x[:4] = 0.0
    Hessian(Objective(network, "cross_entropy"), Rows(x, torch.arange(20) % 3)).dense()


WEIGHT_NORMS = {
    "of today": lambda layer: nn.utils.parametrizations.weight_norm(layer),
    "the old one": lambda layer: nn.utils.weight_norm(layer),
    "over all axes": lambda layer: nn.utils.parametrizations.weight_norm(layer, dim=None),
    "over the last axis": lambda layer: nn.utils.parametrizations.weight_norm(layer, dim=1),
    "over an axis from the end": lambda layer: nn.utils.weight_norm(layer, dim=-2),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("kind", WEIGHT_NORMS)
@pytest.mark.parametrize("layer", [nn.Linear(5, 8), nn.Conv1d(1, 2, 2)], ids=["linear", "conv"])
def test_weight_norms_hessian_is_that_of_its_definition(kind, layer):
    torch.manual_seed(1)
    conv = isinstance(layer, nn.Conv1d)
    first = [nn.Unflatten(1, (1, 5))] if conv else []
    layer = type(layer)(1, 2, 2) if conv else type(layer)(5, 8)
    module = nn.Sequential(
        *first, WEIGHT_NORMS[kind](layer), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )
    objective = Objective(module.to(F64).eval(), "cross_entropy")
    rows = Rows(torch.randn(12, 5, dtype=F64), torch.arange(12) % 3)

    torch.testing.assert_close(objective.outputs(objective.params, rows.x), module(rows.x))

    def gradient(theta):
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(objective.mean_loss(theta, rows), theta)[0]

    steps = 1e-6 * torch.eye(objective.size, dtype=F64)
    theta = objective.params
    differences = [(gradient(theta + e) - gradient(theta - e)) / 2e-6 for e in steps]
    assert_close(Hessian(objective, rows).dense(), torch.stack(differences), rtol=1e-5, atol=1e-7)


def test_what_has_no_second_derivative_is_named():
    module = nn.Sequential(nn.EmbeddingBag(7, 4), nn.Tanh(), nn.Linear(4, 3))
    wrapped = idag.TorchTwiceDifferentiable(module, "cross_entropy")
    loader = [(torch.randint(0, 7, (9, 3)), torch.arange(9) % 3)]
    with pytest.raises(ModelError, match=r"no second derivative.*EmbeddingBag"):
        idag.compute_influences(wrapped, loader, hessian_regularization=1.0)


class _Length(nn.Module):
    def forward(self, x):
        return x.square().sum(1, keepdim=True).sqrt()


def test_influences_that_are_not_finite_are_refused_by_row():
    module = nn.Sequential(_Length(), nn.Linear(1, 2))
    x = torch.randn(6, 4)
    x[3] = 0.0
    wrapped = idag.TorchTwiceDifferentiable(module, "cross_entropy")
    with pytest.raises(ModelError, match="training row 3 are not finite"):
        idag.compute_influences(
            wrapped,
            [(x, torch.arange(6) % 2)],
            influence_type="perturbation",
            hessian_regularization=1.0,
        )


# Parametrised layers --------------------------------------------------------------------------


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(4, 2))

    def forward(self, weight):
        return weight + self.b @ self.a


def low_rank(layer):
    layer.weight.requires_grad_(False)
    nn.utils.parametrize.register_parametrization(layer, "weight", LowRank())


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


PARAMETRISED = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "pruned": pruned,
    "low rank": low_rank,
}


@pytest.mark.parametrize("kind", PARAMETRISED)
@pytest.mark.parametrize("method", ["direct", "ekfac"])
def test_theta_is_what_is_trainable_behind_a_computed_weight(kind, method):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4)
    PARAMETRISED[kind](layer)
    module = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3)).to(F64).eval()
    x, y = torch.randn(12, 5, dtype=F64), torch.arange(12) % 3
    wrapped = idag.TorchTwiceDifferentiable(module, "cross_entropy")
    found = idag.compute_influences(
        wrapped, [(x, y)], inversion_method=method, hessian_regularization=2.0
    )
    if method == "direct":
        G = torch.stack([_flat_gradient(module, x[i : i + 1], y[i : i + 1]) for i in range(12)])
        damped = _differences(module, x, y) + 2 * torch.eye(G.shape[1], dtype=F64)
        assert_close(found, G @ torch.linalg.solve(damped, G.T), rtol=1e-5, atol=1e-8)
    assert found.shape == (12, 12)
    assert found.diagonal().min() > 0


def _differences(module, x, y):
    """The Hessian by differences of gradients, away from zero: where signs are cut, jumps begin."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    before, rows = _flat_gradient(module, x, y), []
    for parameter in parameters:
        for k in range(parameter.numel()):
            kept = parameter.detach().clone()
            step = 1e-7 if kept.view(-1)[k] >= 0 else -1e-7
            with torch.no_grad():
                parameter.view(-1)[k] += step
                rows.append((_flat_gradient(module, x, y) - before) / step)
                parameter.copy_(kept)
    H = torch.stack(rows)
    return (H + H.T) / 2


def _flat_gradient(module, x, y):
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.enable_grad():
        gradients = torch.autograd.grad(F.cross_entropy(module(x), y), parameters)
    return torch.cat([g.flatten() for g in gradients])


# What was once refused though it is right, and the other way round ----------------------------


@pytest.mark.parametrize("count", [2, 6])
def test_derivatives_in_a_module_that_sees_other_places_are_refused(count):
    module = Sorting().to(F64)
    x = torch.randn(6, 5, dtype=F64), torch.tensor([1, 3, 2, 1, 3, 2])
    rows = Rows(x, torch.arange(6) % 3)[:count]
    objective = Objective(module, "cross_entropy")
    factors = torch.randn(3, objective.size, dtype=F64)
    with pytest.raises(ModelError, match=r"'inner' sees its rows in another order"):
        perturbation_influences(objective, factors, rows, wrt="inner")
    assert perturbation_influences(objective, factors, rows, wrt="outer").shape == (3, count, 3)


def test_an_embeddings_padding_vector_is_a_constant():
    module = nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        module[0].weight[0] = 0.5
    rows = Rows(torch.randint(0, 6, (9, 3)), torch.arange(9) % 3)
    objective = Objective(module.to(F64), "cross_entropy")
    H = Hessian(objective, rows).dense()
    place = objective.slices["0.weight"].start
    assert (H[place : place + 4] == 0).all()
    assert H.abs().max() > 0


def test_losses_near_zero_are_compared_as_far_as_they_have_digits():
    module = nn.Linear(4, 3)
    x = torch.randn(20, 4)
    with torch.no_grad():
        module.weight.mul_(60)
    y = module(x).argmax(1)
    wrapped = idag.TorchTwiceDifferentiable(module, lambda f, t: F.cross_entropy(f, t))
    assert idag.compute_influences(wrapped, [(x, y)], hessian_regularization=1.0).shape == (20, 20)


@pytest.mark.parametrize("largest", [1.0, 1e-16, 1e-18, 1e-30])
def test_gradients_whose_squares_vanish_are_those_of_rows(largest):
    """Saturated rows: in float32 their squares are zero, and sums over their norms overflow."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    sizes = largest * 10.0 ** -torch.arange(0, 12, 2)

    def loss(output, target):
        return F.cross_entropy(output, target[:, 0].long(), reduction="none") * target[:, 1]

    classes = torch.arange(6) % 2
    rows = Rows(torch.randn(6, 3), torch.stack([classes, sizes], 1))
    plain = per_sample_gradients(Objective(module, "cross_entropy"), Rows(rows.x, classes))
    expected = plain.dense() * sizes[:, None]
    found = per_sample_gradients(Objective(module, loss), rows).dense()
    assert_close(found, expected, rtol=1e-4, atol=1e-38)
