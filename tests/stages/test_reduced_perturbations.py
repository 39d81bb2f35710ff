"""Perturbation influences of which less than all is kept: numpy's reductions of the whole."""

import numpy as np
import pytest
from tiny_answers import assert_close

from influence_dag.components.assets import code_version
from influence_dag.errors import StudyError
from influence_dag.stages import derivatives
from influence_dag.stages.graph import artifacts
from influence_dag.stages.workbench import Workbench
from influence_dag.study.loading import load_study

NAME = "direct/perturbation_influences"
BY = {
    "mean": lambda values, axis: values.mean(axis=axis),
    "absmax": lambda values, axis: np.abs(values).max(axis=axis),
    "l2": lambda values, axis: np.sqrt((values**2).sum(axis=axis)),
}


FORMS = [
    *({"reduce": {"over": over, "by": by}} for over in ("feature", "test") for by in BY),
    {"pairs": "top-5"},
]


def kept(project, plan_only=False, **form):
    """The artifact of a finished study again, with less of it kept; what the refresh did."""
    project.write_settings(perturbation={"reduce": None, "pairs": None, **form})
    bench = Workbench(load_study(project.folder), plan_only=plan_only)
    return next(each.refresh(bench) for each in artifacts(bench.study) if each.name == NAME)


def longest(whole, top=5):
    """Positions on the train axis."""
    norms = np.linalg.norm(whole.values.reshape(*whole.shape[:2], -1), axis=2)
    return np.argsort(-norms, axis=1, kind="stable")[:, :top]


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
    project.refresh()
    return project


@pytest.mark.parametrize("form", [FORMS[k] for k in (1, 3, 5, 6)], ids=str)
def test_it_is_computed_in_blocks_around_rows_that_are_gone_for_each_damping(
    edited, tmp_path, monkeypatch, form
):
    project, sizes = edited.copy(tmp_path), []
    whole = project.results.perturbation("direct").load()
    differentiated = derivatives.perturbation_influences

    def counted(*args, **options):
        found = differentiated(*args, **options)
        sizes.append(found.nbytes)
        return found

    monkeypatch.setattr(derivatives, "perturbation_influences", counted)
    project.write_settings(compute={"block_bytes": 3000})  # of 8,208 that the whole takes
    kept(project, **form)
    assert max(sizes) <= 3000
    found = project.results.perturbation("direct")
    if "pairs" in form:
        for k in range(2):
            order = longest(whole[k])
            assert (found.train.values[k] == whole.train.values[order]).all()
            assert_close(found[k], np.take_along_axis(whole[k].values, order[:, :, None], 1), 1e-12)
    else:
        axis = {"feature": 3, "test": 1}[form["reduce"]["over"]]
        assert_close(found, BY[form["reduce"]["by"]](whole.values, axis), 1e-12)


@pytest.mark.parametrize(
    ("form", "test_row", "train_row"),
    [
        ({"reduce": {"over": "feature", "by": "l2"}}, 10, 6),
        ({"reduce": {"over": "test", "by": "l2"}}, 10, 2),  # of 10
        ({"pairs": "top-5"}, 4, 12),  # of 12
    ],
    ids=str,
)
def test_a_row_that_changes_computes_the_chunks_that_it_is_in(
    edited, tmp_path, form, test_row, train_row
):
    """All of them where the rows' axis is the one that is reduced."""
    project = edited.copy(tmp_path)
    kept(project, **form)
    assert kept(project, **form).is_current
    for split, chunks in (("test", test_row), ("train", train_row)):
        project.edit(split, 0, width=0.25)
        bench = project.bench()
        for node in artifacts(bench.study):
            if node.name == NAME:
                planned = kept(project, plan_only=True, **form)
                assert planned.blocks_computed == node.refresh(bench).blocks_computed
                assert planned.blocks_computed == chunks
            elif node.name in ("dataset", "model", "direct/curvature", "direct/influence_factors"):
                node.refresh(bench)


def test_what_is_kept_has_to_fit_the_budget_and_not_what_it_is_made_from(project):
    project.write_settings(perturbation={"max_bytes": "9kB"})
    with pytest.raises(StudyError, match=r"9\.375 KiB .*keep less \(perturbation\.reduce"):
        kept(project)
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
