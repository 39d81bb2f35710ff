r"""Fitting: the minimum at which influence functions are taken.

Influence functions describe a stationary point of

$$ f(\theta) = \frac{1}{n} \sum_{i=1}^{n} L(z_i, \theta) + \frac{w}{2} \lVert\theta\rVert^2 , $$

so what counts is the norm of $\nabla f$, not the loss. L-BFGS comes near on its own; on the
saddles and plateaus of a network it creeps, where a trust-region Newton method (Steihaug, 1983)
with Hessian–vector products ends in a few dozen steps, quadratically.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_dag.errors import ModelError
from influence_dag.objective.footprint import multiplications
from influence_dag.objective.lbfgs import LBFGS
from influence_dag.objective.objective import LossFunction, Objective, Rows
from influence_dag.objective.threads import is_small_pass, one_thread
from influence_dag.objective.twice_differentiable import plain_gradient
from influence_dag.study.model import FitSettings

Report = Callable[[str], None]
Product = Callable[[Tensor], Tensor]

LEARNING_RATES = {"adam": 1e-3, "sgd": 1e-1}
LBFGS_STEPS = 100  # between two looks at the gradient's norm
CG_STEPS = 500  # products a Newton step may take
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class FitReport:
    """Where a fit ended: `loss` and `gradient_norm` are those of the penalised mean loss."""

    optimizer: str
    loss: float
    gradient_norm: float
    steps: int
    converged: bool
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.optimizer}: {self.steps} steps, penalised mean loss {self.loss:.6g}, "
            f"gradient norm {self.gradient_norm:.1e} "
            f"({'converged' if self.converged else 'NOT converged'}), {self.seconds:.1f} s"
        )


def fit(
    module: nn.Module,
    loss: str | LossFunction,
    rows: Rows,
    settings: FitSettings,
    *,
    output: str | None = None,
    report: Report | None = None,
) -> FitReport:
    """Minimise the penalised mean loss in place; the module is left in eval mode.

    Everything runs in eval mode, because what is minimised has to be what is differentiated
    later; a model that needs dropout or batch statistics to train takes `fit: module:callable`.

    `lbfgs` works in float64 whatever the module's dtype, on all rows: at most `max_steps` steps
    with a strong-Wolfe search, then, when the gradient norm is still above `tolerance`, at most
    `max_steps` Newton steps. `adam` and `sgd` (without momentum) take `max_steps` steps of
    `batch_size` rows, drawn without replacement in an order that `seed` decides.

    Raises `ModelError` when the loss stops being finite.
    """
    started, say = time.perf_counter(), report or (lambda message: None)
    module.eval()
    method = _fit_on_all_rows if settings.optimizer == "lbfgs" else _fit_on_batches
    objective = Objective(module, loss, output=output)
    at_once = len(rows) if settings.optimizer == "lbfgs" else settings.batch_size or len(rows)
    with one_thread(where=is_small_pass(min(at_once, len(rows)), multiplications(objective, rows))):
        theta, problem, steps = method(objective, rows, settings, say)
    value, gradient = problem.value_and_gradient(theta)
    objective.put(theta, module)
    norm, seconds = float(gradient.norm()), time.perf_counter() - started
    converged = norm <= settings.tolerance
    result = FitReport(settings.optimizer, float(value), norm, steps, converged, seconds)
    say(str(result))
    return result


class _Problem:
    """The penalised mean loss on all rows: its value, gradient and Hessian–vector products."""

    def __init__(self, objective: Objective, rows: Rows, penalty: float):
        self.objective = objective
        self.rows, self.penalty = rows.to(dtype=self.objective.dtype), penalty

    def loss(self, theta: Float[Tensor, " p"], rows: Rows) -> Float[Tensor, ""]:
        """An unbiased estimate from some rows of the penalised mean over all."""
        share = len(rows) / len(self.rows) * self.rows.weight_sum
        return self.objective.total_loss(theta, rows) / share + self.penalty / 2 * theta @ theta

    def value_and_gradient(
        self, theta: Float[Tensor, " p"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " p"]]:
        value, gradient = theta.new_zeros(()), torch.zeros_like(theta).detach()
        for part, point in self._parts(theta):
            value = value + part.detach()
            gradient += torch.autograd.grad(part, point)[0]
        if not value.isfinite():
            raise ModelError(
                f"the fit left the finite numbers: penalised mean loss {float(value)}; "
                "scale the features to the order of 1, or (adam, sgd) lower learning_rate"
            )
        return value.detach(), gradient

    def hessian_product(self, theta: Float[Tensor, " p"]) -> Product:
        """`v → ∇²f(θ) v`; the gradients' graphs are recorded once and kept."""
        recorded = [
            (torch.autograd.grad(part, point, create_graph=True)[0], point)
            for part, point in self._parts(theta)
        ]

        def product(vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
            parts = (plain_gradient(gradient, point, vector) for gradient, point in recorded)
            return torch.stack(list(parts)).sum(0)

        return product

    def _parts(self, theta: Float[Tensor, " p"]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.rows.batches(ROWS_AT_ONCE):
            point = theta.detach().requires_grad_()
            yield self.loss(point, batch) * (len(batch) / len(self.rows)), point


def _fit_on_all_rows(
    objective: Objective, rows: Rows, settings: FitSettings, say: Report
) -> tuple[Tensor, _Problem, int]:
    module = copy.deepcopy(objective.module).double()  # buffers have to be float64 too
    exact = Objective(module, objective.loss, output=objective.output)
    problem = _Problem(exact, rows, settings.weight_decay)
    theta, steps = _lbfgs(problem, settings.max_steps, settings.tolerance)
    norm = problem.value_and_gradient(theta)[1].norm()
    if norm <= settings.tolerance:
        return theta, problem, steps
    say(f"lbfgs: {steps} steps, gradient norm {float(norm):.1e}; Newton steps follow")
    theta, newton_steps = _newton(problem, theta, settings.max_steps, settings.tolerance)
    return theta, problem, steps + newton_steps


def _lbfgs(problem: _Problem, max_steps: int, tolerance: float) -> tuple[Tensor, int]:
    """Limited-memory BFGS with a strong-Wolfe search, started afresh where the search gives up."""

    def begun(theta: Float[Tensor, " p"]) -> LBFGS:
        largest = tolerance / math.sqrt(len(theta))  # of an entry; the tolerance is of the norm
        return LBFGS(problem.value_and_gradient, theta, tolerance=largest)

    descent, steps = begun(problem.objective.params.clone()), 0
    while steps < max_steps:
        is_new, wanted = descent.steps == 0, min(LBFGS_STEPS, max_steps - steps)
        taken = descent.run(wanted)
        steps += taken
        if descent.gradient.norm() <= tolerance:
            break
        if taken < wanted:
            if is_new and taken <= 1:
                break  # not even the steepest descent moves
            descent = begun(descent.theta)
    return descent.theta, steps


def _newton(
    problem: _Problem, theta: Float[Tensor, " p"], max_steps: int, tolerance: float
) -> tuple[Tensor, int]:
    """Newton's method in a trust region, each step by truncated conjugate gradients."""
    radius, (value, gradient) = 1.0, problem.value_and_gradient(theta)
    for step in range(max_steps):
        norm = gradient.norm()
        if norm <= tolerance or radius < 1e-12:
            return theta, step
        move, predicted = _steihaug(problem.hessian_product(theta), gradient, radius)
        trial_value, trial_gradient = problem.value_and_gradient(theta + move)
        if predicted > 1e-12 * value.abs():
            ratio = float((value - trial_value) / predicted)
        else:  # rounding hides the decrease: the gradient has to tell
            ratio = 1.0 if trial_gradient.norm() < norm else 0.0
        if ratio < 0.25:
            radius = float(move.norm()) / 4
        elif ratio > 0.75 and move.norm() > 0.99 * radius:
            radius *= 2
        if ratio > 1e-4:
            theta, value, gradient = theta + move, trial_value, trial_gradient
    return theta, max_steps


def _steihaug(
    product: Product, gradient: Float[Tensor, " p"], radius: float
) -> tuple[Float[Tensor, " p"], Tensor]:
    """The step that lowers the quadratic model, and by how much; to the edge if it bends down."""
    move, product_of_move = torch.zeros_like(gradient), torch.zeros_like(gradient)
    residual = -gradient
    direction, square = residual.clone(), residual @ residual
    enough = min(0.25, float(square) ** 0.5) * square
    for _ in range(CG_STEPS):
        curved = product(direction)
        curvature = direction @ curved
        length = square / curvature
        leaves = curvature <= 0 or (move + length * direction).norm() >= radius
        if leaves:
            length = _to_the_edge(move, direction, radius)
        move = move + length * direction
        product_of_move = product_of_move + length * curved
        residual = residual - length * curved
        square, before = residual @ residual, square
        if leaves or square <= enough:
            break
        direction = residual + square / before * direction
    return move, -(gradient @ move + move @ product_of_move / 2)


def _to_the_edge(move: Tensor, direction: Tensor, radius: float) -> Tensor:
    """The positive length at which `move + length * direction` has norm `radius`."""
    a, b = direction @ direction, move @ direction
    return (-b + (b * b + a * (radius**2 - move @ move)).sqrt()) / a


def _fit_on_batches(
    objective: Objective, rows: Rows, settings: FitSettings, say: Report
) -> tuple[Tensor, _Problem, int]:
    problem = _Problem(objective, rows, settings.weight_decay)
    theta = problem.objective.params.clone().requires_grad_()
    rate = settings.learning_rate or LEARNING_RATES[settings.optimizer]
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
    optimizer = kind([theta], lr=rate)
    size = min(settings.batch_size or len(rows), len(rows))
    batches = _endless_batches(len(rows), size, settings.seed)
    for step, index in zip(range(settings.max_steps), batches, strict=False):
        value = problem.loss(theta, problem.rows[index.to(theta.device)])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 500 == 0:
            say(f"{settings.optimizer}: step {step}, penalised loss {float(value.detach()):.6g}")
    return theta.detach(), problem, settings.max_steps


def _endless_batches(n: int, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).split(size)
