"""Small work is done in one thread, and who computes next has all of them again."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from influence_dag.errors import ModelError
from influence_dag.losses.named import mse
from influence_dag.objective import threads
from influence_dag.objective.fitting import fit
from influence_dag.objective.footprint import multiplications
from influence_dag.objective.objective import Objective, Rows
from influence_dag.study.model import FitSettings


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def fitted(optimizer, loss=mse, **settings):
    rows = Rows(torch.randn(20, 3), torch.randn(20, 1))
    fit(nn.Linear(3, 1), loss, rows, FitSettings(optimizer=optimizer, max_steps=2, **settings))


@pytest.mark.parametrize(
    ("optimizer", "batch", "rows", "used"),
    [("lbfgs", None, 20, 1), ("lbfgs", None, 19, 3), ("adam", 5, 5, 1), ("adam", None, 19, 3)],
)
def test_a_fit_whose_steps_are_small_takes_one_thread(monkeypatch, optimizer, batch, rows, used):
    """4 parameters; `rows` are as many as one thread is to take."""
    monkeypatch.setattr(threads, "_SHARED", 4 * rows)
    seen = []

    def loss(output, target):
        seen.append(torch.get_num_threads())
        return mse(output, target)

    settings = {} if optimizer == "lbfgs" else {"batch_size": batch}
    fitted(optimizer, loss, **settings)
    assert used in seen
    assert {*seen} <= {used, 3}  # what is said of the end is of all rows
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("positions", "used"), [(9, 1), (10, 3)])
def test_positions_of_a_layer_are_work_as_rows_are(monkeypatch, positions, used):
    """By its few parameters a convolution's large pass was small."""
    monkeypatch.setattr(threads, "_SHARED", 20 * 4 * 9)
    seen = set()

    def loss(output, target):
        seen.add(torch.get_num_threads())
        return mse(output, target)

    module = nn.Sequential(nn.Conv1d(1, 1, 3), nn.Flatten())
    rows = Rows(torch.randn(20, 1, positions + 2), torch.randn(20, positions))
    fit(module, loss, rows, FitSettings(optimizer="lbfgs", max_steps=2))
    assert used in seen
    assert seen <= {used, 3}


def test_a_module_is_not_called_to_see_how_much_work_it_is():
    """What one that remembers its first call kept would have been of a single row."""

    class Remembering(nn.Linear):
        seen = ()

        def forward(self, x):
            self.seen = (*self.seen, len(x))
            return super().forward(x)

    rows = Rows(torch.randn(20, 3), torch.randn(20, 1))
    module = Remembering(3, 1)
    fit(module, mse, rows, FitSettings(optimizer="adam", max_steps=2, batch_size=5))
    assert {*module.seen} == {5, 20}


def test_work_of_a_chain_is_its_parameters():
    objective = Objective(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), mse)
    assert multiplications(objective, Rows(torch.randn(5, 3), torch.randn(5, 2))) == 26


class Scaled(nn.Conv1d):
    """A number that is a parameter by itself was no reason to look no further."""

    def __init__(self):
        super().__init__(1, 1, 3)
        self.scale = nn.Sequential()
        self.scale.register_parameter("number", nn.Parameter(torch.tensor(2.0)))

    def forward(self, x):
        return self.scale.number * super().forward(self.scale(x))


def test_positions_are_counted_beside_a_parameter_without_axes():
    rows = Rows(torch.randn(5, 1, 12), torch.randn(5, 1, 10))
    assert multiplications(Objective(Scaled(), mse), rows) == 4 * 10 + 12


def test_threads_come_back_after_an_error():
    with pytest.raises(ModelError, match="left the finite numbers"):
        fitted("lbfgs", lambda output, target: mse(output, target) * torch.nan)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("largest", "used"), [(8, 1), (7, 3)])
def test_eigenvalues_are_lapacks_in_one_thread(monkeypatch, largest, used):
    monkeypatch.setattr(threads, "_SPECTRUM", largest)
    asked, seen = torch.linalg.eigvalsh, []
    matrix = torch.randn(8, 8, dtype=torch.float64)
    matrix = matrix + matrix.T

    def counted(matrix):
        seen.append(torch.get_num_threads())
        return asked(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", counted)
    found = threads.eigenvalues(matrix)
    assert seen == [used]
    assert torch.get_num_threads() == 3
    assert_close(found, torch.linalg.eigh(matrix).eigenvalues)
