"""Perturbation influences of which less than all is kept: numpy's reductions of the whole."""

import pickle

import numpy as np
import pytest
import torch
import xarray as xr
from reduced_forms import BY, FORMS, NAME, brought_up, kept, longest
from spawned import Remembering
from tiny_answers import assert_close

from influence_dag.components.assets import code_version
from influence_dag.components.reading import _own_array
from influence_dag.errors import StudyError
from influence_dag.explorer.content import Contents
from influence_dag.explorer.opened import Opened
from influence_dag.explorer.pair import Maps
from influence_dag.influence import perturbation as derivatives
from influence_dag.influence.reductions import over_features
from influence_dag.query.text import describe
from influence_dag.stages import tasks
from influence_dag.stages.foreseen import foresee
from influence_dag.stages.graph import artifacts
from influence_dag.study.loading import load_study


@pytest.fixture(scope="module")
def whole(finished_project):
    return finished_project.results.perturbation("direct").load()


@pytest.mark.parametrize("by", BY)
def test_over_features_a_number_a_pair_is_left(project, whole, by):
    kept(project, reduce={"over": "feature", "by": by})
    found = project.results.perturbation("direct")
    assert found.dims == ("test", "train")
    assert_close(found, BY[by](whole.values, 2), 1e-12)


@pytest.mark.parametrize("by", BY)
def test_over_test_rows_a_map_a_training_row_is_left(project, whole, by):
    kept(project, reduce={"over": "test", "by": by})
    found = project.results.perturbation("direct")
    assert found.dims == ("train", "feature")
    assert found.feature.values.tolist() == ["height", "width", "depth"]
    assert_close(found, BY[by](whole.values, 0), 1e-12)


def test_of_each_test_row_the_longest_pairs_are_left(project, whole):
    kept(project, pairs="top-5")
    found = project.results.perturbation("direct")
    xr.testing.assert_identical(_own_array(project.results.open(NAME), NAME), found)
    assert found.dims == ("test", "rank", "feature")
    order = longest(whole)
    assert (found.train.values == whole.train.values[order]).all()
    assert (found.train_label.values == whole.train_label.values[order]).all()
    assert_close(found, np.take_along_axis(whole.values, order[:, :, None], 1), 1e-12)


@pytest.fixture(scope="module")
def edited(finished_project, tmp_path_factory):
    """At pinned θ and curvature two training rows and a test row are gone, some are new."""
    project = finished_project.copy(tmp_path_factory.mktemp("edited"))
    project.write_settings(model={"refit": "pinned"}, curvature={"refresh": "pinned"})
    project.write_settings(methods={"cg": None}, damping=[0.05, 0.5])
    for split, gone in (("train", (3, 11)), ("test", (6,))):
        rows = [row for k, row in enumerate(project.rows[split]) if k not in gone]
        project.write(split, rows)
    brought_up(project)
    return project


def test_it_is_computed_in_blocks_around_rows_that_are_gone_for_each_damping(
    edited, tmp_path, monkeypatch
):
    project, sizes = edited.copy(tmp_path), []
    whole = project.results.perturbation("direct").load()
    differentiated = derivatives.perturbation_influences

    def counted(*args, **options):
        found = differentiated(*args, **options)
        sizes.append(found.nbytes)
        return found

    monkeypatch.setattr(derivatives, "perturbation_influences", counted)
    project.write_settings(compute={"block_bytes": 6000})  # of 8,208 that the whole takes
    for form, axis in ((FORMS[1], 3), (FORMS[3], 1)):
        kept(project, **form)
        found = project.results.perturbation("direct")
        assert_close(found, BY[form["reduce"]["by"]](whole.values, axis), 1e-12)
    kept(project, pairs="top-5")
    found = project.results.perturbation("direct")
    for k in range(2):
        order = longest(whole[k])
        assert (found.train.values[k] == whole.train.values[order]).all()
        assert_close(found[k], np.take_along_axis(whole[k].values, order[:, :, None], 1), 1e-12)
    assert max(sizes) <= 6000


@pytest.mark.parametrize(
    ("form", "test_row", "train_row"),
    [
        ({"reduce": {"over": "feature", "by": "l2"}}, 10, 6),  # of 30, for two λ
        ({"pairs": "top-5"}, 4, 12),  # of 12
        ({"reduce": {"over": "test", "by": "l2"}}, 10, 2),  # of 10
    ],
    ids=str,
)
def test_a_row_that_changes_computes_the_chunks_that_it_is_in(
    edited, tmp_path, form, test_row, train_row
):
    """All of them where the rows' axis is the one that is reduced, which the plan says before."""
    project = edited.copy(tmp_path)
    kept(project, **form)
    assert kept(project, **form).is_current
    for split, chunks in (("test", test_row), ("train", train_row)):
        before = [list(row) for row in project.rows[split]]
        project.edit(split, 0, width=0.25)
        assert brought_up(project, plan_only=True).blocks_computed == chunks
        if split == "test":
            project.write(split, before)
    if form.get("reduce") == {"over": "test", "by": "l2"}:
        assert brought_up(project).blocks_computed == train_row
        found = project.results.perturbation("direct").load()
        kept(project)
        whole = project.results.perturbation("direct").values
        assert_close(found, BY["l2"](whole, 1), 1e-12)


def test_another_process_computes_the_same_bits(project):
    for form in (FORMS[2], FORMS[5], FORMS[6]):
        kept(project, executor=(executor := Remembering()), **form)
        for task, arrays in executor.done:
            tasks._opened.cache_clear()  # as it is in a process that has opened nothing
            found = tasks.run(pickle.loads(pickle.dumps(task)))
            assert {name: each.tobytes() for name, each in found.items()} == {
                name: each.tobytes() for name, each in arrays.items()
            }
    tasks._opened.cache_clear()


def test_what_is_kept_has_to_fit_the_budget_and_not_what_it_is_made_from(project):
    project.write_settings(perturbation={"max_bytes": "9kB"})
    with pytest.raises(StudyError, match=r"9\.375 KiB .*keep less \(perturbation\.reduce"):
        kept(project)
    (said,) = (each for each in foresee(project.folder).warnings if "max_bytes" in each)
    assert said.startswith("direct/perturbation_influences would take 9.375 KiB, and is refused")
    kept(project, reduce={"over": "feature", "by": "l2"})
    project.write_settings(perturbation={"max_bytes": "2kB"})
    with pytest.raises(StudyError, match=r"3\.125 KiB \(10 × 10 × 3, 10 × 10\)"):
        kept(project, pairs="top-10")


def test_forms_are_other_code_to_dagster_and_whole_ones_are_as_before(project):
    versions = set()
    for form in ({}, *FORMS):
        project.write_settings(perturbation={"reduce": None, "pairs": None, **form})
        study = load_study(project.folder)
        versions |= {code_version(study, each) for each in artifacts(study) if each.name == NAME}
    assert len(versions) == 1 + len(FORMS)


def test_pictures_texts_and_the_explorer_show_what_there_is(project, whole):
    """A pair's map is computed where it is not stored; no axis is named that is not there."""
    pair = {"test": "test-03", "train": "train-17"}
    project.write_settings(store={"keep_versions": 1})  # the whole one would be read still
    for form, drawn in ((FORMS[2], False), (FORMS[5], True), (FORMS[6], True)):
        kept(project, **form)
        bench, results = project.bench(), project.results
        node = next(each for each in artifacts(bench.study) if each.name == NAME)
        shown = node.picture.drawn(bench, results.store.version(NAME), "direct")
        assert bool(shown) == drawn
        (said,) = (line for line in describe(results).splitlines() if ".perturbation(" in line)
        assert ("sel(test=" in said) == (form is not FORMS[5])
    figure = results.plot.feature_map(*pair.values())
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(sorted(widths), np.sort(whole.sel(pair)), rtol=1e-9)
    maps, view = Maps(Contents(opened := Opened(results))), opened.view(None, None, None)
    assert maps.of(view, *pair.values()) == ({}, "none")
    maps.compute(view, *pair.values())
    found, source = maps.of(view, *pair.values())
    assert source == "computed"
    np.testing.assert_allclose(found["x"], whole.sel(pair), rtol=1e-9)


@pytest.mark.parametrize("features", [1, 64, 2_000])
def test_lengths_are_those_of_float64_whatever_the_size(features):
    values = torch.randn(9, 40, features)
    sizes = (1e-44, 1e-30, 1e-19, 1e-12, 1.0, 1e12, 1e25, 1e36, 0.0)
    values *= torch.tensor(sizes).view(-1, 1, 1)
    values[4, 3, 0], values[5, 2, 0] = torch.inf, torch.nan
    expected = torch.linalg.vector_norm(values.double(), dim=2).float()
    found = over_features(values, "l2")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_no_feature_axis_is_called_as_that_of_the_longest_pairs(project):
    """Of two axes of one name xarray selects neither."""
    project.write_settings(data={"features": {"dims": ["rank"]}})
    project.write_settings(perturbation={"reduce": None, "pairs": "top-3"})
    with pytest.raises(StudyError, match="'rank' is the name of a feature axis"):
        project.refresh()
