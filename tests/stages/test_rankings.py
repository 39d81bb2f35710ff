"""The strongest entries of rows, found in blocks and merged."""

import numpy as np
import pytest
from tiny_project import Project

from influence_dag.stages import rankings, ranks


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("values", [5, 10_000], ids=["many ties", "few"])
def test_merged_blocks_are_the_ranking_of_the_whole_row(size, values):
    row = np.random.default_rng(0).integers(values, size=(6, 40)).astype(float)
    parts = [range(start, min(start + size, 40)) for start in range(0, 40, size)]
    found = [rankings.strongest(row[:, part], np.array(part), min(4, size)) for part in parts]
    blocks = (np.stack(each, axis=1) for each in zip(*found, strict=True))
    strongest, columns = rankings.merged(*blocks, 4)
    for end, sign in enumerate((-1, 1)):
        wanted = np.argsort(sign * row, axis=1, kind="stable")[:, :4]
        np.testing.assert_array_equal(columns[:, end], wanted)
        np.testing.assert_array_equal(strongest[:, end], np.take_along_axis(row, wanted, axis=1))


def test_a_block_with_fewer_entries_says_so():
    values, columns = rankings.strongest(np.array([[2.0, 1.0]]), np.array([3, 4]), 3)
    np.testing.assert_array_equal(columns, [[[3, 4, -1], [4, 3, -1]]])
    np.testing.assert_array_equal(values, [[[2, 1, np.nan], [1, 2, np.nan]]])


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 1e7), (1e-170, 0), (1e160, 0)])
def test_moments_of_parts_are_those_of_all_numbers(scale, offset):
    generator = np.random.default_rng(0)
    a = generator.normal(size=(6, 40))
    b = a + 0.3 * generator.normal(size=a.shape)
    wanted, size = np.corrcoef(a.ravel(), b.ravel())[0, 1], np.linalg.norm(b + offset)
    found = ranks.Moments()
    for part in (slice(0, 0), slice(0, 1), slice(1, 4), slice(4, 4), slice(4, 6)):
        pair = ((numbers[part] + offset) * scale for numbers in (a, b))
        found = found.joined(ranks.Moments.of(*pair))
    assert found.pearson == pytest.approx(wanted, abs=1e-8 if offset else 1e-14)
    assert found.lengths[1] / scale == pytest.approx(size, rel=1e-14)


def test_equal_numbers_correlate_with_nothing():
    parts = [ranks.Moments.of(np.full(7, 0.1), np.arange(7.0)) for _ in range(3)]
    assert np.isnan(ranks.Moments().joined(parts[0]).joined(parts[1]).joined(parts[2]).pearson)


def test_methods_agree_over_the_rows_that_are_left_when_a_run_of_them_is_removed(tmp_path):
    project = Project(tmp_path, store={"chunks": {"test": 2, "train": 16}})
    project.refresh()
    for number, rows in enumerate([project.rows["test"][:2] + project.rows["test"][4:]] * 2):
        project.write("test", rows)
        if number:
            project.remove_store()
        project.refresh()
        assert project.results.open("direct/influences").sizes["test"] == len(rows)
        (agreement,) = project.results.open("report").agreement.values
        np.testing.assert_allclose(agreement, [0, 1, 1], atol=1e-8)
