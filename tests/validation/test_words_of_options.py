"""Words that validations do not know are told, and inputs may be one number a row."""

import math

import pytest
import torch
from torch import nn

from influence_dag.curvature import Hessian
from influence_dag.errors import ModelError
from influence_dag.influence.perturbation import perturbation_influences
from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation import (
    draw_subsets,
    feature_moves,
    label_errors,
    leave_one_out,
    refit,
    training_attack,
)


@pytest.fixture(scope="module")
def objective() -> Objective:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 2)).double()
    return Objective(module, "cross_entropy")


@pytest.fixture(scope="module")
def rows() -> Rows:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, generator=generator, dtype=torch.float64)
    return Rows(x, (x + torch.randn(30, generator=generator) > 0).long())


@pytest.mark.parametrize("name", ["on_failure", "metric"])
def test_a_refit_knows_the_words_that_it_is_given(objective, rows, name):
    with pytest.raises(ValueError, match=f"{name}='rais' is unknown; choose one of"):
        refit(objective, rows, rows.shares[None], weight_decay=0.1, **{name: "rais"})


@pytest.mark.parametrize("name", ["space", "curvature"])
def test_label_errors_know_the_words_that_they_are_given(objective, rows, name):
    with pytest.raises(ValueError, match=f"{name}='hesian' is unknown; choose one of"):
        label_errors(objective, rows, weight_decay=0.1, **{name: "hesian"})


def test_so_do_leverage_and_routes(objective, rows):
    with pytest.raises(ValueError, match="leverage='yes' is unknown; choose one of auto"):
        leave_one_out(objective, rows, rows[:2], weight_decay=0.1, leverage="yes")  # type: ignore
    with pytest.raises(ValueError, match="route='jacobain' is unknown; choose one of auto"):
        perturbation_influences(objective, torch.ones(1, 4).double(), rows, route="jacobain")  # type: ignore
    with pytest.raises(ValueError, match="route='layred' is unknown; choose one of auto"):
        Hessian(objective, rows, route="layred")  # type: ignore[arg-type]


def test_numbers_that_leave_nothing_to_count_are_told(objective, rows):
    with pytest.raises(ModelError, match="count=0 random subsets; draw one or more"):
        draw_subsets(30, count=0)
    with pytest.raises(ModelError, match=r"subsets of 0 of 30 rows \(fraction=nan\)"):
        draw_subsets(30, fraction=math.nan)
    with pytest.raises(ModelError, match="share=nan flips 0 of 30 labels"):
        label_errors(objective, rows, weight_decay=0.1, share=math.nan)
    for wrong in ({"step": -0.1}, {"step": math.nan}, {"radius": -1.0}):
        box = {"feature_range": (-5.0, 5.0), **wrong}
        with pytest.raises(ModelError, match="take a step above 0, a radius of 0 or more"):
            training_attack(objective, rows, rows[:1], weight_decay=0.1, **box)
    with pytest.raises(ModelError, match=r"neighbours=-1; take 0 \(none\) or more"):
        label_errors(objective, rows, weight_decay=0.1, neighbours=-1)


@pytest.mark.parametrize("attack", [True, False])
def test_inputs_of_one_number_a_row_move_as_columns_of_one_do(objective, rows, attack):
    column = Objective(objective.module[1], "cross_entropy")  # type: ignore[index]
    of_column = Rows(rows.x[:, None], rows.y)

    def found(objective: Objective, rows: Rows) -> dict:
        if not attack:
            moves = [(3, 0), (5, 0)]
            made = feature_moves(objective, rows, rows[:4], moves, epsilon=1e-3, weight_decay=0.1)
            return made.summary()
        box = {"feature_range": (-5.0, 5.0), "max_steps": 2}
        return training_attack(objective, rows, rows[:1], weight_decay=0.1, **box).summary()

    one, other = found(objective, rows), found(column, of_column)
    assert {**one, "seconds": 0.0} == pytest.approx({**other, "seconds": 0.0})


def test_neighbours_of_rows_of_one_number_are_those_of_columns_of_one(objective, rows):
    column = Objective(objective.module[1], "cross_entropy")  # type: ignore[index]
    one = label_errors(objective, rows, weight_decay=0.1)
    other = label_errors(column, Rows(rows.x[:, None], rows.y), weight_decay=0.1)
    assert one.combined == pytest.approx(other.combined)
