"""Artifacts that are made some at a time: nothing is made of what is of two θ, or of other rows."""

import pytest

from influence_dag.errors import StudyError
from influence_dag.stages.graph import artifacts

FITTED = ("dataset", "model")
SOLVED = (*FITTED, "hessian", "direct/curvature", "direct/influence_factors")


def make(project, *names):
    bench = project.bench()
    return [node.refresh(bench) for node in artifacts(bench.study) if node.name in names]


@pytest.mark.parametrize(
    ("made", "wanted", "behind"),
    [
        (FITTED, "direct/curvature", "hessian"),
        (FITTED, "direct/influence_factors", "direct/curvature"),
        ((*FITTED, "gradients"), "direct/influences", "direct/influence_factors"),
        (SOLVED, "direct/influences", "gradients"),
        (FITTED, "direct/perturbation_influences", "direct/influence_factors"),
        (SOLVED, "direct/summary", "gradients"),
        ((*FITTED, "gradients"), "direct/summary", "direct/curvature"),
    ],
)
def test_nothing_is_made_of_two_thetas(project, made, wanted, behind):
    """The product of factors at one and gradients at another is the influence of neither."""
    project.edit("train", 3, height=2.5)
    make(project, *made)
    with pytest.raises(StudyError, match=f"tiny/{behind} is of another θ.*materialise it first"):
        make(project, wanted)
    project.refresh()
    assert all(update.is_current for update in project.refresh().values())


def test_methods_of_two_thetas_are_not_compared(project):
    """What differs is then what was left behind, and not the methods."""
    project.edit("train", 3, height=2.5)
    made = [f"direct/{each}" for each in ("influence_factors", "influences", "summary")]
    make(project, *SOLVED, "gradients", *made)
    with pytest.raises(StudyError, match=r"of different θ .*materialise all methods first"):
        make(project, "report")
    project.refresh()


def test_factors_of_other_settings_are_not_taken_for_those_that_are_asked_for(project):
    project.write_settings(methods={"cg": {"rtol": 1e-3}})
    with pytest.raises(StudyError, match="tiny/cg/influence_factors is of another θ, or of other"):
        make(project, "cg/influences")


@pytest.mark.parametrize("split", ["train", "test"])
def test_refits_are_compared_with_influences_of_the_same_rows(project, split):
    project.write_settings(validation={"leave_one_out": {"rows": 2}}, model={"refit": "pinned"})
    project.edit(split, 3, height=2.5)
    make(project, "dataset")
    with pytest.raises(StudyError, match=f"tiny/direct/influences has other {split} rows than"):
        make(project, "validation/leave_one_out")
