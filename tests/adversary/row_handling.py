"""Families of modules that do something with their rows: each row still stands for itself."""

import torch
from adversary.layers import EITHER, Parts
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class _Sorted(nn.Module):
    """Sorts its rows by length, works on them, and puts them back."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x, length):
        order = torch.argsort(length, descending=True, stable=True)
        hidden = torch.tanh(self.inner(x[order])) * length[order, None]
        return hidden[torch.argsort(order)]


def sorted_rows(draw):
    inputs = {"x": draw.features(3), "length": draw.lengths(3).float()}
    return Parts(_Sorted, inputs, 3, wrt="inner", wrt_expect=EITHER)


class _Turned(nn.Module):
    """Works on its rows in another order than they came in."""

    def __init__(self, turn):
        super().__init__()
        self.inner, self.turn = nn.Linear(3, 3), turn

    def forward(self, x):
        if self.turn == "flip":
            return torch.tanh(self.inner(x.flip(0))).flip(0)
        return torch.tanh(self.inner(x.roll(1, 0))).roll(-1, 0)


def turned_rows(draw):
    turn = draw.one_of("flip", "roll")
    inputs = {"x": draw.features(3)}
    return Parts(lambda: _Turned(turn), inputs, 3, wrt="inner", wrt_expect=EITHER, note=turn)


class _Packed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.project, self.inner = nn.Linear(2, 2), kind(2, 2, batch_first=True)

    def forward(self, x, length):
        packed = pack_padded_sequence(
            torch.tanh(self.project(x)), length, batch_first=True, enforce_sorted=False
        )
        hidden, _ = pad_packed_sequence(self.inner(packed)[0], batch_first=True)
        last = (length - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
        return hidden.gather(1, last)[:, 0]


def packed(draw):
    kind = draw.one_of(nn.GRU, nn.LSTM)
    inputs = {"x": draw.features(3, 2), "length": draw.lengths(3)}
    return Parts(lambda: _Packed(kind), inputs, 2, note=kind.__name__)


class _Present(nn.Module):
    """A layer on the positions that are there, packed one after another."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 3)

    def forward(self, x, length):
        there = torch.arange(x.shape[1]) < length[:, None]
        hidden = x.new_zeros(*x.shape[:2], 3)
        hidden[there] = torch.tanh(self.inner(x[there]))
        return hidden.sum(1)


def present_positions(draw):
    return Parts(_Present, {"x": draw.features(3, 2), "length": draw.lengths(3)}, 3)


class _Routed(nn.Module):
    """Rows go to one of two experts, or through a third layer as well."""

    def __init__(self, by_mask):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
        self.by_mask = by_mask

    def forward(self, x, kind):
        if not self.by_mask:
            both = torch.stack([torch.tanh(expert(x)) for expert in self.experts], 1)
            return both[torch.arange(len(x)), kind]
        hidden = x.new_zeros(len(x), 2)
        for number, expert in enumerate(self.experts):
            chosen = kind == number
            if chosen.any():
                hidden[chosen] = torch.tanh(expert(x[chosen]))
        return hidden


def routed(draw):
    by_mask = draw.chance(0.8)
    inputs = {"x": draw.features(3), "kind": draw.labels(2)}
    return Parts(lambda: _Routed(by_mask), inputs, 2, note=f"{by_mask=}")


class _Skipped(nn.Module):
    """A layer that is not called at all unless a row of the batch is long."""

    def __init__(self):
        super().__init__()
        self.inner, self.extra = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x, length):
        hidden = torch.tanh(self.inner(x))
        if (length > 1).any():
            hidden = torch.where((length > 1)[:, None], torch.sigmoid(self.extra(hidden)), hidden)
        return hidden


def skipped_layer(draw):
    return Parts(_Skipped, {"x": draw.features(3), "length": draw.lengths(2)}, 3)


class _Unrolled(nn.Module):
    """A cell unrolled to the longest row of the batch."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(4, 2)

    def forward(self, x, length):
        hidden = x.new_zeros(len(x), 2)
        for t in range(int(length.max())):
            new = torch.tanh(self.cell(torch.cat([x[:, t], hidden], 1)))
            hidden = torch.where((t < length)[:, None], new, hidden)
        return hidden


def unrolled(draw):
    return Parts(_Unrolled, {"x": draw.features(3, 2), "length": draw.lengths(3)}, 2)


class _TimeFirst(nn.Module):
    """Layers that see (positions, rows, features); few enough to be taken for rows."""

    def __init__(self, recurrent):
        super().__init__()
        self.inner = nn.GRU(2, 2) if recurrent else nn.Linear(2, 2)

    def forward(self, x):
        hidden = self.inner(x.transpose(0, 1))
        hidden = hidden[0] if isinstance(hidden, tuple) else torch.tanh(hidden)
        return hidden.sum(0)


def time_first(draw):
    recurrent, positions = draw.chance(0.3), draw.one_of(2, 3, 4)
    return Parts(lambda: _TimeFirst(recurrent), {"x": draw.features(positions, 2)}, 2)


class _Folded(nn.Module):
    """Positions and rows folded into one axis, or the rows said twice."""

    def __init__(self, twice):
        super().__init__()
        self.inner, self.twice = nn.Linear(2, 3), twice

    def forward(self, x):
        if self.twice:
            first, second = torch.tanh(self.inner(torch.cat([x[:, 0], x[:, 1]]))).chunk(2)
            return first * second
        return torch.tanh(self.inner(x.reshape(-1, 2))).view(len(x), -1, 3).sum(1)


def folded(draw):
    twice = draw.chance(0.5)
    return Parts(lambda: _Folded(twice), {"x": draw.features(2, 2)}, 3, note=f"{twice=}")


class _OneByOne(nn.Module):
    """A loop over rows in Python."""

    def __init__(self, keeps_axis):
        super().__init__()
        self.inner, self.keeps_axis = nn.Linear(3, 3), keeps_axis

    def forward(self, x):
        if self.keeps_axis:
            return torch.cat([torch.tanh(self.inner(row)) for row in x.split(1)])
        return torch.stack([torch.tanh(self.inner(row)) for row in x])


def one_by_one(draw):
    keeps_axis = draw.chance(0.5)
    return Parts(lambda: _OneByOne(keeps_axis), {"x": draw.features(3)}, 3)


class _Shortened(nn.Module):
    """Hidden vectors cut to a largest norm, which small rows stay below: not elementwise."""

    def __init__(self, limit):
        super().__init__()
        self.inner, self.limit = nn.Linear(3, 3), limit

    def forward(self, x):
        hidden = self.inner(x)
        return hidden * (self.limit / hidden.norm(dim=1, keepdim=True)).clamp(max=1)


def shortened(draw):
    limit = draw.one_of(3.0, 10.0, 20.0)
    return Parts(lambda: _Shortened(limit), {"x": draw.features(3)}, 3, note=f"{limit=}")


class _Piecewise(nn.Module):
    """Another function for large rows than for small ones, mixing entries only there."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        hidden = self.inner(x)
        large = hidden.abs().amax(1, keepdim=True) > 4
        return torch.where(large, hidden.softmax(1) * hidden.roll(1, 1), torch.tanh(hidden))


def piecewise(draw):
    return Parts(_Piecewise, {"x": draw.features(3)}, 3)


class _Frequencies(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 2, scale_grad_by_freq=True)

    def forward(self, x):
        return torch.tanh(self.embed(x)).mean(1)


def scaled_by_frequency(draw):
    """torch divides an embedding's gradient by how often the batch has the token."""
    return Parts(_Frequencies, {"x": draw.tokens(6, 2)}, 2, expect=EITHER)
