"""The work by influence_dag, through its calls in memory."""

from problem import DAMPING, RANK, RTOL, SCALE, SKETCH, STEPS, Problem
from torch import Tensor

import influence_dag as idag


def _influences(problem: Problem, method: str, *, kind: str = "up", **settings) -> Tensor:
    return idag.compute_influences(
        idag.TorchTwiceDifferentiable(problem.model, "cross_entropy"),
        problem.loader(),
        problem.test_loader(),
        influence_type=kind,
        inversion_method=method,
        hessian_regularization=DAMPING,
        **settings,
    )


def direct(problem: Problem) -> Tensor:
    return _influences(problem, "direct")


def cg(problem: Problem) -> Tensor:
    return _influences(problem, "cg", rtol=RTOL)


def arnoldi(problem: Problem) -> Tensor:
    return _influences(problem, "arnoldi", rank=RANK)


def nystroem(problem: Problem) -> Tensor:
    """A plain sketch: no iterations of power, as theirs."""
    return _influences(problem, "nystroem", rank=SKETCH, power_iterations=0)


def lissa(problem: Problem) -> Tensor:
    return _influences(problem, "lissa", maxiter=STEPS, scale=SCALE, rtol=1e-12)


def perturbation(problem: Problem) -> Tensor:
    return _influences(problem, "direct", kind="perturbation")


def ekfac(problem: Problem) -> Tensor:
    return _influences(problem, "ekfac")


def ekfac_empirical(problem: Problem) -> Tensor:
    return _influences(problem, "ekfac", fisher="empirical")


JOBS = {
    job.__name__: job
    for job in (direct, cg, arnoldi, nystroem, lissa, perturbation, ekfac, ekfac_empirical)
}
