import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score

from influence_dag.validation.agreement import (
    Ranks,
    bootstrap_spearman,
    found_in_top,
    pearson,
    roc_auc,
    slope,
    spearman,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("decimals", [0, 12], ids=["ties", "no ties"])
def test_correlations_are_scipys(rng, decimals):
    a, b = rng.normal(size=(2, 5, 40)).round(decimals)
    b = (a + b).round(decimals)
    expected = [(pearsonr(x, y)[0], spearmanr(x, y)[0]) for x, y in zip(a, b, strict=True)]
    assert np.allclose(np.stack([pearson(a, b), spearman(a, b)], axis=1), expected)


def test_ranks_among_resampled_columns_are_those_of_the_resampled_values(rng):
    a, b = rng.normal(size=(2, 3, 30)).round(1)
    columns = rng.integers(30, size=30)
    counts = np.bincount(columns, minlength=30).astype(float)
    resampled = Ranks(a).correlate(Ranks(b), counts)
    expected = [spearmanr(a[k, columns], b[k, columns])[0] for k in range(3)]
    assert np.allclose(resampled, expected)


def test_a_constant_side_has_no_correlation(rng):
    a = rng.normal(size=(2, 10))
    a[1] = 3.0
    assert np.isnan(pearson(a, a)[1])
    assert np.isnan(spearman(a, a)[1])
    assert spearman(a, a)[0] == pytest.approx(1)


@pytest.mark.parametrize("size", [0.1, 1e-170, 1e170])
def test_the_size_of_numbers_is_nothing_to_a_correlation(rng, size):
    """The mean of three 0.1 is another number than 0.1; squares may vanish or overflow."""
    a = size * np.array([[1.0] * 3, [1.0, 2.0, 4.0]])
    assert np.isnan(pearson(a, a)[0])
    assert pearson(a, a[::-1] + a)[1] == pytest.approx(1)


def test_what_is_not_a_number_has_no_rank(rng):
    a = rng.normal(size=(2, 8))
    b = a.copy()
    b[0, 3] = np.nan
    assert np.isnan(spearman(a, b)).tolist() == [True, False]


def test_an_interval_is_of_the_replicates_that_have_a_correlation():
    a = np.array([[0.0, 0, 0, 0, 0, 0, 1, 2]])  # half of the columns are often alike
    low, high = bootstrap_spearman(a, a, replicates=50)
    assert low <= 1 == high
    assert np.isnan(bootstrap_spearman(a[:, :2], a[:, :2], replicates=5)).all()


def test_slope_is_least_squares_through_the_origin(rng):
    a, b = rng.normal(size=(2, 50))
    assert slope(a, b) == pytest.approx(np.linalg.lstsq(a[:, None], b, rcond=None)[0][0])


def test_the_interval_covers_the_true_correlation_about_as_often_as_it_says(rng):
    # Bivariate normal columns shared by the rows: population Spearman 6 / π asin(ρ / 2).
    rho, true = 0.8, 6 / np.pi * np.arcsin(0.4)
    covered = []
    for trial in range(100):
        a = rng.normal(size=(1, 40))
        b = rho * a + np.sqrt(1 - rho**2) * rng.normal(size=(1, 40))
        low, high = bootstrap_spearman(a, b, replicates=100, seed=trial)
        assert low <= spearman(a, b)[0] <= high
        covered.append(low <= true <= high)
    assert 0.85 <= np.mean(covered) <= 1


def test_an_interval_is_repeatable_and_follows_its_seed(rng):
    a, b = rng.normal(size=(2, 4, 20))
    first, again, other = (bootstrap_spearman(a, a + b, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_an_interval_has_no_correlation_below_minus_one():
    a, noise = np.random.default_rng(1).normal(size=(2, 1, 8))
    assert bootstrap_spearman(a, noise - a, replicates=50)[0] == -1


def test_roc_auc_is_sklearns(rng):
    positive = rng.random(60) < 0.3
    scores = (rng.normal(size=60) + positive).round(1)
    assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_found_in_top_counts_the_positives_among_the_highest():
    scores, positive = np.array([5.0, 1, 4, 3, 2]), np.array([True, False, False, True, False])
    assert found_in_top(scores, positive, share=0.4) == 0.5
    assert found_in_top(scores, positive, share=0.6) == 1.0


def test_what_has_no_rank_makes_neither_known():
    """It was ranked highest by one, and lowest by the other."""
    scores, positive = np.array([3.0, np.nan, 1.0]), np.array([False, True, False])
    assert np.isnan(roc_auc(scores, positive))
    assert np.isnan(found_in_top(scores, positive, share=0.4))
