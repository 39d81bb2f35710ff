"""The work by captum's influence functions, which leave out all but the largest eigenvalues.

Its influences have the sign of ours; losses are summed over a batch, so H there is n times ours.
"""

import os
import tempfile
import warnings

import torch
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from captum.influence._core.influence_function import NaiveInfluenceFunction
from problem import BATCH, DAMPING, RANK, Problem
from torch import Tensor, nn

warnings.filterwarnings("ignore")


def _influences(problem: Problem, kind, **settings) -> Tensor:
    n = len(problem.train)
    descriptor, checkpoint = tempfile.mkstemp(suffix=".pt")
    os.close(descriptor)
    try:
        torch.save(problem.model.state_dict(), checkpoint)
        made = kind(
            problem.model,
            train_dataset=problem.train,
            checkpoint=checkpoint,
            loss_fn=nn.CrossEntropyLoss(reduction="none"),
            batch_size=BATCH,
            hessian_reg=DAMPING * n,
            hessian_inverse_tol=0.0,
            **settings,
        )
        return n * made.influence((problem.x_test, problem.y_test))
    finally:
        os.unlink(checkpoint)


def direct(problem: Problem) -> Tensor:
    size = sum(p.numel() for p in problem.model.parameters())
    return _influences(problem, NaiveInfluenceFunction, projection_dim=size)


def arnoldi(problem: Problem) -> Tensor:
    return _influences(problem, ArnoldiInfluenceFunction, projection_dim=RANK, arnoldi_dim=2 * RANK)


JOBS = {job.__name__: job for job in (direct, arnoldi)}
