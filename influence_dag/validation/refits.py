r"""Refits: what the model would be if it had seen other rows, many such models at once.

Each member of an ensemble minimises

$$ f_m(\theta) = \sum_{k=1}^{n} w_{mk} \, L(z_k, \theta) + \frac{w}{2} \lVert\theta\rVert^2 $$

with weights of its own: $1/n$ everywhere is the full fit; a zero at $i$ leaves $z_i$ out (and
keeps $1/n$ on the others, which is what an influence is the derivative of); $1/|S|$ on a subset
$S$ fits the subset. All run in float64, in one vectorised minimisation.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from influence_dag.curvature import CURVATURES
from influence_dag.errors import ModelError, NotConvergedError, check_known
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Direct
from influence_dag.validation.ensembles import (
    WeightedLosses,
    is_linear_in_parameters,
    member_values,
)
from influence_dag.validation.minimising import Metric, Minima, minimise

_LARGEST_METRIC = 4096  # parameters up to which a dense inverse curvature pays
MOMENT = 2.0  # seconds after which a bar on a terminal tells how far one is
_STATIONARY = 1e-2  # norm of the penalised gradient at which a network counts as fitted

OnFailure = Literal["raise", "keep"]


class Ending(TypedDict, total=False):
    """What refits from θ are told besides: see `refit`."""

    tolerance: float
    max_steps: int
    proximal: bool


class Fitting(Ending, total=False):
    """What refits from anywhere are told besides."""

    start: Float[Tensor, "*m p"] | None
    on_failure: OnFailure


@dataclass(frozen=True, eq=False)
class Refits:
    """Fitted parameters of every member, float64, and how well each fit ended.

    `gradient_norms` are of the penalised weighted loss; `converged` says which reached the
    tolerance.
    """

    objective: Objective
    params: Float[Tensor, "m p"]
    gradient_norms: Float[Tensor, " m"]
    steps: Int[Tensor, " m"]
    tolerance: float
    seconds: float

    def __len__(self) -> int:
        return len(self.params)

    @property
    def converged(self) -> Bool[Tensor, " m"]:
        return self.gradient_norms <= self.tolerance

    def member(self, position: int) -> Objective:
        """One member's model, on a module of its own: its θ is where derivatives are taken."""
        return self.objective.in_float64(self.params[position])

    def losses(self, rows: Rows) -> Float[Tensor, "m k"]:
        """The loss of each row under each member."""
        return member_values(self.objective, self.params, rows.to(dtype=torch.float64))

    def measurements(self, rows: Rows) -> Float[Tensor, "m k"]:
        """What influences are on, for each row under each member."""
        rows = rows.to(dtype=torch.float64)
        return member_values(self.objective, self.params, rows, of="measurement")

    def summary(self) -> dict[str, float | int]:
        return {
            "refits": len(self),
            "converged": int(self.converged.sum()),
            "worst_gradient_norm": float(self.gradient_norms.max()),
            "mean_steps": float(self.steps.double().mean()),
            "seconds": self.seconds,
        }


def refit(
    objective: Objective,
    rows: Rows,
    weights: Float[Tensor, "m n"],
    *,
    weight_decay: float,
    start: Float[Tensor, "m p"] | Float[Tensor, " p"] | None = None,
    metric: Metric | Literal["auto"] | None = "auto",
    tolerance: float = 1e-8,
    max_steps: int = 200,
    history: int = 60,
    on_failure: OnFailure = "raise",
    proximal: bool = False,
) -> Refits:
    r"""Fit one model for each row of `weights`, all together.

    `start` is where they begin: one vector for all, one a member, or (default) `objective.params`.
    `metric` multiplies rows by an approximate inverse of the penalised Hessian; `"auto"` takes
    `default_metric`, with which refits near θ need a handful of steps, when they start there or
    the model is linear in θ. None is plain L-BFGS, right for networks that start elsewhere.

    `proximal` is for a θ that is no minimum, such as a checkpoint: in the penalty's place stands
    $\frac{w}{2} \lVert\theta' - \theta\rVert^2 - \nabla \bar L(\theta)^\top (\theta' - \theta)$,
    with which θ is stationary and the derivative of a refit is $(H + wI)^{-1}$ times a gradient
    (the proximal response of Bae et al. 2022). It tells how far the linear prediction holds, not
    what training without the rows would find.

    The members' rows share one evaluation a step, so that a thousand refits cost about as much
    as a thousand gradients times the steps of the slowest few. Buffers are constants.

    Raises `NotConvergedError` when a member misses `tolerance` (its gradient's norm) and
    `on_failure` is `"raise"`; `ModelError` for weights of another shape, or not finite.
    """
    check_known("on_failure", on_failure, get_args(OnFailure))
    objective, rows = objective.in_float64(), rows.to(dtype=torch.float64)
    weights = _checked(weights, rows).to(objective.params)
    started = time.perf_counter()
    if isinstance(metric, str):
        check_known("metric", metric, ["auto"])
        near = start is None or is_linear_in_parameters(objective, rows)
        metric = default_metric(objective, rows, weight_decay, proximal=proximal) if near else None
    points = _starts(objective, start, len(weights))
    problem = WeightedLosses.of(objective, rows, weights, weight_decay, proximal=proximal)

    def minimised(chunk: slice) -> Minima:
        part = problem[chunk]

        def evaluate(members: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
            everyone = len(members) == len(part.weights)
            return (part if everyone else part[members]).value_and_gradient(theta)

        ending = {"tolerance": tolerance, "max_steps": max_steps}
        return minimise(evaluate, points[chunk], metric=metric, history=history, **ending)

    chunks, bar = [*problem.chunks], {"delay": MOMENT, "disable": None, "leave": False}
    parts = [minimised(chunk) for chunk in tqdm(chunks, "refits", unit="part", **bar)]
    refits = Refits(
        objective,
        torch.cat([part.points for part in parts]),
        torch.cat([part.gradient_norms for part in parts]),
        torch.cat([part.steps for part in parts]),
        tolerance,
        time.perf_counter() - started,
    )
    if on_failure == "raise":
        _raise_unless_converged(refits, max_steps)
    return refits


def refit_without(
    objective: Objective,
    rows: Rows,
    index: Sequence[int] | Int[Tensor, " m"],
    *,
    weight_decay: float,
    **ending: Unpack[Ending],
) -> Refits:
    """Member 0 has every row, member 1 + k all but row `index[k]`; all start at θ.

    The full fit is among them because θ, often trained in float32, may be a little off the
    minimum: differences from member 0 are due to the missing row alone.
    """
    weights = torch.cat([rows.shares[None], leaving_out(rows.shares, index)])
    return refit(objective, rows, weights, weight_decay=weight_decay, **ending)


def default_metric(
    objective: Objective, rows: Rows, weight_decay: float, *, proximal: bool = False
) -> Metric | None:
    r"""Rows times $(G + wI)^{-1}$ at `objective.params`, G being the Gauss-Newton matrix.

    None where it would cost too much (p > 4,096), is singular ($w = 0$) or says nothing of the
    minimum: at a θ that is not one, unless the model is linear in θ.
    """
    if objective.size > _LARGEST_METRIC or weight_decay == 0:
        return None
    full = rows.shares[None].to(objective.device)
    problem = WeightedLosses.of(objective, rows, full, weight_decay, proximal=proximal)
    _, gradient = problem.value_and_gradient(objective.params[None])
    if gradient.norm() > _STATIONARY and not is_linear_in_parameters(objective, rows):
        return None
    curvature = CURVATURES["gauss_newton"](objective, rows)
    factorization = Direct(damping=weight_decay).factorize(curvature)
    return lambda vectors: factorization.solve(vectors, damping=weight_decay).x


def positions_of(
    index: Sequence[int] | Tensor | None, size: int, *, of: str = "training rows"
) -> Int[Tensor, " m"]:
    """Positions among so many, from whole numbers or a mask; all where none are named.

    Those below 0 are counted from the end. Raises `ModelError` for anything else.
    """
    chosen = torch.arange(size) if index is None else torch.as_tensor(index)
    if chosen.dtype == torch.bool and chosen.shape == (size,):
        chosen = chosen.nonzero().flatten()
    is_list = not chosen.is_floating_point() and chosen.dtype != torch.bool and chosen.ndim == 1
    chosen = chosen.long() if is_list else chosen  # in uint8 they would be a mask
    if not is_list or not len(chosen) or chosen.min() < -size or chosen.max() >= size:
        raise ModelError(
            f"{chosen.tolist()} are no positions of {size} {of}; name at least one, by whole "
            f"numbers from 0 to {size - 1}"
        )
    return chosen % size


def leaving_out(
    shares: Float[Tensor, " n"], index: Sequence[int] | Int[Tensor, " m"]
) -> Float[Tensor, "m n"]:
    """The rows' shares in the mean with a zero at each chosen row; the others stay as they are.

    >>> leaving_out(torch.full((4,), 1 / 4), [2])
    tensor([[0.2500, 0.2500, 0.0000, 0.2500]])
    """
    index = torch.as_tensor(index)
    weights = shares.repeat(len(index), 1)
    weights[torch.arange(len(index)), index] = 0.0
    return weights


def _starts(objective: Objective, start: Tensor | None, members: int) -> Float[Tensor, "m p"]:
    theta = objective.params if start is None else start.detach().to(objective.params)
    if theta.shape not in [(objective.size,), (members, objective.size)]:
        raise ModelError(
            f"start has shape {tuple(theta.shape)}; wanted ({objective.size},) or "
            f"({members}, {objective.size})"
        )
    return theta.expand(members, -1).clone()


def _checked(weights: Tensor, rows: Rows) -> Tensor:
    if weights.ndim != 2 or weights.shape[1] != len(rows) or not len(weights):
        raise ModelError(
            f"weights have shape {tuple(weights.shape)}; wanted (members, {len(rows)}), one "
            "weight a training row"
        )
    if strange := int((~weights.isfinite().all(dim=1)).sum()):
        raise ModelError(
            f"the weights of {strange} of {len(weights)} members are not finite numbers, as those "
            "of a subset or fold are of which no row counts; draw larger ones, or fewer folds"
        )
    return weights


def _raise_unless_converged(refits: Refits, max_steps: int) -> None:
    missed = int((~refits.converged).sum())
    if missed:
        raise NotConvergedError(
            f"{missed} of {len(refits)} refits missed tolerance={refits.tolerance:g} in at most "
            f"{max_steps} steps (worst gradient norm {float(refits.gradient_norms.max()):.1e}); "
            "raise max_steps or tolerance, or pass on_failure='keep'"
        )
