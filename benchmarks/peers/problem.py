"""The work that every library does: influences of the digits network, p = 2,410.

scikit-learn's digits over 16, 1,500 training and 297 test rows, `Linear(64, 32) → tanh →
Linear(32, 10)`, cross-entropy, λ = 0.01. Imported in every library's environment: torch and numpy
alone, nothing of the project.
"""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

DAMPING = 0.01
RTOL = 1e-4  # of conjugate gradients
RANK = 50  # of Arnoldi
SKETCH = 100  # of Nyström
STEPS = 200  # of LiSSA, each with one batch
SCALE = 20.0  # of LiSSA: more than the largest eigenvalue plus damping
BATCH = 500

FILE = Path(__file__).parents[2] / "tests" / "digits_mlp.npz"


class MLP(nn.Module):
    """A class with its layers as attributes, which captum wants."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.act, self.out = nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.hidden(x)))


def module(arrays: dict[str, np.ndarray]) -> MLP:
    """The trained network, without denormal weights: they slow some libraries' products tenfold."""
    made = MLP()
    weights = [torch.tensor(arrays[name]) for name in ("weight0", "bias0", "weight2", "bias2")]
    with torch.no_grad():
        for parameter, weight in zip(made.parameters(), weights, strict=True):
            tiny = weight.abs() < torch.finfo(weight.dtype).tiny
            parameter.copy_(weight.masked_fill(tiny, 0.0))
    return made.eval()


@dataclass(frozen=True)
class Problem:
    """The network and the rows, in float32."""

    model: MLP
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @classmethod
    def read(cls) -> "Problem":
        with np.load(FILE) as file:
            arrays = dict(file)
        rows = [torch.tensor(arrays[name]) for name in ("x_train", "y_train", "x_test", "y_test")]
        return cls(module(arrays), rows[0], rows[1].long(), rows[2], rows[3].long())

    @property
    def train(self) -> TensorDataset:
        return TensorDataset(self.x, self.y)

    def loader(self, batch: int = BATCH) -> DataLoader:
        return DataLoader(self.train, batch_size=batch)

    def test_loader(self, batch: int | None = None) -> DataLoader:
        test = TensorDataset(self.x_test, self.y_test)
        return DataLoader(test, batch_size=batch or len(test))

    @cached_property
    def exact(self) -> "Exact":
        return Exact.of(self)


@dataclass(frozen=True)
class Exact:
    """What is asked, in float64, by plain automatic differentiation."""

    influences: Tensor  # (test, train), positive where a row helps
    perturbation: Tensor  # (the first tests, the first rows, 64)

    @classmethod
    def of(cls, problem: Problem) -> "Exact":
        model = copy.deepcopy(problem.model).double()
        theta = torch.cat([p.detach().flatten() for p in model.parameters()])

        def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            parts = theta.split([p.numel() for p in model.parameters()])
            named = {
                name: part.view_as(p)
                for (name, p), part in zip(model.named_parameters(), parts, strict=True)
            }
            output = torch.func.functional_call(model, named, (x[None],))
            return cross_entropy(output, y[None])

        def mean(theta: Tensor) -> Tensor:
            return torch.vmap(loss, (None, 0, 0))(theta, problem.x.double(), problem.y).mean()

        gradient = torch.func.grad(loss)
        gradients = torch.vmap(gradient, (None, 0, 0))
        at_theta = theta.requires_grad_()
        (slope,) = torch.autograd.grad(mean(at_theta), at_theta, create_graph=True)
        unit = torch.eye(len(theta), dtype=theta.dtype)
        columns = [
            torch.autograd.grad(slope, at_theta, part, is_grads_batched=True, retain_graph=True)[0]
            for part in unit.split(64)
        ]
        theta = theta.detach()
        damped = torch.cat(columns).detach() + DAMPING * unit
        tests = gradients(theta, problem.x_test.double(), problem.y_test)
        factors = torch.linalg.solve(damped, tests.T).T
        rows = gradients(theta, problem.x.double(), problem.y)

        def score(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
            return factor @ gradient(theta, x, y)

        over_rows = torch.vmap(torch.func.grad(score), (0, 0, None))
        some = torch.vmap(over_rows, (None, None, 0))
        few = problem.x[:TRAIN_PAIRS].double(), problem.y[:TRAIN_PAIRS]
        return cls(factors @ rows.T, some(*few, factors[:TEST_PAIRS]))


TEST_PAIRS, TRAIN_PAIRS = 10, 100  # of perturbations, compared with float64
