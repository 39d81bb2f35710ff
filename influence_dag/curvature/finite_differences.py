"""Second derivatives by autograd against differences of gradients, in float64, on a few rows."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.objective.twice_differentiable import NOT_FOLLOWED, plain_gradient

_ROWS = 12  # drawn from all
_STEPS = (1e-5, 1e-6)  # of differences, in units of θ's own size
_CLOSE = 1e-3  # relative difference that curvature of higher order explains
_SETTLED = 1e-2  # the same between the two steps
_SMALL = 1e-6  # of the gradient: a product this small says nothing


def check_second_derivatives(objective: Objective, rows: Rows) -> None:
    r"""Raise `ModelError` where torch's second derivatives are not those of its gradients.

    $$ \nabla^2 L\, v \approx \frac{\nabla L(\theta + \epsilon v) - \nabla L(\theta)}{\epsilon} $$

    for random v, one row after another where all together disagree. At a kink (of ReLU, of an
    absolute value) or a jump the differences do not settle, which is no fault; those of a part
    whose backward is not differentiable (values that it saved, detached) settle elsewhere, at most
    of the rows.
    """
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(rows), generator=generator)[:_ROWS].to(objective.device)
    try:
        double = _Double(objective)
        sample = rows[some].to(dtype=torch.float64)
        if _agree(double, sample):
            return
        verdicts = [_agree(double, row) for row in sample.batches(1)]
    except (*NOT_FOLLOWED, TypeError):
        return  # a module or loss that takes its own precision only
    wrong, told = verdicts.count(False), len(verdicts) - verdicts.count(None)
    if 2 * wrong > told:
        raise ModelError(
            f"the second derivatives that torch gives of {type(objective.module).__name__} are not "
            f"those of its gradients (on {wrong} of {told} rows they differ from differences of "
            "gradients): a part of it has a backward that is not differentiable itself, such as an "
            "autograd.Function that computes with detached or saved values, or a checkpoint, which "
            "computes anew from the module's own parameters; write that part in plain operations, "
            "switch checkpointing off, or take the Gauss-Newton curvature"
        )


class _Double:
    """An objective in float64 whatever the module's own precision."""

    def __init__(self, objective: Objective):
        self.objective, module = objective, objective.module
        state = [*module.named_parameters(), *module.named_buffers()]
        self.constants = {name: _double(value.detach()) for name, value in state}
        self.theta = objective.params.double()

    def gradient(
        self, theta: Float[Tensor, " p"], rows: Rows, *, create_graph: bool = False
    ) -> Tensor:
        with torch.enable_grad():
            outputs = self.objective.run(self.constants | self.objective.unflatten(theta), rows.x)
            total = rows.weighted(self.objective.loss(outputs, rows.y)).sum()
            return plain_gradient(total, theta, create_graph=create_graph)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _agree(double: _Double, rows: Rows) -> bool | None:
    """Whether products are differences of gradients, in some direction, to some side.

    None where the differences do not settle as the step gets smaller: there is a kink or a jump.
    """
    theta = double.theta.clone().requires_grad_()
    gradient = double.gradient(theta, rows, create_graph=True)
    base, settled = gradient.detach(), False
    # What autograd holds constant (an embedding's padding vector, a detached part) is not moved.
    constant = base == 0
    for direction in _directions(double):
        direction[constant] = 0.0
        product = plain_gradient(gradient, theta, direction).detach()
        small = _SMALL * base.norm()
        for side in (1, -1):
            coarse, fine = (
                (double.gradient(_moved(theta, side * step, direction), rows) - base)
                / (side * step)
                for step in _STEPS
            )
            if (fine - product).norm() <= _CLOSE * (product.norm() + small):
                return True
            settled |= bool((coarse - fine).norm() <= _SETTLED * (fine.norm() + small))
    return False if settled else None


def _moved(theta: Tensor, step: float, direction: Tensor) -> Tensor:
    return (theta.detach() + step * direction).requires_grad_()


def _directions(double: _Double) -> Iterator[Tensor]:
    """Two random directions of the size of θ, tensor by tensor."""
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(len(double.theta), generator=generator, dtype=torch.float64)
        direction = random.to(double.theta.device)
        for place in double.objective.slices.values():
            size = double.theta[place].square().mean().sqrt()
            direction[place] *= size if size > 0 else 1.0
        yield direction
