"""Small models of every kind that influence functions have to serve, with inputs for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from influence_dag.objective.objective import Objective, Rows

CLASSES, ROWS = 3, 9


class Reused(nn.Module):
    """One Linear applied twice in a row."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.outer(x + torch.tanh(self.inner(x)))


class Functional(nn.Module):
    """Flatten by shape, activations as functions, dropout that is off, a scaled output."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 5), nn.Linear(5, CLASSES)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        hidden = torch.sigmoid(self.inner(x.view(x.shape[0], -1) / 4))
        hidden = nn.functional.dropout(hidden, 0.5, self.training)
        return self.outer(hidden) * self.scale


class Branching(nn.Module):
    """Code that looks at its data, which neither a tracer nor vmap follows."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        hidden = self.inner(x)
        if hidden.abs().max() > 1e6:
            hidden = hidden / 1e6
        return self.outer(torch.tanh(hidden))


class Recurrent(nn.Module):
    """The last hidden state of a recurrent layer of width 4, both ways if `both`."""

    def __init__(self, kind, *, both=False):
        super().__init__()
        self.inner = kind(3, 4, batch_first=True, bidirectional=both)
        self.outer = nn.Linear(8 if both else 4, CLASSES)

    def forward(self, x):
        return self.outer(self.inner(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.outer = nn.Linear(3, 4), nn.Linear(4, CLASSES)
        self.inner = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.outer(self.inner(self.embed(x)).mean(1))


class Transformer(nn.Module):
    """Two encoder layers built with dropout, which eval mode switches off."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, activation="gelu", batch_first=True)
        self.embed, self.outer = nn.Linear(3, 4), nn.Linear(4, CLASSES)
        self.inner = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        return self.outer(self.inner(self.embed(x)).mean(1))


class Tokens(nn.Module):
    """Embedded tokens, averaged; `tied`: the embedding is the output layer as well."""

    def __init__(self, *, tied=False):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.outer = nn.Linear(4, 7, bias=False) if tied else nn.Linear(4, CLASSES)
        if tied:
            self.outer.weight = self.embed.weight

    def forward(self, x):
        return self.outer(torch.tanh(self.embed(x)).mean(1))


class Shifted(nn.Module):
    """The token model with its embedded tokens moved by a second input."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, x, shift):
        model = self.tokens
        return model.outer(torch.tanh(model.embed(x) + shift).mean(1))


def _mlp():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES))


def _deep():
    return nn.Sequential(
        nn.Linear(5, 4),
        nn.Tanh(),
        nn.Linear(4, 6, bias=False),
        nn.Identity(),
        nn.GELU(),
        nn.Dropout(),
        nn.Linear(6, 4),
        nn.SiLU(),
        nn.Linear(4, CLASSES),
        nn.Softsign(),
    )


def _in_place():
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Linear(5, 8), relu, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def _frozen(*names: str) -> Callable[[], nn.Module]:
    def build():
        module = _deep()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in names)
        return module

    return build


def _tied():
    module = nn.Sequential(
        nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, CLASSES)
    )
    module[2].weight = module[0].weight
    return module


def _images():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, (3, 2), stride=2, padding="valid"),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def _signal():
    convolution = nn.Conv1d(3, 4, 3, padding="same", dilation=2)
    return nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(20, CLASSES))


def _pooled_images():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


def _grouped_images():
    """Convolutions that are not captured as pairs, and a transposed one."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding=1, padding_mode="circular"),
        nn.GroupNorm(2, 4),
        nn.ELU(),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def _pooled_signal():
    convolution = nn.Conv1d(3, 4, 3, stride=2)
    return nn.Sequential(
        convolution, nn.GELU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, CLASSES)
    )


@dataclass(frozen=True)
class Case:
    """How to build a model and the shape of one input; `layered`: Linear + elementwise."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (5,)
    layered: bool = False
    tokens: bool = False

    def make(self, dtype=torch.float64):
        """The module in eval mode and `(x, y)`, the same every time."""
        torch.manual_seed(0)
        module = _with_statistics(self.build()).to(dtype).eval()
        x = torch.randn(ROWS, *self.shape).to(dtype)
        if self.tokens:
            x = torch.randint(0, 7, (ROWS, *self.shape))
        return module, x, torch.randint(0, CLASSES, (ROWS,))


def _with_statistics(module):
    """Batch norms as training leaves them: their own mean and variance for each channel."""
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return module


CASES = {
    "mlp": Case(_mlp, layered=True),
    "linear": Case(lambda: nn.Linear(5, CLASSES), layered=True),
    "deep": Case(_deep, layered=True),
    "functional": Case(Functional, (2, 3), layered=True),
    "in-place relu": Case(_in_place, layered=True),
    "frozen weight": Case(_frozen("0.weight", "6.bias"), layered=True),
    "frozen layer": Case(_frozen("0.bias", "2.weight", "8.weight"), layered=True),
    "tied": Case(_tied),
    "reused": Case(Reused),
    "residual": Case(Residual),
    "branching": Case(Branching),
    "positions": Case(lambda: nn.Sequential(_mlp(), nn.Flatten(), nn.Linear(12, 3)), (4, 5)),
    "norms": Case(
        lambda: nn.Sequential(
            nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)
        )
    ),
    "softmax inside": Case(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Softmax(-1), nn.Linear(4, CLASSES))
    ),
    "images": Case(_images, (1, 6, 5)),
    "signal": Case(_signal, (3, 5)),
    "pooled images": Case(_pooled_images, (1, 5, 5)),
    "grouped images": Case(_grouped_images, (2, 4, 4)),
    "pooled signal": Case(_pooled_signal, (3, 9)),
    "recurrent": Case(lambda: Recurrent(nn.GRU), (4, 3)),
    "lstm": Case(lambda: Recurrent(nn.LSTM, both=True), (4, 3)),
    "attention": Case(Attention, (4, 3)),
    "transformer": Case(Transformer, (4, 3)),
    "tokens": Case(Tokens, (4,), tokens=True),
    "tied tokens": Case(lambda: Tokens(tied=True), (4,), tokens=True),
}
LAYERED = [name for name, case in CASES.items() if case.layered]


def make_weighted(name, dtype=torch.float64):
    """An objective of a case, and its rows with weights."""
    module, x, y = CASES[name].make(dtype)
    weights = torch.linspace(0.2, 3, len(y), dtype=dtype)
    return Objective(module, "cross_entropy"), Rows(x, y, weights)


def digits():
    """The arrays of `digits_mlp.npz` as tensors: data, weights and other libraries' answers."""
    with np.load(Path(__file__).parent / "digits_mlp.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def digits_mlp(dtype=torch.float32):
    """The network of `digits_mlp.npz`: Linear(64, 32), tanh, Linear(32, 10)."""
    arrays = digits()
    module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    module.load_state_dict(
        {
            f"{layer}.{role}": arrays[f"{role}{layer}"]
            for layer in (0, 2)
            for role in ("weight", "bias")
        }
    )
    return module.to(dtype).eval()
