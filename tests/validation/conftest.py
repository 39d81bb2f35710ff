"""Scikit-learn's digits as tensors, and models fitted to them, once a session."""

from contextlib import contextmanager

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from influence_dag.objective.fitting import fit
from influence_dag.objective.objective import Objective, Rows
from influence_dag.study.model import FitSettings

PENALTY = 1e-2


@contextmanager
def one_thread():
    """Batches of small products: a second thread waits more than it works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="session")
def digits() -> tuple[Rows, Rows]:
    data = load_digits()
    x, y = torch.tensor(data.data / 16), torch.tensor(data.target)
    return Rows(x[:1500], y[:1500]), Rows(x[1500:], y[1500:])


@pytest.fixture(scope="session")
def softmax(digits) -> Objective:
    """Softmax regression at the minimum of the penalised mean loss, L2 1e-2."""
    torch.manual_seed(0)
    module = nn.Linear(64, 10).double()
    settings = FitSettings(weight_decay=PENALTY, tolerance=1e-10)
    with one_thread():
        assert fit(module, "cross_entropy", digits[0], settings).converged
    return Objective(module, "cross_entropy")
