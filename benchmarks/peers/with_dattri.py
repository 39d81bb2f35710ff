"""The work by dattri's influence attributors. Scores are `(train, test)`, with the sign of ours."""

import contextlib
import io
import warnings

from dattri.algorithm.influence_function import (
    IFAttributorArnoldi,
    IFAttributorCG,
    IFAttributorExplicit,
    IFAttributorLiSSA,
)
from dattri.task import AttributionTask
from problem import BATCH, DAMPING, RANK, RTOL, SCALE, STEPS, Problem
from torch import Tensor, func, nn

warnings.filterwarnings("ignore")


def _task(problem: Problem) -> AttributionTask:
    loss = nn.CrossEntropyLoss()

    def of_data(parameters, data) -> Tensor:
        x, y = data
        return loss(func.functional_call(problem.model, parameters, x), y.flatten().long())

    return AttributionTask(
        loss_func=of_data, model=problem.model, checkpoints=problem.model.state_dict()
    )


def _scores(problem: Problem, method, *, tests: int | None = None) -> Tensor:
    whole = problem.loader(len(problem.train))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        method.cache(whole)
        scores = method.attribute(problem.loader(len(problem.train)), problem.test_loader(tests))
    return scores.T.detach()


def direct(problem: Problem) -> Tensor:
    return _scores(problem, IFAttributorExplicit(_task(problem), regularization=DAMPING))


def cg(problem: Problem) -> Tensor:
    method = IFAttributorCG(_task(problem), max_iter=100, tol=RTOL, regularization=DAMPING)
    return _scores(problem, method, tests=27)  # all at once take more than 12 GB


def arnoldi(problem: Problem) -> Tensor:
    method = IFAttributorArnoldi(
        _task(problem), proj_dim=RANK, max_iter=2 * RANK, regularization=DAMPING
    )
    return _scores(problem, method)


def lissa(problem: Problem) -> Tensor:
    method = IFAttributorLiSSA(
        _task(problem),
        batch_size=BATCH,
        num_repeat=1,
        recursion_depth=STEPS,
        damping=DAMPING / SCALE,  # its recursion adds λ before it divides by the scale
        scaling=SCALE,
    )
    return _scores(problem, method, tests=27)  # all at once take more than 20 GB


JOBS = {job.__name__: job for job in (direct, cg, arnoldi, lissa)}
