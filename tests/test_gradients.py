import json
from itertools import chain

import pytest
import reference
import torch
from networks import CASES, CLASSES, ROWS, digits, digits_mlp
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from influence_dag.errors import ModelError
from influence_dag.gradients import products
from influence_dag.gradients.blocks import DenseGradients, LinearGradients
from influence_dag.gradients.layouts import DenseLayout, GradientLayout, LinearLayout
from influence_dag.gradients.per_sample import (
    Gradients,
    gradient_layout,
    per_sample_gradients,
)
from influence_dag.objective.objective import Objective, Rows

SMALL = {"_ROWS": 3, "_MOST_ROWS": 3, "_BYTES": 64, "_MOST_BYTES": 64, "_COLUMNS": 2}


@pytest.fixture(params=CASES)
def case(request):
    module, x, y = CASES[request.param].make()
    expected = reference.per_sample_gradients(module, F.cross_entropy, x, y)
    return Objective(module, "cross_entropy"), Rows(x, y), expected


def captured(objective, rows):
    """Names of the layers whose gradients come from their inputs and output gradients."""
    blocks = gradient_layout(objective, rows).blocks
    return {b.name if isinstance(b, LinearLayout) else b.layer for b in blocks} - {None}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_are_autograds_for_any_model(case):
    objective, rows, expected = case
    assert_close(per_sample_gradients(objective, rows, batch_size=4).dense(), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_inner_products_and_norms_are_those_of_the_dense_gradients(case, monkeypatch):
    objective, rows, expected = case
    gradients = per_sample_gradients(objective, rows)
    for k in (1, 40):
        factors = torch.randn(k, objective.size, dtype=torch.float64)
        assert_close(gradients.inner(factors), factors @ expected.T)
        assert_close(gradients[2:7].inner(factors), factors @ expected[2:7].T)
    assert_close(gradients.norms(), expected.norm(dim=1), check_dtype=False)
    assert_close(gradients[2:7].products(gradients), expected[2:7] @ expected.T)
    for name, size in SMALL.items():
        monkeypatch.setattr(products, name, size)  # in pieces, into what is there
    for k in (3, 40):
        factors = torch.randn(k, objective.size, dtype=torch.float64)
        out = torch.full((k, 2 * len(rows)), torch.nan, dtype=torch.float64)[:, ::2]
        assert gradients.inner(factors, out) is out
        assert_close(out, factors @ expected.T)


class Conv1D(nn.Module):
    """As GPT-2 has it: a Linear layer whose weight is (inputs, outputs)."""

    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_in, d_out))
        self.bias = nn.Parameter(torch.randn(d_out))

    def forward(self, x):
        return x @ self.weight + self.bias


@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
@pytest.mark.parametrize("positions", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_layers_of_either_way_round_at_any_positions(kind, positions, frozen):
    size = torch.Size(positions).numel()
    layers = kind(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(5 * size, CLASSES)
    module = nn.Sequential(*layers).double()
    if frozen:
        getattr(module[0], frozen).requires_grad_(False)
    rows = Rows(torch.randn(6, *positions, 4).double(), torch.arange(6) % CLASSES)
    objective = Objective(module, "cross_entropy")
    assert captured(objective, rows) == {"0", "3"}
    gradients = per_sample_gradients(objective, rows)
    expected = reference.per_sample_gradients(module, F.cross_entropy, rows.x, rows.y)
    assert_close(gradients.dense(), expected)
    for k in (1, 40):
        factors = torch.randn(k, objective.size, dtype=torch.float64)
        assert_close(gradients.inner(factors), factors @ expected.T)
    assert_close(gradients.norms(), expected.norm(dim=1))
    assert_close(gradients[2:5].products(gradients), expected[2:5] @ expected.T)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_come_back_from_their_stored_tensors(case):
    objective, rows, expected = case
    layout = gradient_layout(objective, rows)
    tensors = per_sample_gradients(objective, rows, layout=layout).tensors()
    assert {name: tuple(t.shape[1:]) for name, t in tensors.items()} == layout.row_shapes
    restored = GradientLayout.from_json(json.loads(json.dumps(layout.to_json())))
    assert restored == layout
    assert_close(Gradients.assembled(restored, tensors).dense(), expected)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mlp", {"0", "2"}),
        ("linear", {""}),
        ("in-place relu", {"0", "2", "4"}),
        ("frozen layer", {"0", "6", "8"}),
        ("tied", {"4"}),
        ("reused", {"outer"}),
        ("positions", {"0.0", "0.2", "2"}),
        ("norms", {"0", "1", "3", "4"}),
        ("images", {"0", "2", "5"}),
        ("signal", {"0", "3"}),
        ("recurrent", {"outer"}),
        (
            "attention",
            {"embed", "inner.self_attn.in_proj", "inner.self_attn.out_proj", "outer"}
            | {f"inner.{kind}{i}" for kind in ("linear", "norm") for i in (1, 2)},
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_linear_and_convolution_layers_used_once_are_captured(name, layers):
    module, x, y = CASES[name].make()
    assert captured(Objective(module, "cross_entropy"), Rows(x, y)) == layers


@pytest.mark.filterwarnings("error:the gradients of")
@pytest.mark.parametrize("positions", [(), (7,)], ids=["one number", "a sequence of numbers"])
def test_a_layer_of_one_input_has_as_many_weights_as_biases(positions):
    torch.manual_seed(0)
    layer = nn.Linear(1, 1 + 3 * len(positions)).double()
    module = nn.Sequential(layer, nn.Tanh(), nn.Flatten())
    x = torch.randn(6, *positions, 1, dtype=torch.float64)
    rows = Rows(x, module(x).detach() + 1)
    found = per_sample_gradients(Objective(module, "mse"), rows).dense()
    for row, gradient in zip(rows.batches(1), found, strict=True):
        right = torch.autograd.grad((module(row.x) - row.y).square().mean(), layer.parameters())
        assert_close(gradient, torch.cat([each.flatten() for each in right]))


def test_pairs_are_kept_only_where_they_are_smaller():
    module, x, y = CASES["images"].make()
    layout = gradient_layout(Objective(module, "cross_entropy"), Rows(x, y))
    assert [type(block) for block in layout.blocks] == [DenseLayout] * 4 + [LinearLayout]
    numbers = sum(torch.Size(shape).numel() for shape in layout.row_shapes.values())
    assert numbers < layout.size


def test_the_digits_network_needs_a_seventeenth_of_the_dense_numbers():
    arrays = digits()
    rows = Rows(arrays["x_train"][:5], arrays["y_train"][:5])
    layout = gradient_layout(Objective(digits_mlp(), "cross_entropy"), rows)
    numbers = sum(torch.Size(shape).numel() for shape in layout.row_shapes.values())
    assert (layout.size, numbers) == (2410, 64 + 32 + 32 + 10)


def test_gradients_of_a_measurement():
    module, x, y = CASES["mlp"].make()
    objective = Objective(module, "cross_entropy", measurement=lambda f, y: f[:, 1].sin())
    expected = reference.per_sample_gradients(module, lambda f, y: f[:, 1].sin().sum(), x, y)
    assert_close(per_sample_gradients(objective, Rows(x, y), of="measurement").dense(), expected)


def test_rows_are_picked_by_slice_and_by_index():
    module, x, y = CASES["images"].make()
    gradients = per_sample_gradients(Objective(module, "cross_entropy"), Rows(x, y))
    index = torch.tensor([7, 0, 3])
    assert len(gradients[index]) == 3
    assert torch.equal(gradients[index].dense(), gradients.dense()[index])
    assert torch.equal(gradients[4:].dense(), gradients.dense()[4:])


def test_layers_without_numbers_take_no_others_place():
    """A layer of no output has the place in θ of what follows it, whose gradients were zeros."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.none, self.nothing = nn.Linear(3, 0), nn.Linear(0, 2)
            self.cells, self.head = nn.RNN(3, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            of_none = self.none(x).sum(1, keepdim=True) + self.nothing(x[:, :0])
            return self.head(self.cells(x.unsqueeze(1))[0][:, 0]) + of_none

    torch.manual_seed(0)
    module, x, y = Recurrent().double(), torch.randn(6, 3).double(), torch.arange(6) % 2
    objective = Objective(module, "cross_entropy")
    found = per_sample_gradients(objective, Rows(x, y)).dense()
    assert_close(found, reference.per_sample_gradients(module, F.cross_entropy, x, y))


@pytest.mark.parametrize("batch_size", [1, 2, 7, ROWS, 100])
def test_the_batch_size_changes_nothing(batch_size):
    module, x, y = CASES["positions"].make()
    objective, rows = Objective(module, "cross_entropy"), Rows(x, y)
    whole = per_sample_gradients(objective, rows).dense()
    parts = per_sample_gradients(objective, rows, batch_size=batch_size).dense()
    assert_close(parts, whole, rtol=1e-10, atol=1e-14)


def test_float32_stays_float32():
    module, x, y = CASES["mlp"].make(torch.float32)
    gradients = per_sample_gradients(Objective(module, "cross_entropy"), Rows(x, y))
    assert {tensor.dtype for tensor in gradients.tensors().values()} == {torch.float32}
    expected = reference.per_sample_gradients(module, F.cross_entropy, x, y)
    assert_close(gradients.dense(), expected.float(), rtol=1e-5, atol=1e-6)


def test_gradients_do_not_need_the_callers_leave_to_differentiate():
    module, x, y = CASES["images"].make()
    objective, rows = Objective(module, "cross_entropy"), Rows(x, y)
    expected = per_sample_gradients(objective, rows).dense()
    with torch.no_grad():
        assert_close(per_sample_gradients(objective, rows).dense(), expected)


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_what_rounding_leaves_of_a_gradient_is_no_dependence_on_other_rows(scale):
    """A norm of two numbers is ±1 whatever they are: most of a gradient through it cancels."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2)).double()
    objective = Objective(module, "cross_entropy")
    rows = Rows(scale * torch.randn(12, 3).double(), torch.randint(2, (12,)))
    found = per_sample_gradients(objective, rows, layout=row_by_row(objective)).dense()
    for row, gradient in enumerate(found):
        theta = objective.params.clone().requires_grad_()
        loss = objective.losses(theta, rows[row : row + 1]).sum()
        assert_close(gradient, torch.autograd.grad(loss, theta)[0], rtol=0, atol=1e-10)


def test_rows_that_depend_on_others_are_told_though_gradients_cancel():
    class Centred(nn.Module):
        def forward(self, x):
            return x - 1e-5 * x.mean(0)

    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), Centred(), nn.Linear(4, 2)).double()
    objective = Objective(module, "cross_entropy")
    rows = Rows(1e3 * torch.randn(12, 3).double(), torch.randint(2, (12,)))
    with pytest.raises(ModelError, match="every row has to stand for itself"):
        per_sample_gradients(objective, rows, layout=row_by_row(objective))


def row_by_row(objective):
    blocks = [DenseLayout(str(at.start), at.start, at.stop) for at in objective.slices.values()]
    return GradientLayout(tuple(blocks), objective.size)


@pytest.mark.parametrize("numbers", [1, 5, 16, 1000])
@pytest.mark.parametrize("shape", [(6,), (2, 6)], ids=["rows", "positions"])
@pytest.mark.parametrize("width", [3, 0])
def test_what_is_written_out_at_once_fits_the_buffer_and_covers_theta_once(shape, width, numbers):
    """Also where one unit's weights, or a bias, are more than the buffer holds."""
    n, units = 4, shape[-1]
    a, g = torch.randn(n, *shape[:-1], width), torch.randn(n, *shape)
    weight, bias = slice(0, units * width), slice(units * width, units * (width + 1))
    layer = LinearGradients("layer", a, g, weight, bias)
    rest = DenseGradients("rest", slice(bias.stop, bias.stop + 7), torch.randn(n, 7))
    buffer = torch.empty(numbers, n)
    segments = [*rest.segments(numbers), *layer.segments(numbers)]  # in whatever order
    found, places = torch.zeros(n, rest.slice.stop), []
    for place, columns in chain(products.written_out(segments, buffer), layer.columns(buffer)):
        assert columns.numel() <= buffer.numel()
        assert columns.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
        found[:, place] = columns.T
        places += range(place.start, place.stop)
    assert sorted(places) == [*range(rest.slice.stop)]
    for block in (layer, rest):
        for place, values in block.parts():
            assert_close(found[:, place], values)


@pytest.mark.parametrize("vectors", [1, 100, 300, 1000, 10**5])
def test_what_is_written_out_at_once_is_bounded(vectors):
    rows, numbers = products.written_at_once(torch.empty(vectors, 1))
    assert rows in {512, 1024, 1536, 2048}
    assert 2**22 - rows * 4 <= rows * numbers * 4 <= 2**25


@pytest.mark.parametrize("k", [1, 3, 700])
def test_products_set_what_memory_held(k):
    """Also of layers that are contracted with few vectors alone, and of nothing."""
    layer = LinearGradients("a", torch.randn(5, 9), torch.randn(5, 2), slice(0, 18), None)
    for blocks in ((layer,), (DenseGradients("b", slice(0, 18), torch.randn(5, 18)),)):
        gradients = Gradients(blocks, GradientLayout((), 18))
        out, V = torch.full((k, 5), torch.nan), torch.randn(k, 18)
        assert_close(gradients.inner(V, out), V @ gradients.dense().T)
    nothing = Gradients(
        (DenseGradients("c", slice(0, 0), torch.empty(5, 0)),), GradientLayout((), 0)
    )
    assert not nothing.inner(torch.empty(k, 0), torch.full((k, 5), torch.nan)).any()
