"""Families of modules: layers as they come, alone and combined.

A family draws what it is made of and returns `Parts`; each maps its inputs to `(rows, width)`,
or to `(rows, positions, width)`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

RIGHT, EITHER, REFUSED = "right", "either", "refused"


@dataclass(frozen=True)
class Parts:
    """How to build the module, the inputs of all rows by name, the width of what it puts out.

    `expect`: whether the numbers have to be right, may be refused, or have to be refused.
    `wrt`: a module whose output may be perturbed, `wrt_expect` what is then. `positions` is 0 for
    one vector a row, `lengths` how many of the positions are there. `bare` modules put out what the
    loss takes. `train` are the kinds of layers that are left in train mode.
    """

    build: Callable[[], nn.Module]
    inputs: dict[str, torch.Tensor]
    width: int
    positions: int = 0
    lengths: torch.Tensor | None = None
    expect: str = RIGHT
    wrt: str | None = None
    wrt_expect: str = RIGHT
    bare: bool = False
    note: str = ""
    train: tuple[type[nn.Module], ...] = ()


ACTIVATIONS = (
    nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.ELU, nn.Softsign, nn.ReLU,
    nn.LeakyReLU, nn.Mish, nn.Hardtanh, nn.LogSigmoid, nn.PReLU, nn.Identity,
)  # fmt: skip


def names(kinds):
    return "-".join(kind.__name__ for kind in kinds)


def chain(draw):
    """Linear and elementwise layers, what the closed forms are for."""
    widths = [draw.whole(2, 4) for _ in range(draw.whole(2, 4))]
    kinds = [draw.one_of(*ACTIVATIONS) for _ in widths[1:]]
    biases = [draw.chance(0.7) for _ in kinds]

    def build():
        layers = []
        for a, b, kind, bias in zip(widths[:-1], widths[1:], kinds, biases, strict=True):
            layers += [nn.Linear(a, b, bias=bias), kind()]
        return nn.Sequential(*layers)

    return Parts(build, {"x": draw.features(widths[0])}, widths[-1], note=names(kinds))


class _InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x)
        hidden = torch.sigmoid_(hidden.mul_(0.5))
        return nn.functional.elu(self.second(hidden), inplace=True)


def in_place(draw):
    return Parts(_InPlace, {"x": draw.features(3)}, 3)


class _Residual(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3) if norm else nn.Identity()

    def forward(self, x):
        x = x + torch.tanh(self.first(self.norm(x)))
        return x + nn.functional.silu(self.second(x))


def residual(draw):
    norm = draw.chance(0.5)
    return Parts(
        lambda: _Residual(norm), {"x": draw.features(3)}, 3, wrt="first", note="norm" * norm
    )


class _Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.pair = nn.Bilinear(3, 2, 2)

    def forward(self, x, z):
        return self.pair(self.value(x) * torch.sigmoid(self.gate(x)), z)


def gated(draw):
    inputs = {"x": draw.features(3), "z": draw.features(2)}
    return Parts(_Gated, inputs, 2, wrt="gate")


class _Raw(nn.Module):
    """Parameters of no layer, and a layer's weight used by a function."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(3) + 0.5), nn.Parameter(torch.zeros(()))
        self.matrix = nn.Parameter(torch.randn(3, 3) / 2)
        self.register_buffer("fixed", torch.randn(3, 3) / 2)

    def forward(self, x):
        return torch.tanh((x * self.scale + self.shift) @ self.matrix) @ self.fixed


def raw_parameters(draw):
    return Parts(_Raw, {"x": draw.features(3)}, 3)


def norms(draw):
    kind = draw.one_of("layer", "batch", "group", "rms", "batch without affine")
    kinds = {
        "layer": lambda: nn.LayerNorm(4),
        "batch": lambda: nn.BatchNorm1d(4),
        "group": lambda: nn.GroupNorm(2, 4),
        "rms": lambda: nn.RMSNorm(4, eps=1e-5),
        "batch without affine": lambda: nn.BatchNorm1d(4, affine=False),
    }

    def build():
        return with_statistics(nn.Sequential(nn.Linear(3, 4), kinds[kind](), nn.Tanh()))

    return Parts(build, {"x": draw.features(3)}, 4, note=kind)


def with_statistics(module):
    """Batch norms as training leaves them: their own mean and variance for each channel."""
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return module


def images(draw):
    groups, mode = draw.one_of(1, 1, 2), draw.one_of("zeros", "zeros", "circular", "reflect")
    stride, bias = draw.whole(1, 2), draw.chance(0.7)
    last = (2, 1) if stride == 1 else 1
    middle = draw.one_of("batch", "group", "none", "dropout")
    pool = draw.one_of(
        nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(2), nn.Identity()
    )
    kinds = {
        "batch": lambda: nn.BatchNorm2d(2),
        "group": lambda: nn.GroupNorm(1, 2),
        "none": nn.Identity,
        "dropout": lambda: nn.Dropout2d(0.3),
    }

    def build():
        first = nn.Conv2d(2, 2, 3, stride, 1, groups=groups, padding_mode=mode, bias=bias)
        layers = [first, kinds[middle](), nn.Tanh(), pool]
        return with_statistics(
            nn.Sequential(*layers, nn.Conv2d(2, 3, last), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        )

    note = f"{middle} {type(pool).__name__} {groups} groups {mode}"
    return Parts(build, {"x": draw.features(2, 4, 4)}, 3, note=note)


def signals(draw):
    padding, dilation = draw.one_of("same", "valid", 1), draw.whole(1, 2)
    transposed = draw.chance(0.3)

    def build():
        first = nn.Conv1d(2, 3, 2, padding=padding, dilation=dilation)
        second = nn.ConvTranspose1d(3, 2, 2) if transposed else nn.Conv1d(3, 2, 2, stride=2)
        return nn.Sequential(first, nn.SiLU(), second, nn.AdaptiveMaxPool1d(1), nn.Flatten())

    return Parts(build, {"x": draw.features(2, 5)}, 2, note=f"{padding} {transposed=}")


class _Branching(nn.Module):
    """Code that looks at its data."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        hidden = self.inner(x)
        return torch.tanh(hidden if hidden.abs().max() < 1e9 else hidden / 1e9)


def branching(draw):
    return Parts(_Branching, {"x": draw.features(3)}, 3)


class _Counting(nn.Module):
    """A buffer that counts calls and one that is a mean of the training: neither is θ."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return torch.tanh(self.inner(x - self.mean))


def counting(draw):
    return Parts(_Counting, {"x": draw.features(3)}, 3, expect=EITHER)
