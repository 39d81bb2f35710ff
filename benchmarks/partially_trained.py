"""Which inverse serves a network that was stopped early: part of `make fidelity`.

A small convolutional network on 300 digits is trained for 60 steps and no further. Its Hessian is
indefinite, and each choice of what to invert is judged by training again from the same initial
weights for the same number of steps, on random halves (LDS) and without single rows (Pearson).
"""

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from influence_dag.curvature import DenseCurvature, GaussNewton, Hessian
from influence_dag.datasets.splits import load_splits
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Direct, Identity, Method
from influence_dag.study.loading import load_study
from influence_dag.validation.agreement import pearson
from influence_dag.validation.datamodels import (
    SubsetFits,
    draw_subsets,
    linear_datamodelling_score,
)

ROOT = Path(__file__).parents[1]
TRAIN, TESTS, HALVES, LEFT_OUT, STEPS = 300, 60, 40, 40, 60
TRAININGS = {"Adam, seed 0": ("adam", 0), "Adam, seed 1": ("adam", 1), "SGD, seed 2": ("sgd", 2)}
HEAD = ["what is inverted", "λ", *TRAININGS]


def build() -> nn.Module:
    """8 × 8 images in, ten logits out: 512 parameters, near enough."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 5, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(45, 10),
    ).double()


def trained(rows: Rows, members: Tensor, optimizer: str, seed: int) -> nn.Module:
    """The network after the steps, from the seed's weights, on the mean loss of the members."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
    make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    fitting = make(module.parameters(), lr={"adam": 0.02, "sgd": 0.5}[optimizer])
    x, y = rows.x[members], rows.y[members]
    for _ in range(STEPS):
        fitting.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        fitting.step()
    return module


@dataclass(frozen=True, eq=False)
class Stopped:
    """A network that was stopped, its curvatures, and what training on other rows led to."""

    H: Tensor
    G: Tensor
    rhs: Tensor
    gradients: Tensor
    halves: SubsetFits
    without: SubsetFits
    full: np.ndarray

    def score(self, method: Method, matrix: Tensor, damping: float) -> str:
        """LDS / leave-one-out Pearson of the influences that this inverse gives."""
        solved = method.factorize(DenseCurvature(matrix)).solve(self.rhs, damping=damping).x
        influences = solved @ self.gradients.T
        lds = linear_datamodelling_score(influences, self.halves, replicates=1).mean
        predicted = self.without.predicted(influences)
        found = self.without.values.T - self.full[:, None]
        return f"{lds:.3f} / {float(pearson(predicted.ravel(), found.ravel())):.3f}"


def stopped(train: Rows, test: Rows, optimizer: str, seed: int) -> Stopped:
    def losses(members: Tensor) -> np.ndarray:
        module = trained(train, members, optimizer, seed)
        with torch.no_grad():
            return nn.functional.cross_entropy(module(test.x), test.y, reduction="none").numpy()

    def fits(membership: Tensor) -> SubsetFits:
        return SubsetFits(membership, np.stack([losses(members) for members in membership]))

    everyone = torch.ones(len(train), dtype=torch.bool)
    module = trained(train, everyone, optimizer, seed)
    objective = Objective(module.eval(), "cross_entropy")
    generator = torch.Generator().manual_seed(3)
    left_out = torch.randperm(len(train), generator=generator)[:LEFT_OUT]
    without = everyone.repeat(LEFT_OUT, 1)
    without[torch.arange(LEFT_OUT), left_out] = False
    return Stopped(
        Hessian(objective, train).dense(),
        GaussNewton(objective, train).dense(),
        per_sample_gradients(objective, test).dense(),
        per_sample_gradients(objective, train).dense(),
        fits(draw_subsets(len(train), count=HALVES, seed=1)),
        fits(without),
        losses(everyone),
    )


def choices(case: Stopped) -> dict[tuple[str, str], str]:
    """The score of each choice, by what is inverted and λ in words."""
    values = torch.linalg.eigvalsh(case.H)
    mean, smallest = values.abs().mean().item(), -values[0].item()
    trace = case.G.diagonal().mean().item()
    absolute, lu = Direct(on_indefinite="absolute"), Direct(on_indefinite="lu")
    entries = [
        ("H as it is (`on_indefinite: lu`)", "0.1 mean abs eigenvalue", lu, case.H, 0.1 * mean),
        ("H", "1.1 × abs smallest", Direct(), case.H, 1.1 * smallest),
        ("H", "2 × abs smallest, what the error names", Direct(), case.H, 2 * smallest),
        ("H", "5 × abs smallest", Direct(), case.H, 5 * smallest),
        ("abs(H) (`on_indefinite: absolute`)", "`auto`", absolute, case.H, mean),
        ("abs(H)", "0.1 `auto`", absolute, case.H, 0.1 * mean),
        ("G (`curvature: gauss_newton`)", "`auto`: trace / p", Direct(), case.G, trace),
        ("G", "0.1 trace / p", Direct(), case.G, 0.1 * trace),
        ("nothing (`identity`)", "", Identity(), case.H, 0.0),
    ]
    return {(name, told): case.score(*rest) for name, told, *rest in entries}


def section(machine: str) -> str:
    """The table, with what it was measured on."""
    started = time.process_time()
    settings = load_study(ROOT / "assets/digits_cnn")
    train, test = (
        Rows(torch.as_tensor(split.x["x"]).double(), torch.as_tensor(split.y))[:count]
        for split, count in zip(
            load_splits(settings.settings.data, settings.root), (TRAIN, TESTS), strict=True
        )
    )
    cases = {name: stopped(train, test, *how) for name, how in TRAININGS.items()}
    columns = [choices(case) for case in cases.values()]
    case = next(iter(cases.values()))
    rows: list[Sequence[str]] = [
        (*which, *(column[which] for column in columns)) for which in columns[0]
    ]
    ends = "; ".join(
        f"{name}: {values[0]:.3f} and {values[-1]:.2f}"
        for name, each in cases.items()
        for values in [torch.linalg.eigvalsh(each.H)]
    )
    lines = [HEAD, ["---"] * 2 + ["---:"] * len(TRAININGS), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""### A network stopped early: {case.H.shape[0]} parameters

{TRAIN} training rows, {TESTS} test rows, {STEPS} steps from the seed's weights; {HALVES} random
halves and {LEFT_OUT} rows left out one at a time, each trained again from the same weights for as
many steps. Smallest and largest eigenvalue of H: {ends}.
Each cell: LDS / Pearson correlation of predicted and found leave-one-out changes.
Measured on {datetime.date.today()}, {machine}; {time.process_time() - started:.0f} CPU seconds.

{table}
"""
