"""The work by pyDVL, through `pydvl.influence.torch`. Its influences have the sign of ours."""

from problem import BATCH, DAMPING, RANK, RTOL, SCALE, SKETCH, STEPS, Problem
from pydvl.influence import InfluenceMode
from pydvl.influence.torch import (
    ArnoldiInfluence,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    LissaInfluence,
    NystroemSketchInfluence,
)
from pydvl.influence.torch.preconditioner import NystroemPreconditioner
from torch import Tensor
from torch.nn.functional import cross_entropy


def _influences(problem: Problem, method, mode: InfluenceMode = InfluenceMode.Up) -> Tensor:
    fitted = method.fit(problem.loader())
    rows = problem.x_test, problem.y_test, problem.x, problem.y
    return fitted.influences(*rows, mode=mode)


def direct(problem: Problem) -> Tensor:
    return _influences(problem, DirectInfluence(problem.model, cross_entropy, DAMPING))


def cg(problem: Problem) -> Tensor:
    """By the faster of its ways: all right-hand sides at once, behind a Nyström preconditioner."""
    method = CgInfluence(
        problem.model,
        cross_entropy,
        DAMPING,
        rtol=RTOL,
        preconditioner=NystroemPreconditioner(SKETCH),
        solve_simultaneously=True,
    )
    return _influences(problem, method)


def arnoldi(problem: Problem) -> Tensor:
    return _influences(problem, ArnoldiInfluence(problem.model, cross_entropy, DAMPING, rank=RANK))


def nystroem(problem: Problem) -> Tensor:
    method = NystroemSketchInfluence(problem.model, cross_entropy, DAMPING, rank=SKETCH)
    return _influences(problem, method)


def lissa(problem: Problem) -> Tensor:
    method = LissaInfluence(
        problem.model, cross_entropy, DAMPING, maxiter=STEPS, scale=SCALE, rtol=1e-12
    )
    return _influences(problem, method)


def perturbation(problem: Problem) -> Tensor:
    method = DirectInfluence(problem.model, cross_entropy, DAMPING)
    return _influences(problem, method, InfluenceMode.Perturbation)


def ekfac(problem: Problem) -> Tensor:
    method = EkfacInfluence(problem.model, update_diagonal=True, hessian_regularization=DAMPING)
    fitted = method.fit(problem.loader(BATCH))
    return fitted.influences(problem.x_test, problem.y_test, problem.x, problem.y)


JOBS = {job.__name__: job for job in (direct, cg, arnoldi, nystroem, lissa, perturbation, ekfac)}
