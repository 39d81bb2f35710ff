import copy
import sys

import numpy as np
import pytest
import reference
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from influence_dag.curvature import Hessian
from influence_dag.errors import IndefiniteError, ModelError
from influence_dag.objective.fitting import fit
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Direct
from influence_dag.study.model import FitSettings
from influence_dag.validation.feature_moves import feature_moves
from influence_dag.validation.leave_one_out import leave_one_out
from influence_dag.validation.parameter_changes import parameter_changes

PENALTY = 1e-2


@pytest.fixture(scope="module")
def every_row(softmax, digits):
    return leave_one_out(softmax, *digits, weight_decay=PENALTY)


def test_influences_are_what_leaving_out_each_of_1500_digits_does(every_row):
    assert every_row.actual.shape == (297, 1500)
    assert every_row.pearson >= 0.9995
    assert every_row.pearson_per_test.min() >= 0.999
    assert 1.00 <= every_row.slope <= 1.08
    ranks = [spearmanr(p, a)[0] for p, a in zip(every_row.predicted, every_row.actual, strict=True)]
    assert every_row.summary()["spearman_per_test"] == pytest.approx(np.mean(ranks))
    assert np.mean(ranks) >= 0.995


def test_the_leverage_brings_the_prediction_nearer(every_row):
    summary = every_row.summary()
    assert summary["corrected_pearson"] > summary["pearson"]
    assert abs(summary["corrected_slope"] - 1) < 0.02 < abs(summary["slope"] - 1)


def test_a_refit_without_a_row_is_torchs_own(every_row, digits):
    train, test = digits
    keep = torch.arange(1500) != 700
    module = nn.Linear(64, 10).double()
    optimizer = torch.optim.LBFGS(
        module.parameters(),
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def penalised():
        optimizer.zero_grad()
        loss = F.cross_entropy(module(train.x[keep]), train.y[keep], reduction="sum") / 1500
        loss = loss + PENALTY / 2 * sum(p.square().sum() for p in module.parameters())
        loss.backward()
        return loss

    optimizer.step(penalised)
    losses = F.cross_entropy(module(test.x), test.y, reduction="none").detach().numpy()
    (position,) = np.flatnonzero(every_row.index == 700)
    before = every_row.base_losses
    assert np.abs(losses - before - every_row.actual[:, position]).max() <= 1e-6


def test_parameters_move_as_parameter_influences_say(softmax, digits):
    changes = parameter_changes(softmax, digits[0], weight_decay=PENALTY, index=range(0, 1500, 10))
    assert changes.cosines.min() >= 0.99
    assert 1.0 <= changes.summary()["mean_length_ratio"] <= 1.08


def test_moving_a_pixel_changes_test_losses_as_perturbation_influences_say(softmax, digits):
    pixels = [(37 * k, (29 * k + 10) % 64) for k in range(40)]
    moves = feature_moves(softmax, *digits, pixels, epsilon=1e-2, weight_decay=PENALTY)
    assert moves.pearson >= 0.999
    assert moves.summary()["slope"] == pytest.approx(1, abs=1e-3)
    per_test = [np.corrcoef(p, a)[0, 1] for p, a in zip(moves.predicted, moves.actual, strict=True)]
    assert min(per_test) >= 0.999


# Ridge regression, where everything is known -----------------------------------------------------


def half_square(output, target):
    return (output.squeeze(1) - target).square() / 2


@pytest.fixture
def ridge():
    x = torch.randn(40, 5, dtype=torch.float64)
    y = x.sum(1) + torch.randn(40, dtype=torch.float64)
    module = nn.Linear(5, 1, bias=False).double()
    module.weight.data = reference.ridge_fit(x, y, 0.1)[None]
    new = torch.randn(6, 5, dtype=torch.float64)
    return module, Rows(x, y), Rows(new, new.sum(1))


def without(rows: Rows, i: int) -> torch.Tensor:
    x, y = rows.x.clone(), rows.y.clone()
    x[i], y[i] = 0.0, 0.0  # a row of zeros adds nothing to the sums, and n stays
    return reference.ridge_fit(x, y, 0.1)


def test_ridge_predictions_and_refits_are_the_closed_forms(ridge):
    module, train, test = ridge
    result = leave_one_out(
        Objective(module, half_square), train, test, weight_decay=0.1, tolerance=1e-12
    )
    theta = module.weight.detach()[0]
    expected = reference.ridge_influences(train.x, train.y, test.x, test.y, theta, 0.1) / 40
    assert np.abs(result.predicted - expected.numpy()).max() <= 1e-9
    before = (test.x @ theta - test.y).square() / 2
    after = torch.stack(
        [(test.x @ without(train, i) - test.y).square() / 2 for i in range(40)], dim=1
    )
    assert np.abs(result.actual - (after - before[:, None]).numpy()).max() <= 1e-9
    assert result.base_shift <= 1e-9


def test_with_its_leverage_the_prediction_of_a_linear_measurement_is_exact_for_ridge(ridge):
    module, train, test = ridge
    objective = Objective(module, half_square, measurement=lambda output, _: output[:, 0])
    result = leave_one_out(objective, train, test, weight_decay=0.1, tolerance=1e-12)
    assert np.abs(result.corrected - result.actual).max() <= 1e-9
    assert np.abs(result.predicted - result.actual).max() >= 1e-3


def test_parameter_changes_of_ridge_are_the_closed_forms(ridge):
    module, train, _ = ridge
    changes = parameter_changes(
        Objective(module, half_square), train, weight_decay=0.1, index=[3, 20], tolerance=1e-12
    )
    theta = module.weight.detach()[0]
    for position, i in enumerate([3, 20]):
        actual = without(train, i) - theta
        assert np.abs(changes.actual[position] - actual.numpy()).max() <= 1e-9
        gradient = (train.x[i] @ theta - train.y[i]) * train.x[i]
        predicted = reference.damped_solve(train.x.T @ train.x / 40, gradient[None], 0.1)[0] / 40
        assert np.abs(changes.predicted[position] - predicted.numpy()).max() <= 1e-9


def test_what_parameters_do_in_short_is_numpys(ridge):
    module, train, _ = ridge
    options = {"weight_decay": 0.1, "index": [3, 20, 7], "tolerance": 1e-12}
    changes = parameter_changes(Objective(module, half_square), train, **options)
    told = changes.summary()
    norms = [np.linalg.norm(moved, axis=1) for moved in (changes.actual, changes.predicted)]
    cosines = (changes.actual * changes.predicted).sum(1) / norms[0] / norms[1]
    assert told["mean_cosine"] == pytest.approx(cosines.mean())
    assert told["worst_cosine"] == pytest.approx(cosines.min())
    assert told["mean_length_ratio"] == pytest.approx((norms[0] / norms[1]).mean())
    assert told["rows_left_out"] == 3


@pytest.mark.filterwarnings("error")
def test_a_row_of_no_weight_changes_nothing_and_counts_for_nothing(ridge):
    module, train, test = ridge
    weights = torch.ones(40, dtype=torch.float64)
    weights[3] = 0
    objective, rows = Objective(module, half_square), Rows(train.x, train.y, weights)
    options = {"weight_decay": 0.1, "tolerance": 1e-9}
    both = parameter_changes(objective, rows, **options, index=[3, 20])
    assert np.isnan(both.length_ratios).tolist() == [True, False]
    assert both.summary()["mean_length_ratio"] == both.length_ratios[1]
    assert np.isnan(
        parameter_changes(objective, rows, **options, index=[3]).summary()["mean_cosine"]
    )
    told = leave_one_out(objective, rows, test, **options, index=[3]).summary()
    assert np.isnan([told[name] for name in ("pearson", "slope", "corrected_slope")]).all()


def test_rows_of_any_weight_are_predicted_as_exactly():
    generator = torch.Generator().manual_seed(3)
    x, w = torch.randn(30, 4, generator=generator).double(), torch.rand(30).double() + 0.2
    y = x.sum(1) + torch.randn(30, generator=generator).double()

    def fitted(w):
        """To the sum of these weighted losses over the sum of all weights, and the penalty."""
        H = x.T @ (w[:, None] * x) / W + 0.1 * torch.eye(4)
        return torch.linalg.solve(H, x.T @ (w * y) / W)

    W = w.sum()
    module = nn.Linear(4, 1, bias=False).double()
    module.weight.data = fitted(w)[None]
    train, test = Rows(x, y, w), Rows(x[:5] + 0.1, y[:5])
    objective = Objective(module, half_square, measurement=lambda output, _: output[:, 0])
    options = {"weight_decay": 0.1, "tolerance": 1e-12}
    index = [2, 17, 29]
    theta = fitted(w)
    moved = torch.stack([fitted(w * (torch.arange(30) != i)) - theta for i in index])
    changes = parameter_changes(objective, train, **options, index=index)
    np.testing.assert_allclose(changes.actual, moved, atol=1e-9)
    H = x.T @ (w[:, None] * x) / W
    gradients = w[index, None] * (x[index] @ theta - y[index])[:, None] * x[index]
    expected = reference.damped_solve(H, gradients, 0.1) / W
    np.testing.assert_allclose(changes.predicted, expected, atol=1e-9)
    found = leave_one_out(objective, train, test, **options, index=index)
    np.testing.assert_allclose(found.actual, test.x @ moved.T, atol=1e-9)
    np.testing.assert_allclose(found.corrected, found.actual, atol=1e-9)
    np.testing.assert_allclose(found.predicted, test.x @ expected.T, atol=1e-9)
    moves = feature_moves(objective, train, test, [(2, 1), (29, 3)], epsilon=1e-4, **options)
    np.testing.assert_allclose(moves.actual, moves.predicted, rtol=1e-5, atol=1e-12)


def test_feature_moves_of_ridge_are_the_closed_forms(ridge):
    module, train, test = ridge
    pairs = [(0, 0), (11, 3), (11, 4)]
    moves = feature_moves(
        Objective(module, half_square), train, test, pairs, epsilon=0.02, weight_decay=0.1,
        tolerance=1e-12,
    )  # fmt: skip
    theta = module.weight.detach()[0]
    P = reference.ridge_perturbation_influences(train.x, train.y, test.x, test.y, theta, 0.1)
    for m, (i, f) in enumerate(pairs):
        assert np.abs(moves.predicted[:, m] + 0.02 * P[:, i, f].numpy() / 40).max() <= 1e-9
        losses = []
        for step in (0.02, -0.02):
            x = train.x.clone()
            x[i, f] += step
            losses.append((test.x @ reference.ridge_fit(x, train.y, 0.1) - test.y).square() / 2)
        actual = (losses[0] - losses[1]) / 2
        assert np.abs(moves.actual[:, m] - actual.numpy()).max() <= 1e-9


# Networks and options ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    rows = Rows(torch.randn(60, 3, dtype=torch.float64) + 1.5 * F.one_hot(y, 3), y)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    fit(module, "cross_entropy", rows, FitSettings(weight_decay=0.05, tolerance=1e-9))
    return module, rows, rows[:10]


def test_a_network_is_judged_the_same_way(network):
    module, train, test = network
    objective = Objective(module, "cross_entropy")
    result = leave_one_out(objective, train, test, weight_decay=0.05)
    assert result.actual.shape == (10, 60)
    assert result.pearson >= 0.98
    assert result.summary()["corrected_pearson"] > result.pearson
    assert abs(result.summary()["corrected_slope"] - 1) < abs(result.slope - 1)


def test_leverage_is_left_out_where_it_cannot_be_had(network):
    module, train, test = network
    torch.manual_seed(1)
    unfitted = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    options = {"weight_decay": 0.05, "damping": 1e-9, "index": [0], "max_steps": 1000}
    given = {"influences": torch.zeros(10, 60), **options}
    objective = Objective(unfitted, "cross_entropy")
    assert leave_one_out(objective, train, test, **given).corrected is None
    with pytest.raises(IndefiniteError):
        leave_one_out(objective, train, test, **given, leverage=True)
    at_minimum = Objective(module, "cross_entropy")
    without = leave_one_out(
        at_minimum, train, test, weight_decay=0.05, index=[0, 5], leverage=False
    )
    assert without.corrected is None
    assert "corrected_pearson" not in without.summary()


def test_a_theta_away_from_the_minimum_shows_in_the_base_shift(network):
    module, train, test = network
    at_minimum = Objective(module, "cross_entropy")
    moved = copy.deepcopy(module)
    moved[0].weight.data += 0.02
    shifts = [
        leave_one_out(objective, train, test, weight_decay=0.05, index=[0]).base_shift
        for objective in (at_minimum, Objective(moved, "cross_entropy"))
    ]
    assert shifts[0] <= 1e-6
    assert shifts[1] >= 1e-3


def test_influences_of_another_method_can_be_judged(network):
    module, train, test = network
    given = torch.randn(10, 60)
    objective = Objective(module, "cross_entropy")
    result = leave_one_out(
        objective, train, test, weight_decay=0.05, index=[4, 9], influences=given
    )
    assert np.allclose(result.predicted, given[:, [4, 9]].double() / 60)
    assert abs(result.pearson) < 0.9


@pytest.mark.campaign
def test_campaign_leverage_matters_for_a_network_on_digits(digits):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    settings = FitSettings(weight_decay=1e-3, max_steps=3000, tolerance=1e-7)
    assert fit(module, "cross_entropy", digits[0], settings).converged
    result = leave_one_out(
        Objective(module, "cross_entropy"), *digits, weight_decay=1e-3, index=range(0, 1500, 15),
        tolerance=1e-6, max_steps=1000,
    )  # fmt: skip
    print(result.summary())
    assert result.pearson >= 0.95
    assert result.summary()["corrected_pearson"] >= 0.99
    assert result.summary()["corrected_slope"] == pytest.approx(1, abs=0.15)


def test_above_a_size_the_leverage_takes_a_factor_that_is_at_hand(network, monkeypatch):
    module, train, test = network
    objective = Objective(module, "cross_entropy")
    given = {"weight_decay": 0.05, "damping": 5.0, "index": [0, 5]}
    plain = leave_one_out(objective, train, test, **given)
    assert plain.corrected is not None
    influences = torch.zeros(len(test), len(train), dtype=torch.float64)
    module = sys.modules["influence_dag.validation.leave_one_out"]
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    judged = leave_one_out(objective, train, test, **given, influences=influences)
    assert judged.corrected is None
    factor = Direct(damping=5.0).factorize(Hessian(objective, train))
    for more in ({}, {"influences": influences, "factorization": factor}):
        found = leave_one_out(objective, train, test, **given, **more).corrected
        np.testing.assert_allclose(found, plain.corrected, rtol=1e-9, atol=1e-14)


def test_influences_of_other_rows_than_all_are_refused(network):
    module, train, test = network
    with pytest.raises(ModelError, match=r"influences have shape .* those that are not left out"):
        leave_one_out(
            Objective(module, "cross_entropy"),
            train,
            test,
            weight_decay=0.05,
            index=[0, 1],
            influences=torch.zeros(len(test), 2),
        )
