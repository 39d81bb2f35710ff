"""How methods are said to agree."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from tiny_project import Project

from influence_dag.explorer.numbers import agreement
from influence_dag.stages.graph import artifacts
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


def test_methods_are_compared_on_the_rows_that_both_have(project):
    project.edit("test", 1, height=9.0)
    names = ("influence_factors", "influences", "summary")
    wanted = {"dataset", *(f"direct/{name}" for name in names), "report"}
    bench = project.bench()
    for node in artifacts(bench.study):
        if node.name in wanted:
            node.refresh(bench)
    told = project.bench().require("report").attrs["info"]["agreement"]["direct vs cg"]
    assert told["relative_error"] < 1e-6


def test_methods_are_compared_however_each_is_cut(tmp_path):
    """One that is added later has chunks of its own."""
    rows = {"test": 4, "train": 16}
    project = Project(tmp_path, methods={"cg": None}, perturbation=None, store={"chunks": rows})
    project.refresh()
    project.write_settings(methods={"cg": {"rtol": 1e-10}}, store={"chunks": None})
    project.refresh()
    bench = project.bench()
    both = [bench.require(f"{name}/influences") for name in ("direct", "cg")]
    assert len({version.variables["influences"].chunks for version in both}) == 2
    told = bench.require("report").attrs["info"]["agreement"]["direct vs cg"]
    a, b = (version.read("influences") for version in both)
    wanted = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert told["relative_error"] == pytest.approx(wanted, rel=1e-6)


@pytest.fixture
def three_methods(tmp_path):
    """Methods that differ, over rows of which some have left, at the last λ of two."""
    project = Project(
        tmp_path,
        methods={"cg": None, "ekfac": {}, "identity": {}},
        damping=[0.05, 0.5],
        perturbation=None,
    )
    project.refresh()
    for split, gone in (("test", (1, 6)), ("train", (0, 9, 39))):
        rows = [row for k, row in enumerate(project.rows[split]) if k not in gone]
        project.write(split, rows)
    project.refresh()
    return project


def test_the_report_has_what_numpy_says_of_the_influences(three_methods):
    bench = three_methods.bench()
    values = {}
    for method in ("direct", "ekfac", "identity"):
        version = bench.require(f"{method}/influences")
        stored = version.read("influences")[-1]
        rows = [bench.axis_of(version, split).valid for split in ("test", "train")]
        values[method] = stored[np.ix_(*rows)]
        assert values[method].shape == (8, 37)
    told = bench.require("report").attrs["info"]
    assert list(told["strength"]) == list(values)
    for method, seen in values.items():
        expected = {
            "mean": seen.mean(),
            "mean_absolute": np.abs(seen).mean(),
            "largest": np.abs(seen).max(),
        }
        assert told["strength"][method] == pytest.approx(expected, rel=1e-12)
    assert len(told["agreement"]) == 3
    for pair, seen in told["agreement"].items():
        a, b = (values[method] for method in pair.split(" vs "))
        ranks = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
        expected = {
            "relative_error": np.linalg.norm(a - b) / np.linalg.norm(b),
            "pearson": np.corrcoef(a.ravel(), b.ravel())[0, 1],
            "spearman_per_test": np.mean(ranks),
        }
        assert seen == pytest.approx(expected, rel=1e-9)
        assert seen["relative_error"] > 0.01
        assert seen["spearman_per_test"] < 0.999
