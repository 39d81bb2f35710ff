"""What a materialisation says of itself: what it was made from, what it changed, its pictures."""

import numpy as np
import pytest
from tiny_project import MODEL, Project

from influence_dag.components.changes import changes, made_from
from influence_dag.components.metadata import _charted
from influence_dag.stages.graph import artifacts

PINNED = {"model": {"refit": "pinned"}, "curvature": {"refresh": "pinned"}}


def test_a_first_version_and_one_that_is_current_changed_nothing(project):
    assert changes(project.bench(), project.refresh()["direct/influences"]) == {}


def test_rows_by_id_and_the_pairs_that_moved_most(project):
    before = project.results["direct"].influences.load()
    project.write_settings(**PINNED)
    project.edit("train", 11, height=3.0)
    project.write("train", [row for row in project.rows["train"] if row[0] != "train-30"])
    project.write("test", [*project.rows["test"], ["test-new", 0.1, 0.2, 0.3, 1]])
    updates, bench = project.refresh(), project.bench()
    told = changes(bench, updates["direct/influences"])
    table = told.pop("moved_most")
    assert told == {
        "compared_with_version": 1,
        "train_rows_removed": "1: train-30",
        "train_rows_changed": "1: train-11",
        "test_rows_added": "1: test-new",
    }
    after = project.results["direct"].influences
    moved = abs(after.sel(train="train-11") - before.sel(train="train-11")).to_series()
    assert [row.data["train"] for row in table.records] == ["train-11"] * 10
    assert [row.data["test"] for row in table.records] == moved.nlargest(10).index.tolist()
    first = table.records[0].data
    wanted = [array.sel(test=first["test"], train="train-11") for array in (before, after)]
    assert [first["before"], first["after"]] == [f"{float(value):+.4g}" for value in wanted]
    about = made_from(bench, updates["direct/influences"], "direct")
    assert about == {
        "model": "version 1, from 40 rows, other than the current ones (pinned)",
        "curvature": "version 1, from 40 rows, other than the current ones (pinned)",
    }
    dataset = changes(bench, updates["dataset"])
    assert dataset["train_rows_changed"] == "1: train-11"


def test_what_may_be_trusted_is_shown_anew_when_refits_say_more(project):
    """A picture is drawn once a version: that of the report shows what validations found."""

    def shown():
        bench, report = project.bench(), [*artifacts(project.bench().study)][-1]
        assert report.picture
        return str(report.picture.drawn(bench, bench.require("report"), None)["measured"])

    assert "refitted" not in shown()
    versions = [project.refresh()["report"].data_version]
    for rows in (2, 3):
        project.write_settings(validation={"leave_one_out": {"rows": rows}})
        versions.append(project.refresh()["report"].data_version)
        assert f"over {rows} rows left out and" in shown()
    assert len({*versions}) == 3
    project.settings["methods"].pop("direct")
    project.write_settings(perturbation={"methods": ["cg"]})
    project.edit("train", 3, height=2.5)
    project.refresh()
    assert "**up to date**: 0 things have changed" in shown().replace("  \n  ", " ")


METHODS = {
    "direct": {},
    "cg": {"rank": 8},
    "lissa": {"maxiter": 5000},
    "arnoldi": {"rank": 10},
    "nystroem": {"rank": 10},
    "ekfac": {},
    "kfac": {"blocks": "layer"},
    "identity": {},
}
WITH_SPECTRUM = {"cg", "arnoldi", "nystroem", "ekfac", "kfac"}


@pytest.fixture(scope="module")
def every_method(tmp_path_factory) -> Project:
    project = Project(
        tmp_path_factory.mktemp("methods"), methods=METHODS, perturbation=None, damping=0.5
    )
    project.refresh()
    return project


def test_factorisations_and_solves_of_every_method_have_pictures(every_method):
    bench = every_method.bench()
    drawn = {
        node.name: set(node.picture.drawn(bench, bench.require(node.name), node.method))
        for node in artifacts(bench.study)
        if node.picture and node.stage in ("matrices", "curvature", "factors")
    }
    assert drawn.pop("hessian") == {"spectrum"}
    for method in METHODS:
        spectrum = {"spectrum"} if method in WITH_SPECTRUM else set()
        assert drawn[f"{method}/curvature"] == spectrum, method
        solves = "convergence" if method in ("cg", "lissa") else "residuals"
        assert drawn[f"{method}/influence_factors"] == {solves}, method


def test_conjugate_gradients_keep_how_they_converged(every_method):
    stored = every_method.results.open("cg/influence_factors").load()
    history = stored.residual_history
    ended = history.where(history.iteration >= stored.niter)
    np.testing.assert_allclose(ended.min("iteration"), stored.residual, rtol=1e-4)
    np.testing.assert_allclose(ended.max("iteration"), stored.residual, rtol=1e-4)


def test_the_mean_loss_is_by_the_weights_of_rows(tmp_path):
    """The chart had another loss than the fit had minimised."""
    project = Project(tmp_path, model=MODEL.replace("3, 4", "2, 4"), data={"weight": "depth"})
    project.write(
        "train", [[*row[:3], k % 4, row[4]] for k, row in enumerate(project.rows["train"])]
    )
    project.refresh()
    bench = project.bench()
    charted = _charted(bench, bench.require("direct/summary"), {})
    fitted = bench.require("model").attrs["info"]["mean_loss"]
    assert charted["mean_train_loss"] == pytest.approx(fitted, rel=1e-9)
    unweighted = bench.require("direct/summary").array("train_loss")[...].mean()
    assert unweighted != pytest.approx(fitted, rel=1e-3)
