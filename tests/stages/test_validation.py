"""Validations as artifacts of a study."""

import numpy as np
import pytest

CHOSEN = {
    "leave_one_out": {"rows": 6, "seed": 1},
    "datamodels": {"count": 8},
    "label_errors": {"share": 0.2},
}


@pytest.fixture(scope="module")
def validated(finished_project, tmp_path_factory):
    project = finished_project.copy(tmp_path_factory.mktemp("validated"))
    project.write_settings(validation=CHOSEN)
    project.updates = project.refresh()
    return project


def test_rows_left_out_are_predicted(validated):
    found = validated.results.open("validation/leave_one_out")
    assert found.sizes == {"test": 10, "left_out": 6}
    stored = validated.results["direct"].influences
    predicted = stored.sel(train=found.left_out.values).values / 40
    np.testing.assert_allclose(found.predicted, predicted, rtol=1e-12)
    assert np.corrcoef(found.predicted.values.ravel(), found.actual.values.ravel())[0, 1] > 0.97


def test_methods_are_scored_beside_exact_solves_and_baselines(validated):
    found = validated.results.open("validation/datamodels")
    candidates = found.candidate.values.tolist()
    assert {"direct", "cg", "hessian", "gradient_dot", "loss"} <= set(candidates)
    lds = dict(zip(candidates, found.lds.mean("test").values, strict=True))
    assert lds["direct"] == pytest.approx(lds["hessian"])
    assert lds["direct"] > 0.5


def test_flipped_labels_are_ranked(validated):
    found = validated.results.open("validation/label_errors")
    assert int(found.flipped.sum()) == 8
    assert found.self_influence.notnull().all()


def test_nothing_is_refitted_when_nothing_changed(validated):
    updates = validated.refresh()
    assert all(updates[f"validation/{kind}"].is_current for kind in CHOSEN)
    assert not validated.updates["validation/datamodels"].is_current
