from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from influence_dag.curvature import GaussNewton
from influence_dag.errors import IndefiniteError, ModelError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.fitting import fit
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC
from influence_dag.study.model import FitSettings
from influence_dag.validation.candidates import exact_candidates
from influence_dag.validation.datamodels import (
    datamodels,
    draw_subsets,
    fit_subsets,
    initial_params,
    linear_datamodelling_score,
)


@pytest.fixture(scope="module")
def convex(softmax, digits):
    return datamodels(softmax, *digits, weight_decay=1e-2, count=100)


def test_influences_of_softmax_regression_rank_models_of_half_the_digits(convex):
    assert convex.scores["hessian"].mean >= 0.99


def test_influence_beats_empirical_fisher_beats_what_has_no_curvature(convex):
    assert list(convex.scores) == [
        *("hessian", "empirical_fisher", "nearest_neighbours", "gradient_dot"),
        *("representation_cosine", "loss"),
    ]
    means = [score.mean for score in convex.scores.values()]
    assert all(better > worse + 0.05 for better, worse in pairwise(means))
    for score in convex.scores.values():
        assert score.interval[0] <= score.mean <= score.interval[1] <= score.interval[0] + 0.1


def test_the_score_is_scipys_of_the_summed_influences(convex, softmax, digits):
    influences = torch.randn(297, 1500, dtype=torch.float64)
    members = convex.fits.membership.double()
    predicted = -(influences @ members.T)
    expected = [spearmanr(p, f)[0] for p, f in zip(predicted, convex.fits.values.T, strict=True)]
    score = linear_datamodelling_score(influences, convex.fits)
    assert np.allclose(score.per_test, expected)
    assert abs(score.mean) < 0.1


def test_a_subsets_model_is_the_minimum_over_the_subset(convex, softmax, digits):
    train, test = digits
    rows = train[convex.fits.membership[17]]
    module = nn.Linear(64, 10).double()
    fit(module, "cross_entropy", rows, FitSettings(weight_decay=1e-2, tolerance=1e-8))
    losses = F.cross_entropy(module(test.x), test.y, reduction="none").detach().numpy()
    assert np.abs(convex.fits.values[17] - losses).max() <= 1e-3


def test_predictions_have_the_size_of_the_change_and_not_only_its_order(convex, softmax, digits):
    influences = exact_candidates(softmax, *digits, (1e-2,))["hessian"][1e-2]
    test = digits[1]
    base = softmax.losses(softmax.params, test).detach().numpy()
    predicted, found = convex.fits.predicted(influences), convex.fits.values.T - base[:, None]
    assert 0.9 <= (predicted * found).sum() / (predicted**2).sum() <= 1.2


def test_subsets_have_their_size_and_follow_their_seed():
    subsets = draw_subsets(10, fraction=0.3, count=5, seed=4)
    assert subsets.shape == (5, 10)
    assert (subsets.sum(dim=1) == 3).all()
    assert torch.equal(subsets, draw_subsets(10, fraction=0.3, count=5, seed=4))
    assert not torch.equal(subsets, draw_subsets(10, fraction=0.3, count=5, seed=5))


@pytest.mark.parametrize("fraction", [0.0, 0.01, 1.0])
def test_a_subset_of_nothing_or_everything_is_refused(fraction):
    with pytest.raises(ModelError, match=r"subsets of \d+ of 10 rows .*some rows are in and some"):
        draw_subsets(10, fraction=fraction)
    with pytest.raises(ModelError, match=r"of 1 rows .*need two training rows or more"):
        draw_subsets(1, fraction=fraction)


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def clouds():
    y = torch.arange(90) % 3
    rows = Rows(torch.randn(90, 3, dtype=torch.float64) + F.one_hot(y, 3), y)
    module = small_network()
    fit(module, "cross_entropy", rows[:60], FitSettings(weight_decay=0.02, tolerance=1e-8))
    return Objective(module, "cross_entropy"), rows[:60], rows[60:]


def test_the_damping_is_chosen_on_one_draw_and_judged_on_another(clouds):
    objective, train, test = clouds
    candidates = {
        "swept": dict(exact_candidates(objective, train, test, (0.1, 1.0))["gauss_newton"]),
        "fixed": {None: torch.randn(30, 60)},
    }
    options = {"weight_decay": 0.02, "count": 10, "seeds": (5, 6), "candidates": candidates}
    result = datamodels(objective, train, test, **options)
    assert torch.equal(result.fits.membership, draw_subsets(60, count=10, seed=6))
    assert torch.equal(result.chosen_on.membership, draw_subsets(60, count=10, seed=5))
    means = {
        damping: linear_datamodelling_score(influences, result.chosen_on).mean
        for damping, influences in candidates["swept"].items()
    }
    assert result.scores["swept"].damping == max(means, key=means.get)
    only = datamodels(
        objective, train, test, **options | {"candidates": {"fixed": candidates["fixed"]}}
    )
    assert only.chosen_on is None
    assert only.scores["fixed"].mean == result.scores["fixed"].mean


def test_dampings_that_leave_the_hessian_indefinite_are_left_out(clouds):
    objective, train, test = clouds
    objective = Objective(small_network(), "cross_entropy")  # not fitted: indefinite
    swept = exact_candidates(objective, train, test, (1e-9, 10.0))
    assert list(swept["hessian"]) == [10.0]
    assert list(swept["gauss_newton"]) == [1e-9, 10.0]
    for none in ((1e-9,), (1e-9, 1e-8)):
        with pytest.raises(IndefiniteError):
            exact_candidates(objective, train, test, none)


def test_members_start_where_they_are_told(clouds):
    objective, train, test = clouds
    subsets = draw_subsets(60, count=3, seed=0)
    starts = initial_params(small_network, range(3))
    fits = fit_subsets(
        objective, train, test, subsets, weight_decay=0.02, start=starts, max_steps=1,
        tolerance=1e-12, on_failure="keep",
    )  # fmt: skip
    at_start = torch.stack([objective.losses(theta, test) for theta in starts]).detach().numpy()
    near = np.abs(fits.values - at_start).max(axis=1)
    assert (near < np.abs(fits.values - np.roll(at_start, 1, axis=0)).max(axis=1)).all()
    state = torch.random.get_rng_state()
    again = initial_params(small_network, range(3))
    assert torch.equal(again, starts)
    assert torch.equal(state, torch.random.get_rng_state())


def test_influences_that_rank_nothing_come_last_and_choose_no_damping(digits):
    train, test = digits[0][:30], digits[1][:3]
    objective = Objective(nn.Linear(64, 10).double(), "cross_entropy")
    (exact,) = exact_candidates(objective, train, test, (1.0,))["hessian"].values()
    candidates = {
        "none": {None: 0 * exact},
        "both": {0.5: 0 * exact, 1.0: exact},
        "one": {None: exact},
    }
    result = datamodels(objective, train, test, weight_decay=1.0, candidates=candidates, count=5)
    assert list(result.scores)[-1] == "none"
    assert np.isnan(result.scores["none"].mean)
    assert result.scores["both"].damping == 1.0
    with pytest.raises(ModelError, match=r"influences have shape \(1, 30\); wanted \(3, 30\)"):
        linear_datamodelling_score(exact[:1], result.fits)


# A network on digits ----------------------------------------------------------------------------


def digits_network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()


def fitted_network(train: Rows) -> tuple[Objective, torch.Tensor]:
    """The digits network, L2 1e-3, and the weights it started from."""
    initial = initial_params(digits_network, range(1))[0]
    torch.manual_seed(0)
    module = digits_network()
    settings = FitSettings(weight_decay=1e-3, tolerance=1e-4)
    assert fit(module, "cross_entropy", train, settings).converged
    return Objective(module, "cross_entropy"), initial


def test_influences_of_a_network_rank_its_refits(digits):
    """A short form of the campaign below: fewer rows and steps of the fits, one damping."""
    train, test = digits[0][:700], digits[1]
    objective, initial = fitted_network(train)
    result = datamodels(
        objective, train, test, weight_decay=1e-3, dampings=(3e-3,), count=20, start=initial,
        max_steps=60, on_failure="keep",
    )  # fmt: skip
    assert result.scores["hessian"].mean >= 0.75
    assert result.scores["gauss_newton"].mean >= 0.72
    names = list(result.scores)
    assert names.index("hessian") < names.index("empirical_fisher") < names.index("gradient_dot")


DAMPINGS = (1.5e-3, 2e-3, 3e-3, 5e-3, 1e-2, 3e-2)


def with_ekfac(objective: Objective, train: Rows, test: Rows) -> dict:
    factorization = EKFAC().factorize(GaussNewton(objective, train))
    gradients, measured = (per_sample_gradients(objective, rows).dense() for rows in (train, test))
    ekfac = {
        damping: factorization.solve(measured, damping=damping).x @ gradients.T
        for damping in DAMPINGS
    }
    return {**exact_candidates(objective, train, test, DAMPINGS), "ekfac": ekfac}


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("start", "hessian"), [("same", 0.80), ("others", 0.76)], ids=["same start", "others"]
)
def test_campaign_influences_of_a_network_rank_its_refits(digits, start, hessian):
    objective, initial = fitted_network(digits[0])
    result = datamodels(
        objective, *digits, weight_decay=1e-3, candidates=with_ekfac(objective, *digits), count=50,
        start=initial if start == "same" else initial_params(digits_network, range(100, 150)),
        tolerance=1e-4, max_steps=3000,
    )  # fmt: skip
    print(result, result.summary(), sep="\n")
    assert result.scores["hessian"].mean >= hessian
    assert result.scores["gauss_newton"].mean >= 0.75
    assert result.scores["gauss_newton"].mean > result.scores["ekfac"].mean
    assert result.scores["ekfac"].mean > result.scores["gradient_dot"].mean
