import re
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F

from influence_dag.errors import ModelError
from influence_dag.losses import reduced_loss
from influence_dag.objective.fitting import fit
from influence_dag.objective.objective import Objective, Rows
from influence_dag.study.model import FitSettings
from influence_dag.validation import most_exposed_row, training_attack

PENALTY = 1e-2
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "training_attack.md"


@pytest.fixture(scope="module")
def near_the_boundary(softmax, digits) -> Rows:
    """The test digit that is right by the smallest margin."""
    test = digits[1]
    logits = softmax.outputs(softmax.params, test.x).detach()
    best = logits.sort(dim=1, descending=True).values
    margin = torch.where(logits.argmax(dim=1) == test.y, best[:, 0] - best[:, 1], torch.inf)
    return test[margin.argmin()[None]]


@pytest.fixture(scope="module")
def attack(softmax, digits, near_the_boundary):
    return training_attack(
        softmax, digits[0], near_the_boundary, weight_decay=PENALTY, feature_range=(0.0, 1.0),
        step=0.05, max_steps=6, stop_when_flipped=False,
    )  # fmt: skip


def test_one_training_image_turns_a_prediction(attack, near_the_boundary):
    assert attack.flipped
    assert attack.predicted_class[0] == near_the_boundary.y[0]
    assert (np.diff(attack.losses) > 0).all()


def test_each_step_was_predicted(attack):
    rises, foreseen = np.diff(attack.losses), attack.predicted[1:] - attack.losses[:-1]
    assert np.allclose(rises, foreseen, rtol=0.2)
    assert attack.first_order - attack.losses[0] == pytest.approx(rises.sum(), rel=0.5)
    assert attack.summary()["loss_predicted_step_by_step"] == pytest.approx(
        attack.losses[0] + foreseen.sum()
    )


def test_a_step_follows_the_sign_of_the_perturbation_influence_and_predicts_its_effect():
    x, y = torch.rand(15, 3, dtype=torch.float64), torch.arange(15) % 3
    test = torch.rand(1, 3, dtype=torch.float64), torch.tensor([1])
    module = nn.Linear(3, 3).double()
    fit(module, "cross_entropy", Rows(x, y), FitSettings(weight_decay=0.1, tolerance=1e-10))
    attack = training_attack(
        Objective(module, "cross_entropy"), Rows(x, y), Rows(*test), weight_decay=0.1, row=4,
        feature_range=(-9.0, 9.0), step=0.01, max_steps=1,
    )  # fmt: skip
    P = reference.perturbation_influences(module, F.cross_entropy, (x, y), test, 0.1)[0, 4]
    assert np.allclose(attack.changed, (x[4] - 0.01 * P.sign()).numpy())
    before = F.cross_entropy(module(test[0]), test[1]).item()
    assert attack.predicted[1] == pytest.approx(before + 0.01 * P.abs().sum().item() / 15, abs=1e-9)
    assert attack.first_order == pytest.approx(attack.predicted[1])


def test_the_attacked_model_is_a_fit_to_the_changed_image(attack, digits, near_the_boundary):
    train = digits[0]
    x = train.x.clone()
    assert np.array_equal(x[attack.row].numpy(), attack.original)
    x[attack.row] = torch.tensor(attack.changed)
    theta = attack.model.params.clone().requires_grad_()
    logits = x @ theta[:640].view(10, 64).T + theta[640:]
    penalised = F.cross_entropy(logits, train.y) + PENALTY / 2 * theta @ theta
    assert torch.autograd.grad(penalised, theta)[0].norm() <= 1e-7
    with torch.no_grad():
        output = near_the_boundary.x @ theta[:640].view(10, 64).T + theta[640:]
        loss = F.cross_entropy(output, near_the_boundary.y)
    assert attack.losses[-1] == pytest.approx(loss.item(), abs=1e-9)
    assert np.allclose(attack.outputs[-1], output[0].numpy())


def test_the_change_stays_within_its_bounds(softmax, digits, near_the_boundary):
    attack = training_attack(
        softmax, digits[0], near_the_boundary, weight_decay=PENALTY, feature_range=(0.0, 1.0),
        radius=0.12, row=7, max_steps=4, stop_when_flipped=False,
    )  # fmt: skip
    assert attack.row == 7
    assert np.abs(attack.changed - attack.original).max() == pytest.approx(0.12)
    assert attack.changed.min() >= 0
    assert attack.changed.max() <= 1
    assert attack.summary()["largest_feature_change"] == pytest.approx(0.12)


def test_it_ends_where_no_feature_can_move(softmax, digits, near_the_boundary):
    attack = training_attack(
        softmax, digits[0], near_the_boundary, weight_decay=PENALTY, feature_range=(0.0, 1.0),
        radius=0.0, row=7,
    )  # fmt: skip
    assert len(attack.losses) == 1
    assert np.array_equal(attack.changed, attack.original)
    assert not attack.flipped


def test_the_attack_stops_where_the_prediction_turns(softmax, digits, near_the_boundary):
    attack = training_attack(
        softmax, digits[0], near_the_boundary, weight_decay=PENALTY, feature_range=(0.0, 1.0)
    )
    turned = attack.predicted_class != attack.predicted_class[0]
    assert turned.sum() == 1
    assert turned[-1]


def test_the_most_exposed_row_is_the_one_whose_corner_of_the_box_costs_most():
    x, y = torch.rand(15, 3, dtype=torch.float64), torch.arange(15) % 3
    test = torch.rand(1, 3, dtype=torch.float64), torch.tensor([1])
    module = nn.Linear(3, 3).double()
    P = reference.perturbation_influences(module, F.cross_entropy, (x, y), test, 0.1)[0]
    costs = [
        max(
            -(corner - x[i]) @ P[i]
            for corner in torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
        )
        for i in range(15)
    ]
    row = most_exposed_row(
        Objective(module, "cross_entropy"), Rows(x, y), Rows(*test), damping=0.1,
        feature_range=(0.0, 1.0),
    )  # fmt: skip
    assert row == int(np.argmax(costs))


def test_what_cannot_be_attacked_is_refused(softmax, digits):
    train, test = digits
    with pytest.raises(ModelError, match="one test row; 2 were given"):
        training_attack(softmax, train, test[:2], weight_decay=PENALTY, feature_range=(0, 1))
    with pytest.raises(ModelError, match=r"row 7 has features from 0 to 1, outside .*\(0, 0.5\)"):
        training_attack(
            softmax, train, test[:1], weight_decay=PENALTY, feature_range=(0.0, 0.5), row=7
        )
    words = Rows(torch.zeros(4, 3).long(), torch.zeros(4).long())
    with pytest.raises(ModelError, match="one input tensor of real numbers"):
        training_attack(softmax, words, words[:1], weight_decay=PENALTY, feature_range=(0, 1))


def test_the_tutorial_runs_as_written(monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[2])
    blocks = re.findall(
        r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", TUTORIAL.read_text(), re.S
    )
    assert len(blocks) >= 4
    names: dict = {}
    for code, shown in blocks:
        exec(compile(code, str(TUTORIAL), "exec"), names)
        printed = capsys.readouterr().out
        assert printed.split() == shown.split()
    assert names["attack"].flipped


@pytest.mark.parametrize("given", ["bce_with_logits", reduced_loss(nn.BCEWithLogitsLoss())])
def test_a_single_logit_has_two_classes(given):
    """Its sign decides, as where predictions are stored: the largest of one number is no class."""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    y, module = (x > 0).double(), nn.Linear(1, 1).double()
    fit(module, "bce_with_logits", Rows(x, y), FitSettings(weight_decay=0.1))
    test = Rows(torch.full((1, 1), 1e-3).double(), torch.ones(1, 1).double())
    attack = training_attack(
        Objective(module, given), Rows(x, y), test, weight_decay=0.1, feature_range=(-1.0, 1.0),
        step=0.2, max_steps=9, tolerance=1e-6,
    )  # fmt: skip
    assert attack.predicted_class.tolist() == (attack.outputs[:, 0] > 0).tolist() == [1, 0]
    assert attack.flipped, "which ends it"
