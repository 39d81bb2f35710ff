"""Families of modules with shared, computed, pruned and frozen parameters."""

import torch
from adversary.layers import Parts, chain
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


class _Shared(nn.Module):
    """A weight in two places: one layer twice, two layers with one weight, a weight and a use."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.how = nn.Linear(3, 3), nn.Linear(3, 3), how
        if how == "tied":
            self.second.weight = self.first.weight
        if how != "tied":
            self.second = nn.Identity()

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        if self.how == "twice":
            return torch.tanh(self.first(hidden))
        if self.how == "by a function":
            return nn.functional.linear(hidden, self.first.weight)
        if self.how == "transposed":
            return torch.tanh(hidden @ self.first.weight)
        if self.how == "penalised":
            return hidden * (1 + self.first.weight.square().mean())
        return torch.tanh(self.second(hidden))


def shared(draw):
    how = draw.one_of("twice", "tied", "by a function", "transposed", "penalised")
    return Parts(lambda: _Shared(how), {"x": draw.features(3)}, 3, note=how)


class _SharedKernel(nn.Module):
    """One convolution for both halves of an image."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(1, 2, 2)

    def forward(self, x):
        halves = [torch.tanh(self.inner(half)).amax((2, 3)) for half in x.chunk(2, 1)]
        return halves[0] * halves[1]


def shared_kernel(draw):
    return Parts(_SharedKernel, {"x": draw.features(2, 3, 3)}, 2)


class _TiedTokens(nn.Module):
    """Embedded tokens, whose embedding is the output layer as well."""

    def __init__(self, positions):
        super().__init__()
        self.embed, self.outer = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.outer.weight, self.positions = self.embed.weight, positions

    def forward(self, x):
        hidden = torch.tanh(self.embed(x))
        return self.outer(hidden if self.positions else hidden.mean(1))


def tied_tokens(draw):
    positions = draw.one_of(0, 2)
    return Parts(
        lambda: _TiedTokens(positions),
        {"x": draw.tokens(5, 2)},
        5,
        positions=positions,
        wrt="embed",
        bare=True,
    )


class _LowRank(nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.a = nn.Parameter(torch.randn(1, columns) / 2)
        self.b = nn.Parameter(torch.randn(rows, 1) / 2)

    def forward(self, weight):
        return weight + (self.b @ self.a).reshape(weight.shape)


class _Positive(nn.Module):
    def forward(self, weight):
        return nn.functional.softplus(weight)


def _low_rank(layer):
    layer.weight.requires_grad_(False)
    rows = len(layer.weight)
    update = _LowRank(rows, layer.weight.numel() // rows)
    parametrize.register_parametrization(layer, "weight", update)


def _several(layer):
    parametrize.register_parametrization(layer, "weight", _Positive())
    parametrize.register_parametrization(layer, "weight", _LowRank(*layer.weight.flatten(1).shape))


def _pruned_bias(layer):
    prune.random_unstructured(layer, "weight", 0.3)
    prune.l1_unstructured(layer, "bias", 1)


PARAMETRISATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of the whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "old weight_norm": nn.utils.weight_norm,
    "old weight_norm of dim 1": lambda layer: nn.utils.weight_norm(layer, dim=1),
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "orthogonal by cayley": lambda layer: parametrizations.orthogonal(
        layer, orthogonal_map="cayley"
    ),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": _pruned_bias,
    "low rank": _low_rank,
    "positive": lambda layer: parametrize.register_parametrization(layer, "weight", _Positive()),
    "several": _several,
}


def parametrised(draw):
    """A layer whose weight is computed from parameters; θ is what is trainable."""
    name, convolution = draw.one_of(*PARAMETRISATIONS), draw.chance(0.4)

    def build():
        layer = nn.Conv1d(1, 2, 2) if convolution else nn.Linear(3, 3)
        PARAMETRISATIONS[name](layer)
        before = nn.Unflatten(1, (1, 3)) if convolution else nn.Identity()
        return nn.Sequential(before, layer, nn.Tanh(), nn.Flatten())

    width = 4 if convolution else 3
    note = f"{name}{' conv' * convolution}"
    return Parts(build, {"x": draw.features(3)}, width, note=note)


def frozen(draw):
    """Some parameters of a chain are constants."""
    parts = chain(draw)
    count = len(list(parts.build().parameters()))
    left_out = sorted(draw.some_of(range(count), draw.whole(1, max(1, count - 1))))

    def build():
        module = parts.build()
        for number, parameter in enumerate(module.parameters()):
            parameter.requires_grad_(number not in left_out)
        return module

    return Parts(build, parts.inputs, parts.width, note=f"{parts.note} without {left_out}")


class _FrozenNet(nn.Module):
    """A trained network's features, a layer of one's own, in the middle a bias alone."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.features.requires_grad_(False)
        self.features[0].bias.requires_grad_(True)

    def forward(self, x):
        return torch.tanh(self.features(x))


def fine_tuned(draw):
    return Parts(_FrozenNet, {"x": draw.features(3)}, 3)
