"""Attention of torch, positions and adapters: captured, and the gradients of plain autograd."""

import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from influence_dag.curvature import GaussNewton
from influence_dag.gradients.layouts import LinearLayout
from influence_dag.gradients.per_sample import gradient_layout, per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC, KFAC

TOKENS, LENGTH, WIDTH = 7, 5, 4


class Attends(nn.Module):
    """Tokens with positions through self-attention that sees no padding and nothing later."""

    def __init__(self, *, flat=False, weighs=False, crosses=False, by_head=False, **attention):
        super().__init__()
        self.flat, self.weighs, self.crosses, self.by_head = flat, weighs, crosses, by_head
        self.embed, self.place = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH + 2, WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **attention)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1])
        hidden = self.embed(tokens) + self.place(places if self.flat else places[None])
        later = torch.ones(len(places), len(places)).triu(1).bool()
        padding = tokens == 0
        if self.by_head:  # further back counts less, for each head in its own way
            steps = torch.tensor([-0.1, -0.5]).repeat(len(tokens))[:, None, None].to(hidden)
            later = (steps * ~later).masked_fill(later, -torch.inf)
            padding = torch.zeros_like(hidden[..., 0]).masked_fill(padding, -torch.inf)
        keys = hidden.flip(1)[..., : self.attend.kdim] if self.crosses else hidden
        mixed, shares = self.attend(hidden, keys, keys, key_padding_mask=padding, attn_mask=later)
        if self.weighs:
            mixed = mixed * shares.square().sum(2, keepdim=True)
        return self.out(torch.tanh(mixed).mean(1))


class Encodes(nn.Module):
    def __init__(self, **layer):
        super().__init__()
        self.embed, self.out = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, 3)
        self.inner = nn.TransformerEncoderLayer(WIDTH, 2, 6, dropout=0.0, **layer)
        self.turned = not layer.get("batch_first", False)

    def forward(self, tokens):
        hidden = self.embed(tokens)
        hidden = hidden.transpose(0, 1) if self.turned else hidden
        hidden = self.inner(hidden)
        return self.out(hidden.mean(0 if self.turned else 1))


def problem(module, rows=LENGTH):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, TOKENS, (rows, LENGTH), generator=generator)
    tokens[1, 3:] = 0
    return Objective(module.double().eval(), "cross_entropy"), Rows(tokens, torch.arange(rows) % 3)


def captured(objective, rows):
    blocks = gradient_layout(objective, rows).blocks
    return {b.name if isinstance(b, LinearLayout) else b.layer for b in blocks}


def check_gradients(objective, rows):
    expected = reference.per_sample_gradients(objective.module, F.cross_entropy, rows.x, rows.y)
    found = per_sample_gradients(objective, rows, batch_size=4).dense()
    assert_close(found, expected, rtol=1e-9, atol=1e-12)


PLAIN = {
    "masks": lambda: Attends(),
    "positions without an axis of rows, as many as rows": lambda: Attends(flat=True),
    "weights are used": lambda: Attends(weighs=True),
    "masks of each head": lambda: Attends(by_head=True),
    "no biases": lambda: Attends(bias=False),
    "encoder": lambda: Encodes(batch_first=True),
}
OTHERWISE = {
    "cross-attention": lambda: Attends(crosses=True),
    "added keys": lambda: Attends(add_bias_kv=True),
    "weights of their own": lambda: Attends(crosses=True, kdim=3, vdim=3),
}


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_attention_and_positions_are_captured(make):
    objective, rows = problem(make())
    assert None not in captured(objective, rows)  # nothing takes a pass through the network a row
    check_gradients(objective, rows)


@pytest.mark.parametrize("make", OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_attention_of_other_kinds_is_differentiated_through_the_network(make):
    objective, rows = problem(make())
    assert "attend.in_proj" not in captured(objective, rows)
    check_gradients(objective, rows)


def test_a_time_first_encoder_has_its_attention_captured():
    objective, rows = problem(Encodes())
    assert {"inner.self_attn.in_proj", "inner.self_attn.out_proj"} < captured(objective, rows)
    check_gradients(objective, rows)


@pytest.mark.parametrize("method", [EKFAC(), KFAC()], ids=repr)
def test_projections_are_kronecker_blocks_with_the_fishers_diagonal(method):
    objective, rows = problem(Attends())
    factorization = method.factorize(GaussNewton(objective, rows))
    assert factorization.info["captured_layers"] == "attend.in_proj, attend.out_proj, out"
    if isinstance(method, KFAC):
        return
    dense = GaussNewton(objective, rows, route="autograd").dense()
    block = factorization.blocks[0]
    weight, bias = (slice(*place) for place in block.places)
    index = torch.cat([torch.arange(objective.size)[place] for place in (weight, bias)])
    Q = torch.kron(block.gradient_eigenvectors, block.activation_eigenvectors)
    columns = [index[: weight.stop - weight.start].view(3 * WIDTH, WIDTH)]
    order = torch.cat([*columns, index[weight.stop - weight.start :, None]], 1).flatten()
    assert_close((Q.T @ dense[order][:, order] @ Q).diagonal(), block.eigenvalues.flatten())


def test_a_network_that_looks_at_the_axis_of_its_positions_is_seen():
    class Looks(Attends):
        def forward(self, tokens):
            hidden = self.embed(tokens) + self.place(torch.arange(LENGTH)[None])[0]
            return self.out(torch.tanh(hidden).mean(1))

    objective, rows = problem(Looks())
    check_gradients(objective, rows)


# Adapters --------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """LoRA (Hu et al. 2021): a frozen Linear layer and a product of two thin matrices."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / 3)
        self.up = nn.Parameter(torch.randn(base.out_features, rank) / 3)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Layered(nn.Module):
    """The same with the thin matrices in Linear layers."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("kind", [Adapter, Layered])
def test_adapters_are_captured_and_a_frozen_base_is_no_part_of_anything(kind):
    module = Attends().requires_grad_(False)
    module.out = nn.Sequential(kind(nn.Linear(WIDTH, 6)), nn.Tanh(), nn.Linear(6, 3))
    module.out[2].requires_grad_(False)
    objective, rows = problem(module)
    assert objective.size == 2 * (WIDTH + 6)
    layers = captured(objective, rows)
    assert layers in ({"out.0"}, {"out.0.down", "out.0.up"})
    check_gradients(objective, rows)
    factorization = EKFAC().factorize(GaussNewton(objective, rows))
    solved = factorization.solve(torch.eye(objective.size).double(), damping=0.1).x
    assert_close(solved, solved.T)


# Large tables ----------------------------------------------------------------------------------


class Reads(nn.Module):
    """Tokens of a table of 2,100 numbers, and their positions in one that is as large."""

    def __init__(self, padding=None):
        super().__init__()
        self.embed = nn.Embedding(70, 30, padding_idx=padding)
        self.place, self.out = nn.Embedding(70, 30), nn.Linear(30, 3)

    def forward(self, tokens):
        places = self.place(torch.arange(tokens.shape[1])[None])
        return self.out(torch.tanh(self.embed(tokens) + places).mean(1))


@pytest.mark.parametrize("padding", [None, 0])
def test_large_tables_are_kronecker_blocks_of_indicators(padding):
    objective, rows = problem(Reads(padding))
    assert captured(objective, rows) == {"embed", "place", "out"}
    check_gradients(objective, rows)
    factorization = EKFAC().factorize(GaussNewton(objective, rows))
    assert factorization.info["captured_layers"] == "embed, place, out"
    dense = GaussNewton(objective, rows, route="autograd").dense()
    embed = factorization.blocks[0]
    index = torch.arange(70 * 30).view(70, 30).T.flatten()
    Q = torch.kron(embed.gradient_eigenvectors, embed.activation_eigenvectors)
    assert_close((Q.T @ dense[index][:, index] @ Q).diagonal(), embed.eigenvalues.flatten())


def test_a_table_of_too_many_rows_for_indicators_is_left_to_its_layer():
    module = Reads()
    module.embed = nn.Embedding(5_000, 30)
    objective, rows = problem(module)
    assert "embed" in {getattr(b, "layer", None) for b in gradient_layout(objective, rows).blocks}
    check_gradients(objective, rows)
