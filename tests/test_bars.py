"""A person at a terminal sees how far long work in memory is; pipes and logs see nothing."""

import io
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import influence_dag as idag
from influence_dag.functional import columns
from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation import refits


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on(screen: io.StringIO, monkeypatch) -> io.StringIO:
    """The screen in the place of stderr, where bars begin at once."""
    monkeypatch.setattr(sys, "stderr", screen)
    for module in (columns, refits):
        monkeypatch.setattr(module, "MOMENT", 0.0)
    return screen


SCREENS = pytest.mark.parametrize(
    ("kind", "wanted"), [(Terminal, True), (io.StringIO, False)], ids=["terminal", "pipe"]
)


@SCREENS
def test_influences_in_memory_are_counted_in_blocks(kind, wanted, monkeypatch):
    screen = shown_on(kind(), monkeypatch)
    monkeypatch.setattr(columns, "_TRAINING_ROWS", 8)
    data = TensorDataset(torch.randn(20, 3), torch.arange(20) % 3)
    wrapped = idag.TorchTwiceDifferentiable(nn.Linear(3, 3).eval(), nn.CrossEntropyLoss())
    loader = DataLoader(data, batch_size=10)
    found = idag.compute_influences(wrapped, loader, hessian_regularization=0.1)
    assert found.shape == (20, 20)
    assert ("influences" in screen.getvalue() and "/3" in screen.getvalue()) == wanted


@SCREENS
def test_refits_are_counted_in_parts(kind, wanted, monkeypatch):
    screen = shown_on(kind(), monkeypatch)
    rows = Rows(torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 3)
    objective = Objective(nn.Linear(3, 3).double(), "cross_entropy")
    refits.refit(objective, rows, rows.shares[None], weight_decay=0.1)
    assert ("refits" in screen.getvalue()) == wanted
