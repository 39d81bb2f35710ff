"""Norms, embeddings and other small layers: their gradients from one layer's input and output."""

import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F

from influence_dag.gradients.layouts import LinearLayout
from influence_dag.gradients.per_sample import gradient_layout, per_sample_gradients
from influence_dag.objective.objective import Objective, Rows


class RootMeanSquare(nn.Module):
    """A norm of one's own, as language models have them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, hidden):
        return self.scale * hidden * (hidden.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class Scaled(nn.Module):
    """One number, without an axis."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, hidden):
        return hidden * self.scale


class Sequence(nn.Module):
    """Tokens to classes, with a layer in the middle that may be called twice, or across rows."""

    def __init__(self, inner, calls=1, mixed=False):
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(7, 4, padding_idx=0), inner, nn.Linear(4, 3)
        self.calls, self.mixed = calls, mixed

    def forward(self, tokens):
        hidden = self.embed(tokens)
        for _ in range(self.calls):
            hidden = torch.tanh(self.inner(hidden))
        if self.mixed:  # rows go through another layer than the one that their place says
            hidden = torch.tanh(self.inner(hidden.flip(0))).flip(0)
        return self.out(hidden.mean(1))


def problem(module, rows=9):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, (rows, 5), generator=generator)
    return Objective(module.double().eval(), "cross_entropy"), Rows(tokens, torch.arange(rows) % 3)


def seen(norm):
    """A batch normalisation with statistics of its own."""
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return norm


INNER = {
    "layer norm": lambda: nn.LayerNorm(4),
    "of one's own": RootMeanSquare,
    "channels": lambda: nn.Sequential(nn.Flatten(1), nn.BatchNorm1d(20), nn.Unflatten(1, (5, 4))),
    "channels of positions": lambda: seen(nn.BatchNorm1d(5)),
    "groups": lambda: nn.GroupNorm(1, 5),
    "over two axes": lambda: nn.LayerNorm([5, 4]),
    "without a bias": lambda: nn.LayerNorm(4, bias=False),
    "slopes": lambda: nn.PReLU(),
    "a number": Scaled,
}


@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
def test_gradients_are_autograds_and_come_from_the_layer_alone(make, monkeypatch):
    objective, rows = problem(Sequence(make()))
    expected = reference.per_sample_gradients(objective.module, F.cross_entropy, rows.x, rows.y)
    layout = gradient_layout(objective, rows)
    captured = {b.name if isinstance(b, LinearLayout) else b.layer for b in layout.blocks}
    assert None not in captured  # nothing takes a pass through the network a row
    found = per_sample_gradients(objective, rows, layout=layout).dense()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("change", [{"calls": 2}, {"mixed": True}], ids=["twice", "across rows"])
def test_a_layer_that_is_called_otherwise_is_differentiated_through_the_network(change):
    objective, rows = problem(Sequence(nn.LayerNorm(4), **change))
    expected = reference.per_sample_gradients(objective.module, F.cross_entropy, rows.x, rows.y)
    layers = {getattr(block, "layer", None) for block in gradient_layout(objective, rows).blocks}
    assert "inner" not in layers
    torch.testing.assert_close(
        per_sample_gradients(objective, rows).dense(), expected, rtol=1e-9, atol=1e-12
    )


def test_rows_that_only_later_change_places_are_seen():
    class Swaps(Sequence):
        def forward(self, tokens):
            order = torch.arange(len(tokens))
            if len(tokens) > 4:
                order[:2] = torch.tensor([1, 0])
            hidden = self.inner(self.embed(tokens)[order])[order]
            return self.out(torch.tanh(hidden).mean(1))

    objective, rows = problem(Swaps(nn.LayerNorm(4)))
    expected = reference.per_sample_gradients(objective.module, F.cross_entropy, rows.x, rows.y)
    with pytest.warns(RuntimeWarning, match="'inner'.*row by row"):
        found = per_sample_gradients(objective, rows)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-9, atol=1e-12)


def test_frozen_parameters_of_a_norm_are_no_part_of_it():
    module = Sequence(nn.LayerNorm(4))
    module.inner.bias.requires_grad_(False)
    objective, rows = problem(module)
    names = {block.name for block in gradient_layout(objective, rows).blocks}
    assert "inner.weight" in names
    assert "inner.bias" not in names
    assert per_sample_gradients(objective, rows).dense().shape == (9, objective.size)
