"""One inverse of the curvature in memory: from the arguments of a call to x and its info."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from influence_dag.curvature import CURVATURES, Curvature, DenseCurvature
from influence_dag.curvature.batched import BatchedCurvature
from influence_dag.functional.arguments import choice, damping_of, method_of, start_of
from influence_dag.functional.outcomes import Solver, check_finite, check_start
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.batching import check_all_rows
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import (
    EKFAC,
    KFAC,
    METHODS,
    Blockwise,
    ConjugateGradient,
    Direct,
    Factorization,
    Identity,
    LiSSA,
    Method,
    Nystroem,
    Solution,
    parameter_blocks,
)
from influence_dag.solvers.base import residuals
from influence_dag.solvers.blocks import BlockFactorization, Blocks
from influence_dag.solvers.dampings import AutomaticDamping, automatic_damping
from influence_dag.solvers.forming import OF_LINEAR_LAYERS, worth_forming
from influence_dag.study.curvatures import CURVATURE_KINDS

Damping: TypeAlias = float | Literal["auto"]

_MANY = 30  # rows, for which a sketch's power iteration saves more products than it takes
_LARGEST_PRECISE = 4096  # parameters of a problem that is taken to float64


class InverseHvpResult(NamedTuple):
    r"""Rows `x` with $(H + \lambda I)\, x = b$, and what the method knows about them."""

    x: Tensor
    info: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Inversion:
    """Which inverse is meant: what the arguments say, checked before any work."""

    name: str
    method: Method
    damping: Damping
    curvature: str
    blocks: Blocks
    block_damping: Mapping[str, float]
    start: Tensor | None

    @classmethod
    def of(
        cls,
        inversion_method: str | Enum,
        damping: Damping,
        /,
        *,
        hessian_perturbation: Damping | None = None,
        curvature: str = "hessian",
        blocks: Blocks = "full",
        block_damping: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> "Inversion":
        name = choice("inversion_method", inversion_method, tuple(METHODS))
        kind = choice("curvature", curvature, tuple(CURVATURES))
        damping = damping_of(damping, hessian_perturbation, settings)
        start = start_of(name, settings)
        known = None if block_damping or damping == "auto" else damping
        method = method_of(name, known, settings)
        return cls(name, method, damping, kind, blocks, block_damping or {}, start)

    def factors(
        self,
        objective: Objective,
        train: Rows,
        test: Rows,
        *,
        batch: int | None = None,
        gradients: Callable[[Objective, Rows], Tensor] | None = None,
        told: bool = True,
    ) -> InverseHvpResult:
        """Solve for the gradients of the test rows, or for those that `gradients` gives instead.

        What is told of a solve that went well (`info`: residuals are a product more) is left out
        where nobody is to be `told`; what it raises and warns of is the same.
        """
        dtype = objective.dtype
        objective, train, test = self.checked(objective, train, test)
        if gradients is None:
            rhs = per_sample_gradients(objective, test, of="measurement").dense()
        else:
            rhs = gradients(objective, test)
        solver = self.solver(objective, train, len(rhs), batch)
        solution = solver.solve(rhs, self.start)
        info = self._info(solver, solution, rhs) if told else {}
        return _as(dtype, InverseHvpResult(solution.x, info))

    def solve(
        self, objective: Objective, rows: Rows, rhs: Tensor, *, batch: int | None = None
    ) -> InverseHvpResult:
        """Solve with the curvature of these training rows, of which a loader draws `batch`."""
        objective.check(rows)
        dtype = objective.dtype
        objective, rows, _ = self._precise(objective, rows, rows[:1])
        rhs = rhs.to(objective.dtype)
        solver = self.solver(objective, rows, len(rhs), batch)
        solution = solver.solve(rhs, self.start)
        return _as(dtype, InverseHvpResult(solution.x, self._info(solver, solution, rhs)))

    def checked(
        self, objective: Objective, train: Rows, test: Rows
    ) -> tuple[Objective, Rows, Rows]:
        """What is solved with: looked at, and in float64 where the solve needs its digits."""
        if objective.measurement is None:
            objective.check(test, train)
        else:
            objective.check(test)
            check_all_rows(objective, test, of="measurement")
            objective.check(train)
        return self._precise(objective, train, test)

    def _precise(
        self, objective: Objective, train: Rows, test: Rows
    ) -> tuple[Objective, Rows, Rows]:
        """The problem in float64, on a copy of the model, where no damping hides its rounding.

        Without a damping the digits of H decide what can be told from zero: float32 has too few for
        an ordinary classifier. Where H would not be formed anyway, or the model holds to a dtype of
        its own, it stays as it is.
        """
        exact = isinstance(self.method, Direct | ConjugateGradient | Nystroem)
        small = worth_forming(self.method, size=objective.size, rows=len(test), damping=0.0)
        if self.damping != 0 or not exact or not small or objective.size > _LARGEST_PRECISE:
            return objective, train, test
        rows = train.to(dtype=torch.float64), test.to(dtype=torch.float64)
        try:
            double = objective.in_float64()
            double.check(rows[0][:2])
        except Exception:  # whatever a model of the caller's raises when its dtype changes
            return objective, train, test
        return double, *rows

    def solver(self, objective: Objective, rows: Rows, count: int, batch: int | None) -> Solver:
        """For `count` right-hand sides."""
        self._check_held(objective.dtype)
        if self.start is not None:
            check_start(self.start, (count, objective.size))
        operator = self._operator(CURVATURES[self.curvature](objective, rows), count)
        method = self._fitted_to(operator, batch, count)
        return Solver(operator, *self._factorize(objective, method, operator))

    def _check_held(self, dtype: torch.dtype) -> None:
        given = [self.damping, *self.block_damping.values()]
        numbers = [each for each in given if isinstance(each, int | float)]
        if beyond := [each for each in numbers if each > torch.finfo(dtype).max]:
            raise ValueError(
                f"damping {beyond[0]:g} is more than {dtype} can hold; against it every curvature "
                "is 0"
            )

    def _operator(self, curvature: BatchedCurvature, rows: int) -> Curvature:
        """The curvature as a matrix where that is cheaper than the products that are expected."""
        damping = 0.0 if self.damping == "auto" else self.damping
        worth = partial(worth_forming, self.method, size=curvature.size, rows=rows, damping=damping)
        if worth() or (worth(share=OF_LINEAR_LAYERS) and curvature.is_layered):
            return DenseCurvature(curvature.dense())
        return curvature

    def _fitted_to(self, operator: Curvature, batch: int | None, rows: int) -> Method:
        """The method with what depends on whether H is formed.

        Where it is not, LiSSA draws a batch of the loader's size a step, as published. Where it is,
        conjugate gradients without damping, which may need any number of steps, get all its
        eigenpairs for a preconditioner; with a damping, many rows get a better sketch, and those
        that are twice its rank a better one still.
        """
        method, formed = self.method, isinstance(operator, DenseCurvature)
        if isinstance(method, LiSSA) and not formed and method.batch_size is None and batch:
            return replace(method, batch_size=batch, anchored=True)
        if isinstance(method, ConjugateGradient) and formed and self.damping == 0:
            asked = method.preconditioner, method.rank
            if asked == (ConjugateGradient.preconditioner, ConjugateGradient.rank):
                return replace(method, rank=operator.size)
        elif isinstance(method, ConjugateGradient) and formed and rows >= _MANY:
            better = 2 if rows >= 2 * method.rank else 1
            return replace(method, power_iterations=max(better, method.power_iterations))
        return method

    def _factorize(
        self, objective: Objective, method: Method, operator: Curvature
    ) -> tuple[Factorization, AutomaticDamping]:
        """The factorisation, and λ with where it comes from."""
        if self.damping != "auto":
            known = AutomaticDamping(self.damping, "as given")
        elif isinstance(method, Identity):
            known = AutomaticDamping(0.0, "identity has no damping")
        elif isinstance(method, EKFAC | KFAC):
            known = method.factorize(operator).automatic_damping
        else:
            known = automatic_damping(
                operator, semidefinite=CURVATURE_KINDS[self.curvature].is_semidefinite
            )
        if isinstance(method, Direct) and not self.block_damping:
            method = replace(method, damping=known.value)
        return self._on_blocks(objective, method).factorize(operator), known

    def _on_blocks(self, objective: Objective, method: Method) -> Method:
        if self.blocks == "full" and not self.block_damping:
            return method
        positions = parameter_blocks(objective.slices, self.blocks)
        return Blockwise(method=method, blocks=positions, dampings=self.block_damping)

    def _info(self, solver: Solver, solution: Solution, rhs: Tensor) -> dict[str, Any]:
        """What is known about a solve, under the names that other libraries use."""
        info, operator, factorization = dict(solution.info), solver.operator, solver.factorization
        if isinstance(operator, DenseCurvature) and "residual" not in info:
            if isinstance(factorization, BlockFactorization):
                residual = factorization.residuals(operator, solution.x, rhs, solver.damping)
            else:
                residual = residuals(operator, solution.x, rhs, damping=solver.damping)
            info["residual"] = residual
        if self.damping == "auto":
            info |= {"damping": solver.damping, "damping_reason": solver.known.reason}
        if self.name == "direct":
            return info | {"hessian": operator.dense()}
        if self.name == "arnoldi":
            return info | factorization.tensors()
        if self.name == "cg" and "converged" in info:
            info["optimal"] = info["converged"]
            info["gamma"] = info["residual"] * rhs.norm(dim=1)
        return info


def _as(dtype: torch.dtype, result: InverseHvpResult) -> InverseHvpResult:
    """The result in the caller's precision, whichever it was found in.

    Raises `NotConvergedError` for solutions that are infinite in it.
    """

    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    check_finite(x := cast(result.x))
    return InverseHvpResult(x, {key: cast(v) for key, v in result.info.items()})
