"""How methods are said to agree."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from influence_dag.explorer.numbers import agreement
from influence_dag.stages.ranks import rank_correlations


def test_rows_of_equal_influence_share_their_rank():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 40)).round(0)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlations(a, b), expected)
    assert agreement(a[0], b[0])["spearman"] == pytest.approx(expected[0])


def test_what_ranks_nothing_agrees_with_nothing():
    a = np.stack([np.zeros(6), np.arange(6.0)])
    assert np.isnan(rank_correlations(a, a)[0])
    assert rank_correlations(a, a)[1] == pytest.approx(1)


def test_rows_without_equal_numbers_are_ranked_beside_rows_with_them():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 4, 30))
    a[2] = a[2].round(0)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlations(a, b), expected)
