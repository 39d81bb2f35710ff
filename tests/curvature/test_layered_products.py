"""Products with the Hessian of layered networks by matrices alone, against autograd."""

import pytest
import torch
from networks import LAYERED, make_weighted
from torch import nn
from torch.testing import assert_close

from influence_dag.curvature import Hessian, layered_products
from influence_dag.curvature.layered import LayeredNetwork
from influence_dag.curvature.layered_products import LayeredBatch, LayeredSum
from influence_dag.objective.objective import Objective, Rows


def vectors_of(objective, count=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, objective.size, generator=generator, dtype=objective.dtype)


def by_autograd(objective, rows, vectors):
    return Hessian(objective, rows, checked=True, route="autograd").apply(vectors)


def passes_of(monkeypatch):
    """The rows of each pass through the layers, as they are made."""
    seen, run = [], LayeredNetwork.run

    def counted(self, rows, **how):
        seen.append(len(rows))
        return run(self, rows, **how)

    monkeypatch.setattr(LayeredNetwork, "run", counted)
    return seen


@pytest.mark.parametrize("name", LAYERED)
def test_products_over_weighted_rows_are_autograds(name):
    objective, rows = make_weighted(name)
    hessian, vectors = Hessian(objective, rows, batch_size=5), vectors_of(objective)
    assert_close(hessian.apply(vectors), by_autograd(objective, rows, vectors))
    assert hessian._layered.confirmed


@pytest.mark.parametrize("mixed", [0, 2**17], ids=["through the rows", "summed once"])
@pytest.mark.parametrize("name", LAYERED)
def test_rows_are_taken_piece_by_piece(name, mixed, monkeypatch):
    monkeypatch.setattr(layered_products, "_ROWS", 2)
    monkeypatch.setattr(layered_products, "_PIECE", 0)
    monkeypatch.setattr(layered_products, "_COLUMNS", 7)
    monkeypatch.setattr(layered_products, "_MIXED", mixed)
    objective, rows = make_weighted(name)
    hessian, vectors = Hessian(objective, rows, batch_size=2), vectors_of(objective)
    assert_close(hessian.apply(vectors), by_autograd(objective, rows, vectors))
    assert hessian._layered.confirmed
    layers = len(hessian.layered_network.layers)
    assert all(
        (batch.mixed is None) == (layers == 1 or not mixed) for batch in hessian._layered._kept
    )


def test_networks_of_other_kinds_go_through_autograd():
    objective, rows = make_weighted("norms")
    hessian, vectors = Hessian(objective, rows), vectors_of(objective)
    assert_close(hessian.apply(vectors), by_autograd(objective, rows, vectors))
    assert hessian._layered is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_that_are_not_confirmed_are_autograds(dtype, monkeypatch):
    objective, rows = make_weighted("deep", dtype)
    real = LayeredSum.products
    monkeypatch.setattr(LayeredSum, "products", lambda self, v: real(self, v) * 1.001)
    hessian, vectors = Hessian(objective, rows), vectors_of(objective)
    assert_close(hessian.apply(vectors), by_autograd(objective, rows, vectors))
    assert not hessian._layered.serves


class _MixesLater(nn.Module):
    """Elementwise, but for rows with an entry above 50."""

    def forward(self, z):
        return torch.tanh(z) + (z.amax(1, keepdim=True) > 50) * torch.tanh(z.roll(1, 1) / 50)


def test_one_row_of_a_thousand_that_leaves_the_chain_is_noticed():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), _MixesLater(), nn.Linear(5, 2))
    x, y = torch.randn(1000, 3), torch.randint(2, (1000,))
    x[999] *= 200
    objective, rows = Objective(module, "cross_entropy"), Rows(x, y)
    vectors = vectors_of(objective)
    for some, confirmed in [(rows[:999], True), (rows, False)]:
        hessian = Hessian(objective, some)
        assert_close(
            hessian.apply(vectors), by_autograd(objective, some, vectors), rtol=1e-4, atol=1e-5
        )
        assert hessian._layered.confirmed == confirmed


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_a_wrong_part_of_a_small_tensor_is_noticed(scale, monkeypatch):
    """Of inputs that are ten thousand times as large or small as what the other layers take."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    module[0].weight.data /= scale
    x, y = torch.randn(30, 3).double() * scale, torch.randint(2, (30,))
    objective, rows = Objective(module, "cross_entropy"), Rows(x, y)
    real = LayeredSum.products

    def wrong(self, vectors):
        """Coupling of the first layer's weight with the last layer's bias is off by a percent."""
        only = torch.zeros_like(vectors)
        only[:, -2:] = vectors[:, -2:] / 100
        found = real(self, vectors)
        found[:, :15] += real(self, only)[:, :15]
        return found

    monkeypatch.setattr(LayeredSum, "products", wrong)
    hessian, vectors = Hessian(objective, rows), vectors_of(objective)
    assert_close(hessian.apply(vectors), by_autograd(objective, rows, vectors))
    assert not hessian._layered.confirmed


@pytest.mark.parametrize(("kept", "again"), [(9, 0), (1, 1), (0, 2)], ids=["all", "one", "none"])
def test_batches_are_kept_for_products_to_come(kept, again, monkeypatch):
    objective, rows = make_weighted("deep")
    vectors, eighth = vectors_of(objective), (len(rows) + 7) // 8
    network = LayeredNetwork.of(objective, rows)
    of_one = LayeredBatch.of(network, network.run(rows[: 4 * eighth])).bytes
    monkeypatch.setattr(layered_products, "_KEPT_BYTES", 1 + kept * of_one)
    hessian = Hessian(objective, rows, batch_size=eighth)  # four of them at once
    hessian.apply(vectors)
    passes = passes_of(monkeypatch)
    assert_close(hessian.apply(vectors[:2]), by_autograd(objective, rows, vectors[:2]))
    assert len(passes) == again


def test_rows_of_a_curvature_are_multiplied_with_its_network(monkeypatch):
    """A mini-batch looks for no layers: what it is a part of has found them."""
    objective, rows = make_weighted("deep")
    hessian, vectors = Hessian(objective, rows), vectors_of(objective)
    hessian.apply(vectors)
    monkeypatch.setattr(LayeredNetwork, "of", None)  # not to be called
    some = hessian.over(rows[:7])
    share = rows[:7].weight_sum / 7 / (rows.weight_sum / len(rows))
    assert_close(some.apply(vectors), share * by_autograd(objective, rows[:7], vectors))
    assert some._layered.confirmed


def test_many_outputs_go_through_autograd(monkeypatch):
    """Second derivatives in the outputs are a matrix a row."""
    monkeypatch.setattr(layered_products, "_OUTPUTS", 1)
    objective, rows = make_weighted("deep")
    hessian, vectors = Hessian(objective, rows), vectors_of(objective)
    passes = passes_of(monkeypatch)
    assert_close(hessian.apply(vectors), by_autograd(objective, rows, vectors))
    assert not passes


def test_no_vectors_have_no_products():
    objective, rows = make_weighted("deep")
    hessian = Hessian(objective, rows)
    hessian.apply(vectors_of(objective))
    assert hessian.apply(vectors_of(objective)[:0]).shape == (0, objective.size)


def test_a_block_of_eight_vectors_of_ten_classes_is_worth_the_layers(monkeypatch):
    """As the blocks of a Krylov method come; of a single vector autograd is the cheaper."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 10)).double()
    objective = Objective(network, "cross_entropy")
    rows = Rows(torch.randn(40, 6).double(), torch.arange(40) % 10)
    by_layers, products = [], LayeredSum.products
    monkeypatch.setattr(
        LayeredSum,
        "products",
        lambda self, vectors: by_layers.append(len(vectors)) or products(self, vectors),
    )
    for count, expected in ((1, []), (8, [8, 1, 1])):  # the others confirm it
        by_layers.clear()
        vectors = vectors_of(objective, count)
        found = Hessian(objective, rows).apply(vectors)
        assert_close(found, by_autograd(objective, rows, vectors))
        assert by_layers == expected


def test_products_of_rows_that_a_model_is_sure_of_are_those_of_matrices_in_float32():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        module[0].weight.copy_(2 * torch.eye(4)[:, :3])
        module[2].weight.copy_(12 * torch.eye(4)[:3])
    rows = Rows(torch.eye(3).repeat(4, 1) + 0.01 * torch.randn(12, 3), torch.arange(12) % 3)
    hessian, vectors = Hessian(Objective(module, "cross_entropy"), rows), torch.randn(8, 31)
    found = hessian.apply(vectors)
    assert hessian._layered.confirmed, "autograd says the same"
    double = Objective(module.double(), "cross_entropy"), rows.to(dtype=torch.float64)
    expected = Hessian(*double).apply(vectors.double())
    assert 0 < expected.abs().max() <= 1e-3
    torch.testing.assert_close(
        found.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max()
    )
