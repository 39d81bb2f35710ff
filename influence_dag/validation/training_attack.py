r"""Training-set attacks: change one training input so that one prediction suffers.

Perturbation influences are the derivative of a test loss in a training input, so they say how
to change the input for the loss to grow (Koh & Liang 2017, §5.2):

$$ x_i \leftarrow \Pi\big( x_i - \alpha \, \mathrm{sign} \, P_{ji} \big) $$

with $\Pi$ the projection to the allowed range, and the model fitted again after every step. Run
on one's own study it tells how much a prediction hangs on a single row.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.influence.perturbation import perturbation_influences
from influence_dag.losses import likelihood_of
from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation.predictions import ExactPredictions
from influence_dag.validation.refits import positions_of, refit


@dataclass(frozen=True, eq=False)
class TrainingAttack:
    """The course of an attack; entry t of the arrays is the model after t steps.

    `losses` (or measurements) of the attacked test row are those of refitted models;
    `predicted[t]` is what the perturbation influence of step t - 1 said they would be, and
    `first_order` what that of the very first step says of the final input.
    """

    row: int
    original: Float[Array, "..."]
    changed: Float[Array, "..."]
    losses: Float[Array, " steps"]
    predicted: Float[Array, " steps"]
    first_order: float
    outputs: Float[Array, "steps ..."]
    model: Objective

    @property
    def predicted_class(self) -> Int[Array, " steps"]:
        """The class with the largest output, for a classifier; by the sign of a single logit."""
        return np.array([_top(self.model, output) for output in self.outputs])

    @property
    def flipped(self) -> bool:
        """Whether the class predicted for the test row is another one in the end."""
        return bool(self.predicted_class[-1] != self.predicted_class[0])

    def summary(self) -> dict[str, Any]:
        change = self.changed - self.original
        return {
            "training_row": self.row,
            "steps": len(self.losses) - 1,
            "largest_feature_change": float(np.abs(change).max()),
            "loss_before": float(self.losses[0]),
            "loss_after": float(self.losses[-1]),
            "loss_predicted_step_by_step": float(
                self.losses[0] + (self.predicted[1:] - self.losses[:-1]).sum()
            ),
            "loss_predicted_at_once": self.first_order,
            "class_before": int(self.predicted_class[0]),
            "class_after": int(self.predicted_class[-1]),
        }


def training_attack(
    objective: Objective,
    train: Rows,
    test: Rows,
    *,
    weight_decay: float,
    damping: float | None = None,
    row: int | None = None,
    feature_range: tuple[float, float],
    radius: float | None = None,
    step: float = 0.1,
    max_steps: int = 20,
    stop_when_flipped: bool = True,
    tolerance: float = 1e-8,
) -> TrainingAttack:
    r"""Raise the loss of the one row of `test` by changing the input of one training row.

    Each step moves every feature by `step` in the direction that raises the loss, within
    `feature_range` and at most `radius` from the original, and fits again. `row` is the position
    of the training row; default, the one that `most_exposed_row` names. Stops early when the
    predicted class changes (`stop_when_flipped`) or no feature can move.

    Raises `ModelError` unless the model has one floating input, `test` one row and the training
    row, which is one of them, its features within the range; `NotConvergedError` as `refit` does.
    """
    objective = objective.in_float64()
    train, test = train.to(dtype=torch.float64), test.to(dtype=torch.float64)
    _check(train, test, step, radius)
    damping = weight_decay if damping is None else damping
    if row is None:
        row = most_exposed_row(objective, train, test, damping=damping, feature_range=feature_range)
    row = int(positions_of([row], len(train)))
    box = _box(train.x[row], feature_range, radius, row)
    course = [_State.at(objective, train, test, row, damping)]
    fit = partial(refit, weight_decay=weight_decay, tolerance=tolerance)
    predicted = [course[0].loss]
    for _ in range(max_steps):
        here = course[-1]
        x = (here.x - step * here.perturbation.sign()).clamp(*box)
        if torch.equal(x, here.x):
            break
        predicted.append(here.predict(x))
        train = _with_input(train, row, x)
        again = fit(here.objective, train, train.shares[None])
        course.append(_State.at(again.member(0), train, test, row, damping))
        if stop_when_flipped and course[-1].top != course[0].top:
            break
    return _result(row, course, predicted)


def most_exposed_row(
    objective: Objective,
    train: Rows,
    test: Rows,
    *,
    damping: float,
    feature_range: tuple[float, float],
) -> int:
    """The training row that could raise the test row's loss most, to first order.

    Every feature goes to the end of `feature_range` that raises it.
    """
    exact = ExactPredictions(objective, train, damping=damping)
    P = perturbation_influences(objective, exact.factors(test), train)[0]
    low, high = feature_range
    P, x = (each.reshape(len(train), -1) for each in (P, train.x))
    gains = torch.maximum(-P * (high - x), -P * (low - x)).clamp_min(0).sum(dim=1)
    return int(gains.argmax())


@dataclass(frozen=True, eq=False)
class _State:
    """One model of the course, and what it says of changes of the training input."""

    objective: Objective
    x: Float[Tensor, "..."]
    perturbation: Float[Tensor, "..."]
    loss: float
    output: Tensor
    weight_sum: float

    @classmethod
    def at(
        cls, objective: Objective, train: Rows, test: Rows, row: int, damping: float
    ) -> "_State":
        factors = ExactPredictions(objective, train, damping=damping).factors(test)
        P = perturbation_influences(objective, factors, train[row : row + 1])[0, 0]
        with torch.no_grad():
            output = objective.outputs(objective.params, test.x)[0]
            loss = float(objective.measurements(objective.params, test))
        return cls(objective, train.x[row], P, loss, output, train.weight_sum)

    @property
    def top(self) -> int:
        return _top(self.objective, self.output)

    def predict(self, x: Tensor) -> float:
        r"""The test loss after a refit with the input x: $L - (x - x_i) \cdot P / n$."""
        return self.loss - float(((x - self.x) * self.perturbation).sum()) / self.weight_sum


def _top(objective: Objective, output: Tensor | Array) -> int:
    """The class that an output of one row says; of a single logit its sign does."""
    if likelihood_of(objective.loss) == "bernoulli" and output.shape in ((), (1,)):
        return int(output.item() > 0)
    return int(output.argmax())


def _result(row: int, course: list[_State], predicted: list[float]) -> TrainingAttack:
    first, last = course[0], course[-1]
    return TrainingAttack(
        row,
        first.x.numpy(force=True),
        last.x.numpy(force=True),
        np.array([state.loss for state in course]),
        np.array(predicted),
        first.predict(last.x),
        torch.stack([state.output for state in course]).numpy(force=True),
        last.objective,
    )


def _box(
    x: Tensor, feature_range: tuple[float, float], radius: float | None, row: int
) -> tuple[Tensor, Tensor]:
    low, high = feature_range
    if x.min() < low or x.max() > high:
        raise ModelError(
            f"training row {row} has features from {float(x.min()):g} to {float(x.max()):g}, "
            f"outside feature_range=({low:g}, {high:g})"
        )
    reach = torch.inf if radius is None else radius
    return (x - reach).clamp_min(low), (x + reach).clamp_max(high)


def _with_input(train: Rows, row: int, x: Tensor) -> Rows:
    inputs = train.x.clone()
    inputs[row] = x
    return Rows(inputs, train.y, train.weights)


def _check(train: Rows, test: Rows, step: float, radius: float | None) -> None:
    if not isinstance(train.x, Tensor) or not train.x.is_floating_point():
        raise ModelError("training_attack needs a model with one input tensor of real numbers")
    if len(test) != 1:
        raise ModelError(f"training_attack is on one test row; {len(test)} were given")
    if not step > 0 or (radius is not None and not radius >= 0):
        raise ModelError(
            f"step={step:g}, radius={radius}; take a step above 0, a radius of 0 or more"
        )
