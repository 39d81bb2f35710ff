"""Rows with weights: a weight of 2 is the row twice, and leaving a row out takes its weight."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import influence_dag as idag
from influence_dag.curvature import GaussNewton, Hessian
from influence_dag.errors import ModelError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.gradients.stationarity import stationarity
from influence_dag.objective.fitting import fit
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC, KFAC
from influence_dag.study.model import FitSettings
from influence_dag.validation import datamodels, leave_one_out

F64 = torch.float64
COUNTS = torch.tensor([1, 2, 0, 3, 1, 1, 4, 2, 1, 1, 2, 1])


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(F64)


@pytest.fixture
def rows():
    torch.manual_seed(1)
    return Rows(torch.randn(12, 4, dtype=F64), torch.arange(12) % 3, COUNTS.double())


@pytest.fixture
def repeated(rows):
    return rows.unweighted[torch.repeat_interleave(torch.arange(12), COUNTS)]


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
@pytest.mark.parametrize("route", ["layered", "autograd"])
def test_curvatures_count_a_row_as_often_as_it_weighs(kind, route, module, rows, repeated):
    objective = Objective(module, "cross_entropy")
    weighted, twice = (kind(objective, r, route=route, batch_size=5) for r in (rows, repeated))
    assert_close(weighted.dense(), twice.dense())
    vectors = torch.randn(3, objective.size, dtype=F64)
    assert_close(weighted.apply(vectors), twice.apply(vectors))


METHODS = {
    "direct": {},
    "cg": {},
    "ekfac": {},
    "kfac": {},
    "ekfac of the data's labels": {"method": "ekfac", "fisher": "empirical"},
    "arnoldi": {"rank": 200, "complement": "damping"},
    "identity": {},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["up", "perturbation"])
def test_influences_are_those_of_the_rows_repeated(name, kind, module, rows, repeated):
    settings = dict(METHODS[name])
    method = settings.pop("method", name)
    test = [(torch.randn(5, 4, dtype=F64), torch.arange(5) % 3)]
    wrapped = idag.TorchTwiceDifferentiable(module, "cross_entropy")

    def influences(batch):
        return idag.compute_influences(
            wrapped,
            [batch],
            test,
            influence_type=kind,
            inversion_method=method,
            hessian_regularization=2.0,
            **settings,
        )

    found = influences((rows.x, rows.y, rows.weights))
    each = influences((repeated.x, repeated.y))
    summed = torch.zeros_like(found)
    summed.index_add_(1, torch.repeat_interleave(torch.arange(12), COUNTS), each)
    assert_close(found, summed, rtol=1e-6, atol=1e-9)


def test_test_rows_count_once_whatever_they_weigh(module, rows):
    wrapped = idag.TorchTwiceDifferentiable(module, "cross_entropy")
    train = [(rows.x, rows.y, rows.weights)]
    test = [(rows.x, rows.y, 3 * rows.weights + 1)]
    options = {"inversion_method": "direct", "hessian_regularization": 1.0}
    expected = idag.compute_influence_factors(wrapped, train, [(rows.x, rows.y)], **options).x
    assert_close(idag.compute_influence_factors(wrapped, train, test, **options).x, expected)
    assert_close(idag.compute_influence_factors(wrapped, train, **options).x, expected)


@pytest.mark.parametrize("method", [EKFAC(), KFAC(), EKFAC(fisher="empirical")], ids=repr)
def test_kronecker_sums_of_weighted_rows_can_be_added(method, module, rows):
    objective = Objective(module, "cross_entropy")
    whole = method.sums(GaussNewton(objective, rows))
    parts = [method.sums(GaussNewton(objective, part)) for part in rows.batches(5)]
    total = parts[0] + parts[1] + parts[2]
    for name, tensor in whole.tensors().items():
        assert_close(total.tensors()[name], tensor)


def test_a_loss_inside_the_module_weighs_like_the_loaders_weights(module, rows):
    """Class weights in torch's loss, and the same as weights of rows, up to the mean's divisor."""
    weight = torch.tensor([1.0, 5.0, 2.0], dtype=F64)
    of_rows = weight[rows.y]
    x, y, mean = rows.x, rows.y, float(of_rows.mean())
    inside = idag.compute_influences(
        idag.TorchTwiceDifferentiable(module, nn.CrossEntropyLoss(weight=weight)),
        [(x, y)],
        [(x, y)],
        hessian_regularization=3 * mean,
    )
    beside = idag.compute_influences(
        idag.TorchTwiceDifferentiable(module, lambda f, t: F.cross_entropy(f, t, weight=weight)),
        [(x, y, of_rows)],
        [(x, y, of_rows)],
        hessian_regularization=3.0,
    )
    # A test row's own loss has its class weight in the one and not in the other.
    assert_close(inside / of_rows[:, None], beside / mean)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_fit_is_that_of_the_rows_repeated(optimizer, module, rows, repeated):
    step = None if optimizer == "lbfgs" else 0.01
    settings = FitSettings(optimizer=optimizer, weight_decay=0.05, learning_rate=step)
    fitted = []
    for data in (rows, repeated):
        module.load_state_dict(_initial(module))
        fit(module, "cross_entropy", data, settings)
        fitted.append(Objective(module, "cross_entropy").params)
    tolerance = 1e-5 if optimizer == "lbfgs" else 1e-8
    assert_close(*fitted, rtol=tolerance, atol=tolerance)


def _initial(module):
    torch.manual_seed(7)
    return {name: torch.randn_like(value) / 3 for name, value in module.state_dict().items()}


def test_a_minibatch_is_an_unbiased_part_of_the_weighted_mean(module, rows):
    from influence_dag.objective.fitting import _Problem

    problem = _Problem(Objective(module, "cross_entropy"), rows, 0.1)
    theta = problem.objective.params
    parts = [problem.loss(theta, rows[k : k + 3]) for k in (0, 3, 6, 9)]
    assert_close(torch.stack(parts).mean(), problem.loss(theta, rows))


def test_batches_of_a_fit_add_up_to_the_weighted_mean(module, rows, monkeypatch):
    from influence_dag.objective import fitting

    problem = fitting._Problem(Objective(module, "cross_entropy"), rows, 0.1)
    theta, vector = problem.objective.params, torch.ones(problem.objective.size, dtype=F64)
    whole = (*problem.value_and_gradient(theta), problem.hessian_product(theta)(vector))
    monkeypatch.setattr(fitting, "ROWS_AT_ONCE", 5)  # of 12
    parts = (*problem.value_and_gradient(theta), problem.hessian_product(theta)(vector))
    assert_close(parts, whole)


@pytest.fixture
def softmax():
    """A softmax regression at its minimum, 40 weighted rows, 6 test rows."""
    torch.manual_seed(3)
    x, weights = torch.randn(40, 4, dtype=F64), torch.rand(40, dtype=F64) * 3 + 0.1
    y = (x[:, 0] + 0.5 * torch.randn(40, dtype=F64) > 0).long()
    rows = Rows(x, y, weights)
    module = nn.Linear(4, 2).to(F64)
    fit(module, "cross_entropy", rows, FitSettings(weight_decay=0.02, tolerance=1e-10))
    return Objective(module, "cross_entropy"), rows, Rows(x[:6] + 0.1, y[:6])


def test_leaving_a_weighted_row_out_changes_losses_by_its_influence_over_the_weights(softmax):
    objective, train, test = softmax
    found = leave_one_out(objective, train, test, weight_decay=0.02)
    influences = idag.compute_influences(
        idag.TorchTwiceDifferentiable(objective.module, "cross_entropy"),
        [(train.x, train.y, train.weights)],
        [(test.x, test.y)],
        hessian_regularization=0.02,
    )
    assert_close(torch.as_tensor(found.predicted), influences / train.weight_sum)
    actual, predicted = torch.as_tensor(found.actual), torch.as_tensor(found.predicted)
    assert torch.corrcoef(torch.stack([actual.flatten(), predicted.flatten()]))[0, 1] > 0.9
    corrected = torch.as_tensor(found.corrected)
    assert (corrected - actual).norm() < 0.5 * (predicted - actual).norm()


def test_random_subsets_of_weighted_rows_are_ranked(softmax):
    objective, train, test = softmax
    found = datamodels(objective, train, test, weight_decay=0.02, count=40)
    assert found.scores["hessian"].mean > 0.85


def test_gradients_are_the_rows_own_times_their_weights(module, rows):
    objective = Objective(module, "cross_entropy")
    plain = per_sample_gradients(objective, rows.unweighted).dense()
    assert_close(per_sample_gradients(objective, rows).dense(), plain * rows.weights[:, None])
    measured = per_sample_gradients(objective, rows, of="measurement").dense()
    assert_close(measured, plain)


def test_how_near_a_minimum_is_told_by_the_rows_that_count(module, rows):
    """Of 2,000 rows three count, and none of those that are looked at if each is."""
    objective, some = Objective(module, "cross_entropy"), torch.tensor([0, 3, 6])
    many = rows[torch.arange(2000) % 12]
    weights = torch.zeros(2000, dtype=F64)
    weights[some + 12 * 17] = rows.weights[some]
    gradient = torch.ones(objective.size, dtype=F64)
    found = stationarity(objective, Rows(many.x, many.y, weights), gradient)
    assert found == stationarity(objective, rows[some], gradient)
    assert found.rows == 3


def test_gradients_that_do_not_repeat_are_seen_in_rows_without_weight(module, rows):
    def loss(output, target):
        noise = torch.randn_like(output) * output
        return F.cross_entropy(output, target, reduction="none") + (noise - noise.detach()).sum(1)

    unheard = Rows(rows.x, rows.y, torch.arange(12).clamp(min=4).double() - 4)
    with pytest.raises(ModelError, match="the gradient of the same rows differs between two calls"):
        Objective(module, loss).check(unheard)
