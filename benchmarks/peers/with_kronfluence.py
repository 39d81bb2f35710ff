"""The work by kronfluence: EK-FAC. Its scores have the sign of ours and are not divided by n."""

import logging
import shutil
import tempfile

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from problem import DAMPING, Problem
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

logging.disable(logging.WARNING)


class Classification(Task):
    def compute_train_loss(self, batch, model: nn.Module, sample: bool = False) -> Tensor:
        x, y = batch
        output = model(x)
        if sample:
            with torch.no_grad():
                y = torch.multinomial(output.softmax(-1), 1).flatten()
        return cross_entropy(output, y, reduction="sum")

    def compute_measurement(self, batch, model: nn.Module) -> Tensor:
        x, y = batch
        return cross_entropy(model(x), y, reduction="sum")


def _scores(problem: Problem, *, empirical: bool) -> Tensor:
    task, folder = Classification(), tempfile.mkdtemp()
    test = TensorDataset(problem.x_test, problem.y_test)
    try:
        analyzer = Analyzer(
            analysis_name="digits",
            model=prepare_model(problem.model, task),
            task=task,
            cpu=True,
            output_dir=folder,
            disable_tqdm=True,
        )
        analyzer.fit_all_factors(
            factors_name="factors",
            dataset=problem.train,
            per_device_batch_size=len(problem.train),
            factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=empirical),
        )
        analyzer.compute_pairwise_scores(
            scores_name="scores",
            factors_name="factors",
            query_dataset=test,
            train_dataset=problem.train,
            per_device_query_batch_size=len(test),
            per_device_train_batch_size=len(problem.train),
            score_args=ScoreArguments(damping_factor=DAMPING),
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"]
    finally:
        shutil.rmtree(folder)


def ekfac(problem: Problem) -> Tensor:
    return _scores(problem, empirical=False)


def ekfac_empirical(problem: Problem) -> Tensor:
    return _scores(problem, empirical=True)


JOBS = {job.__name__: job for job in (ekfac, ekfac_empirical)}
