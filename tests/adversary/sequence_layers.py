"""Families of modules on sequences: recurrent layers, cells, attention, tokens."""

import torch
from adversary.layers import Parts
from torch import nn


class _Recurrent(nn.Module):
    def __init__(self, kind, both, positions):
        super().__init__()
        self.inner, self.positions = kind(2, 2, batch_first=True, bidirectional=both), positions

    def forward(self, x):
        hidden = self.inner(x)[0]
        return hidden if self.positions else hidden[:, -1]


def recurrent(draw):
    kind = draw.one_of(nn.RNN, nn.GRU, nn.LSTM)
    both = kind is nn.RNN and draw.chance(0.5)
    positions = draw.one_of(0, 3)
    return Parts(
        lambda: _Recurrent(kind, both, positions),
        {"x": draw.features(3, 2)},
        4 if both else 2,
        positions=positions,
        note=f"{kind.__name__} {both=}",
    )


class _Cell(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(2, 2)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


def cells(draw):
    kind = draw.one_of(nn.RNNCell, nn.GRUCell, nn.LSTMCell)
    return Parts(lambda: _Cell(kind), {"x": draw.features(3, 2)}, 2, note=kind.__name__)


class _Attention(nn.Module):
    """An encoder layer; where positions are padded, a mask and a mean over those that are not."""

    def __init__(self, positions):
        super().__init__()
        self.embed, self.positions = nn.Linear(2, 3), positions
        self.inner = nn.TransformerEncoderLayer(3, 1, 2, dropout=0.1, batch_first=True)
        for constant in (self.inner.linear1, self.inner.norm2):  # fewer second derivatives
            constant.requires_grad_(False)

    def forward(self, x, padding):
        hidden = self.inner(self.embed(x), src_key_padding_mask=padding)
        there = ~padding[..., None]
        return hidden if self.positions else (hidden * there).sum(1) / there.sum(1)


def attention(draw):
    lengths, positions = draw.lengths(2), draw.one_of(0, 2)
    inputs = {
        "x": draw.features(2, 2),
        "padding": torch.arange(2).expand(draw.total, -1) >= lengths[:, None],
    }
    return Parts(lambda: _Attention(positions), inputs, 3, positions=positions, lengths=lengths)


class _Queries(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True, kdim=2, vdim=2)
        self.queries = nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        queries = self.queries.expand(len(x), -1, -1)
        return self.inner(queries, x, x)[0].flatten(1)


def queries(draw):
    return Parts(_Queries, {"x": draw.features(3, 2)}, 4)


class _Tokens(nn.Module):
    def __init__(self, padded, positions):
        super().__init__()
        self.embed = nn.Embedding(6, 3, padding_idx=0 if padded else None)
        self.inner, self.positions = nn.Linear(3, 2), positions

    def forward(self, x):
        hidden = torch.tanh(self.inner(self.embed(x)))
        return hidden if self.positions else hidden.mean(1)


def tokens(draw):
    padded, positions = draw.chance(0.5), draw.one_of(0, 3)
    return Parts(
        lambda: _Tokens(padded, positions),
        {"x": draw.tokens(6, 3)},
        2,
        positions=positions,
        wrt="embed",
        note=f"{padded=}",
    )


def sequences(draw):
    """Layers on (rows, positions, features); targets may be padded."""
    return Parts(
        lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.LayerNorm(3)),
        {"x": draw.features(3, 2)},
        3,
        positions=3,
        lengths=draw.lengths(3),
    )
