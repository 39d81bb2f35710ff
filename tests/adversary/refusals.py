"""Families of modules that have no right answer, and some whose answer may be refused."""

import torch
from adversary.layers import EITHER, REFUSED, Parts
from torch import nn
from torch.utils.checkpoint import checkpoint


class _Centred(nn.Module):
    """What a row's output is depends on the other rows, everywhere or from some row on."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = nn.Linear(3, 3), how

    def forward(self, x, kind):
        hidden = self.inner(x)
        if self.how == "centred":
            return hidden - 0.1 * hidden.mean(0)
        if self.how == "normed":
            return hidden / hidden.norm()
        if self.how == "attended":
            return (hidden @ hidden.T).softmax(1) @ hidden
        chosen = kind == 1
        if self.how == "large batches" and len(x) > 4:
            hidden = hidden / (1 + hidden.mean() ** 2)
        if self.how == "some rows" and chosen.any():
            offset = torch.where(chosen[:, None], hidden, 0.0).sum(0) / chosen.sum()
            hidden = torch.where(chosen[:, None], hidden - offset, hidden)
        return torch.tanh(hidden)


def batch_dependent(draw):
    how = draw.one_of("centred", "normed", "attended", "large batches", "some rows")
    kinds = draw.labels(2)
    kinds[draw.rows - 2 : draw.rows] = 1
    inputs = {"x": draw.features(3), "kind": kinds}
    return Parts(lambda: _Centred(how), inputs, 3, expect=REFUSED, note=how)


def batch_statistics(draw):
    """Batch normalisation by the batch itself."""
    kind = draw.one_of("train mode", "no running statistics")
    kept = kind == "train mode"

    def build():
        norm = nn.BatchNorm1d(3, track_running_stats=kept)
        return nn.Sequential(nn.Linear(3, 3), norm, nn.Tanh())

    train = (nn.BatchNorm1d,) if kept else ()
    return Parts(build, {"x": draw.features(3)}, 3, expect=REFUSED, note=kind, train=train)


class _SameMemory(nn.Module):
    """Two tensors that a training moves as one, of which a derivative by either sees half."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        if how == "a buffer":
            self.second = nn.Identity()
            self.register_buffer("kept", self.inner.weight.data)
        else:
            rows = slice(None) if how == "tied by data" else slice(1, None)
            self.outer = nn.Parameter(self.inner.weight.data[rows])
        self.how = how

    def forward(self, x):
        hidden = self.second(torch.tanh(self.inner(x)))
        if self.how == "a buffer":
            return hidden @ self.kept
        return hidden @ self.outer.mT @ self.outer

    def _apply(self, function, recurse=True):
        """In another precision as well: what is shared stays so."""
        super()._apply(function, recurse)
        if self.how == "a buffer":
            self.kept = self.inner.weight.data
        else:
            self.outer.data = self.inner.weight.data[3 - len(self.outer) :]
        return self


class _Random(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.inner, self.how = nn.Linear(3, 3), how
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        hidden = torch.tanh(self.inner(x))
        if self.how == "dropout":
            return nn.functional.dropout(hidden, 0.3)
        self.calls += 0.1
        return hidden * self.calls


def no_function_of_theta(draw):
    """What a call gives is not told by θ and the rows: it draws, it counts, it shares memory."""
    how = draw.one_of("dropout", "a state that grows", "tied by data", "a part", "a buffer")
    kind = _Random if how in ("dropout", "a state that grows") else _SameMemory
    return Parts(lambda: kind(how), {"x": draw.features(3)}, 3, expect=REFUSED, note=how)


class _OldClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


class _Unusual(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.inner, self.second, self.how = nn.Linear(3, 3), nn.Linear(3, 3), how

    def forward(self, x):
        if self.how == "checkpoint":
            return checkpoint(lambda v: torch.tanh(self.inner(v)), x, use_reentrant=False)
        if self.how == "old function":
            return _OldClamp.apply(self.inner(x))
        if self.how == "partly detached":
            return torch.tanh(self.second(torch.tanh(self.inner(x)).detach()))
        hidden = torch.tanh(self.inner(x))  # a gradient that is no gradient of a function
        return hidden.detach() * self.second(hidden)


def unusual(draw):
    how = draw.one_of("checkpoint", "old function", "partly detached", "detached factor")
    return Parts(lambda: _Unusual(how), {"x": draw.features(3)}, 3, expect=EITHER, note=how)


class _Bag(nn.Module):
    def __init__(self, how):
        super().__init__()
        if how == "bag":
            self.embed = nn.EmbeddingBag(6, 2)
        else:
            self.embed = nn.Embedding(6, 2, sparse=how == "sparse")
            self.embed.max_norm = 0.5 if how == "longest norm" else None

    def forward(self, x):
        hidden = torch.tanh(self.embed(x))
        return hidden.mean(1) if hidden.ndim == 3 else hidden


def bags(draw):
    """Embeddings without a second derivative, with sparse gradients, or that change as they run."""
    how = draw.one_of("bag", "sparse", "longest norm")
    return Parts(lambda: _Bag(how), {"x": draw.tokens(6, 2)}, 2, expect=EITHER, note=how)
