"""Neighbours, Shapley values and combined rankings, against other libraries and brute force."""

import sys
from itertools import permutations
from math import factorial

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm, rankdata
from sklearn.neighbors import NearestNeighbors

from influence_dag.suspicion import (
    Evidence,
    combined,
    combined_suspicion,
    confident_joint,
    doubt,
    knn_shapley,
    knn_shapley_of_each,
    nearest,
    nearest_of_others,
    neighbour_disagreement,
    neighbours,
    noise_matrix,
    normal_scores,
    trusted,
    votes,
)


@pytest.fixture
def points() -> np.ndarray:
    return 100 + np.random.default_rng(0).normal(size=(57, 3))


@pytest.fixture
def classes() -> np.ndarray:
    return np.random.default_rng(1).integers(3, size=57)


@pytest.fixture(params=[1, 200, 2**22], ids=["row by row", "in blocks", "at once"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", request.param)


@pytest.mark.usefixtures("_blocks")
def test_the_nearest_rows_are_sklearns(points):
    expected = NearestNeighbors(n_neighbors=7).fit(points).kneighbors(return_distance=False)
    assert np.array_equal(nearest(points, 7), expected)


@pytest.mark.usefixtures("_blocks")
def test_the_nearest_of_other_rows_are_sklearns(points):
    expected = NearestNeighbors(n_neighbors=7).fit(points[:40]).kneighbors(points[40:])[1]
    assert np.array_equal(nearest_of_others(points[:40], points[40:], 7), expected)


@pytest.mark.usefixtures("_blocks")
def test_disagreement_is_the_weighted_share_of_other_labels(points, classes):
    found = NearestNeighbors(n_neighbors=10).fit(points).kneighbors(return_distance=False)
    weights = np.arange(1, 11) ** -0.5
    expected = [
        weights[classes[near] != own].sum() / weights.sum()
        for near, own in zip(found, classes, strict=True)
    ]
    assert np.allclose(neighbour_disagreement(points, classes), expected)


def test_of_numbers_it_is_the_distance_from_the_neighbours_mean():
    points = np.array([0.0, 1.0, 3.0])[:, None]
    found = neighbour_disagreement(points, np.array([1.0, 5.0, 8.0]), k=1)
    assert found.tolist() == [4.0, 4.0, 3.0]


def test_few_rows_have_the_neighbours_that_there_are():
    few = np.array([[0.0], [1.0]])
    assert neighbour_disagreement(few, np.array([0, 1])).tolist() == [1.0, 1.0]
    assert np.isnan(neighbour_disagreement(few[:1], np.array([0]))).all()


def shapley(points, classes, test_point, test_class, k) -> np.ndarray:
    """By its definition: the mean gain of a row over all orders in which rows may come."""
    distance, values = np.abs(points[:, 0] - test_point), np.zeros(len(points))

    def worth(rows) -> float:
        near = sorted(rows, key=lambda row: distance[row])[:k]
        return sum(classes[row] == test_class for row in near) / k

    for order in permutations(range(len(points))):
        for place, row in enumerate(order):
            values[row] += worth(order[: place + 1]) - worth(order[:place])
    return values / factorial(len(points))


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_knn_shapley_is_the_shapley_value_of_the_classifier(k):
    rng = np.random.default_rng(k)
    points, classes = rng.normal(size=(6, 1)), rng.integers(2, size=6)
    tests, labels = rng.normal(size=(2, 1)), np.array([0, 1])
    expected = np.stack(
        [shapley(points, classes, t[0], y, k) for t, y in zip(tests, labels, strict=True)]
    )
    assert np.allclose(knn_shapley_of_each(points, classes, tests, labels, k=k), expected)
    assert np.allclose(knn_shapley(points, classes, tests, labels, k=k), expected.mean(axis=0))


@pytest.mark.usefixtures("_blocks")
def test_values_of_a_test_row_add_up_to_how_right_the_classifier_is(points, classes):
    values = knn_shapley_of_each(points[:50], classes[:50], points[50:], classes[50:], k=5)
    near = NearestNeighbors(n_neighbors=5).fit(points[:50]).kneighbors(points[50:], 5, False)
    right = (classes[near] == classes[50:, None]).mean(axis=1)
    assert np.allclose(values.sum(axis=1), right)


def test_normal_scores_are_those_of_mean_ranks():
    """What is infinite, a loss out of fold, is beyond all others; NaN has no rank."""
    values = np.array([3.0, 1.0, 3.0, np.nan, 9.0, np.inf, -np.inf])
    known = ~np.isnan(values)
    ranks = rankdata(values[known])
    assert np.allclose(normal_scores(values)[known], norm.ppf((ranks - 0.5) / 6))
    assert np.isnan(normal_scores(values)[3])


def test_a_combination_does_not_know_the_scales_of_what_it_combines():
    a, b = np.random.default_rng(2).normal(size=(2, 500))
    both = combined(a, b)
    assert np.allclose(both, combined(np.exp(5 * a), b / 1000))
    assert both.std() == pytest.approx(1, abs=0.05), "independent scores have variance 1"


def test_the_model_is_one_view_and_the_neighbours_are_the_other():
    rng = np.random.default_rng(3)
    names = ("loss", "out_of_fold_loss", "self_influence", "neighbour_disagreement", "knn_shapley")
    every = {name: rng.normal(size=30) for name in names}
    *model, near = (every[name] for name in names[:4])
    assert np.allclose(combined_suspicion(every), combined(combined(*model), near))
    few = {name: every[name] for name in ("loss", "self_influence")}
    assert np.allclose(combined_suspicion(few), normal_scores(combined(*few.values())))


# What classes rows seem to be of -----------------------------------------------------------------


@pytest.fixture
def mistaken() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Two views of 300 rows of 3 classes; every fourth row of class 0 is given as 1. And which."""
    rng = np.random.default_rng(4)
    classes = rng.integers(3, size=300)
    views = [rng.normal(size=(300, 3)) * size for size in (1.0, 2.0)]
    for view in views:
        view[np.arange(300), classes] += 2.0
        view -= np.log(np.exp(view).sum(axis=1, keepdims=True))
    flipped = (classes == 0) & (rng.random(300) < 0.25)
    return views, np.where(flipped, 1, classes), flipped


def test_the_confident_joint_counts_rows_by_the_classes_that_are_likely_enough(mistaken):
    (view, _), labels, _ = mistaken
    chances, counted = np.exp(view), np.zeros((3, 3))
    means = [chances[labels == c, c].mean() for c in range(3)]
    for row, given in zip(chances, labels, strict=True):
        likely = [c for c in range(3) if row[c] >= means[c]]
        if likely:
            counted[max(likely, key=lambda c: row[c]), given] += 1
    assert np.array_equal(confident_joint(view, labels), counted)
    noise = noise_matrix([view], labels)
    assert np.allclose(noise.sum(axis=1), 1)
    assert noise[0, 1] > 3 * noise[1, 0], "it is 0 that is given as 1"


def test_doubt_is_bayes_rule_at_the_weights_under_which_the_labels_are_likeliest(mistaken):
    views, labels, flipped = mistaken
    noise = noise_matrix(views, labels)

    def chances(weights) -> np.ndarray:
        pooled = np.exp(weights[0] * views[0] + weights[1] * views[1])
        return pooled / pooled.sum(axis=1, keepdims=True)

    def unlikely(weights) -> float:
        return -np.log((chances(weights) * noise[:, labels].T).sum(axis=1)).sum()

    best = minimize(unlikely, [1.0, 1.0]).x
    assert best[0] > best[1] > 0, "the one that errs more counts less"
    each = chances(best) * noise[:, labels].T
    right = each[np.arange(300), labels] / each.sum(axis=1)
    assert np.allclose(np.exp(-doubt(views, labels)), right, atol=1e-3)
    assert doubt(views, labels)[flipped].mean() > 5 * doubt(views, labels)[~flipped].mean()


def test_a_view_that_says_nothing_is_not_heard(mistaken):
    (view, _), labels, _ = mistaken
    blank = np.full_like(view, -np.log(3))
    assert np.allclose(doubt([view], labels), doubt([view, view], labels), atol=1e-6)
    matrix = noise_matrix([view, blank], labels)
    assert np.isfinite(matrix).all()
    assert np.isfinite(doubt([view, blank], labels)).all()


def test_neighbours_vote_on_each_row_and_are_right_or_not_about_test_rows(points, classes):
    found = votes(points[:50], classes[:50], points[50:], classes[50:], k=5)
    assert found is not None
    weights = np.arange(1, 6) ** -0.5 / (np.arange(1, 6) ** -0.5).sum()
    near = NearestNeighbors(n_neighbors=5).fit(points[:50])
    for row, others in enumerate(near.kneighbors(return_distance=False)):
        shares = [weights[classes[others] == c].sum() for c in range(3)]
        assert np.allclose(np.exp(found.neighbours[row]), (5 * np.array(shares) + 1 / 3) / 6)
    said = [
        max(range(3), key=lambda c: weights[classes[others] == c].sum())
        for others in near.kneighbors(points[50:], return_distance=False)
    ]
    assert np.array_equal(found.right, np.array(said) == classes[50:])


def test_no_votes_where_there_is_no_other_row_or_no_room(points, classes, monkeypatch):
    assert votes(points[:1], classes[:1]) is None
    monkeypatch.setattr(sys.modules[votes.__module__], "MOST_VOTES", 50 * 3 - 1)
    assert votes(points[:50], classes[:50]) is None
    assert votes(points[:49], classes[:49]) is not None


def test_views_count_by_the_log_odds_of_being_right():
    right = {share: np.arange(1000) < 1000 * share for share in (0.3, 0.8, 0.9)}
    weights = trusted(right[0.8], right[0.9])
    assert weights == pytest.approx((np.log(4), np.log(9)), rel=1e-2)
    assert trusted(right[0.3], right[0.9])[0] == 0
    assert trusted(right[0.3], right[0.3]) == (1, 1)


def test_evidence_puts_doubt_in_the_place_of_disagreement_and_weighs_the_views(mistaken):
    views, labels, _ = mistaken
    rng = np.random.default_rng(5)
    rankings = {name: rng.normal(size=300) for name in ("loss", "neighbour_disagreement")}
    known = Evidence(labels, views[0], trust=(3.0, 1.0))
    near = doubt([views[0]], labels)
    without = combined(near, rankings["loss"], weights=[3, 1])
    assert np.allclose(combined_suspicion(rankings, known), without)
    known = Evidence(labels, views[0], views[1], (3.0, 1.0))
    assert np.allclose(combined_suspicion(rankings, known), combined(without, doubt(views, labels)))
