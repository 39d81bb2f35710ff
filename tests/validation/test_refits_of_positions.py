"""What is left out, moved or attacked is named by positions, and a member has weights."""

import pytest
import torch
from torch import nn

from influence_dag.errors import ModelError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation import (
    datamodels,
    exact_candidates,
    feature_moves,
    label_errors,
    leave_one_out,
    parameter_changes,
    training_attack,
)
from influence_dag.validation.ensembles import is_linear_in_parameters
from influence_dag.validation.label_errors import flip_labels

F64 = torch.float64


@pytest.fixture
def rows():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    return Rows(x, (x[:, 0] > 0).long())


@pytest.fixture
def objective():
    torch.manual_seed(0)
    return Objective(nn.Linear(3, 2, dtype=F64), "cross_entropy")


def test_a_mask_names_the_rows_that_are_left_out(objective, rows):
    mask = torch.zeros(12, dtype=torch.bool)
    mask[[2, 7]] = True
    result = leave_one_out(objective, rows, rows[:2], weight_decay=0.1, index=mask)
    assert result.index.tolist() == [2, 7]
    assert result.predicted.shape == result.actual.shape == (2, 2)


@pytest.mark.parametrize("index", [[], torch.arange(0), [12], [-13], [1.5], torch.arange(5) > 2])
def test_what_is_no_position_of_a_row_is_refused(objective, rows, index):
    for change in (parameter_changes, lambda o, r, **how: leave_one_out(o, r, r[:2], **how)):
        with pytest.raises(ModelError, match="no positions of 12 training rows"):
            change(objective, rows, weight_decay=0.1, index=index)


def test_moves_and_attacks_are_of_rows_that_are_there(objective, rows):
    how = {"weight_decay": 0.1}
    for moves, seen in (
        ([(12, 0)], "12 training rows"),
        ([(0, 3)], "3 features"),
        ([], "12 train"),
    ):
        with pytest.raises(ModelError, match=f"no positions of {seen}"):
            feature_moves(objective, rows, rows[:1], moves, epsilon=0.1, **how)
    with pytest.raises(ModelError, match=r"\[12\] are no positions"):
        training_attack(objective, rows, rows[:1], row=12, feature_range=(-9, 9), **how)


def test_members_without_a_row_that_counts_are_refused(objective, rows):
    weights = torch.zeros(12, dtype=F64)
    weights[0] = 1
    rows = Rows(rows.x, rows.y, weights)
    with pytest.raises(
        ModelError, match="of 30 members are not finite numbers, as those of a subset"
    ):
        datamodels(objective, rows, rows[:2], weight_decay=0.1, count=30)
    with pytest.raises(ModelError, match="1 of 5 members are not finite"):
        label_errors(objective, rows, weight_decay=0.1, share=0.3)


@pytest.mark.parametrize("mistaken", [{0: 1}, {0: 1, 1: 1}])
def test_each_class_is_mistaken_for_another(mistaken, rows):
    with pytest.raises(ModelError, match=r"another class for each of \[0, 1\]"):
        flip_labels(rows.y, share=0.5, mistaken=mistaken)


def test_a_model_is_linear_for_more_than_its_first_rows(rows):
    network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    x = rows.x.clone()
    x[:8] = 0
    assert not is_linear_in_parameters(Objective(network.double(), "mse"), Rows(x, rows.y))


def test_a_linear_model_in_single_precision_has_one_curvature(rows):
    objective = Objective(nn.Linear(3, 2), "cross_entropy")
    rows = rows.to(dtype=torch.float32)
    assert "gauss_newton" not in exact_candidates(objective, rows, rows[:2], (0.1,))


def test_positions_from_the_end_are_those_from_the_beginning(objective, rows):
    how = {"weight_decay": 0.1}
    for index in ([-1, 3], torch.tensor([11, 3], dtype=torch.uint8)):
        result = leave_one_out(objective, rows, rows[:2], index=index, **how)
        assert result.index.tolist() == [11, 3]
    found, expected = (
        feature_moves(objective, rows, rows[:2], moves, epsilon=0.1, **how)
        for moves in ([(-1, -3), (3, 1)], [(11, 0), (3, 1)])
    )
    assert (found.actual == expected.actual).all()
    assert (found.predicted == expected.predicted).all()
    assert found.rows.tolist() == [11, 3]
    attack = training_attack(
        objective, rows, rows[:1], row=-1, feature_range=(-9, 9), max_steps=1, **how
    )
    assert attack.row == 11
