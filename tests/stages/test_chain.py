"""What the stages store against slow dense answers, and what an edit makes them compute again."""

import numpy as np
import pytest
import reference
import torch
from tiny_answers import (
    ALL,
    DAMPING,
    PINNED,
    assert_close,
    computed,
    expected,
    remove,
    stored_module,
)
from tiny_project import Project, shown
from torch.nn import functional as F


@pytest.mark.parametrize("method", ["direct", "cg"])
def test_influences_and_factors_are_those_of_autograd(finished_project, method):
    results = finished_project.results
    assert_close(results[method].influences, expected(finished_project, "influences"))
    factors = results.influence_factors(method)
    assert_close(factors, expected(finished_project, "influence_factors"))


def test_perturbation_influences_are_those_of_autograd(finished_project):
    stored = finished_project.results.perturbation("direct")
    assert stored.dims == ("test", "train", "feature")
    assert stored.feature.values.tolist() == ["height", "width", "depth"]
    assert_close(stored, expected(finished_project, "perturbation_influences"))


def test_the_model_is_at_a_minimum_of_the_penalised_loss(finished_project):
    module = stored_module(finished_project)
    x, y = finished_project.tensors("train")
    loss = F.cross_entropy(module(x), y)
    loss = loss + DAMPING / 2 * sum(p.square().sum() for p in module.parameters())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, module.parameters())])
    assert gradient.norm() <= 1e-6


def test_the_summary_says_what_the_influences_do(finished_project):
    results = finished_project.results
    influences = results["direct"].influences.values
    summary = results.open("direct/summary")
    assert_close(summary.train_sum, influences.sum(axis=0))
    assert_close(summary.train_abs_mean, np.abs(influences).mean(axis=0))
    assert_close(summary.test_sum, influences.sum(axis=1))
    assert_close(summary.top_influence, -np.sort(-influences)[:, :10])
    assert_close(summary.bottom_influence, np.sort(influences)[:, :10])
    for end in ("top", "bottom"):
        at = summary[f"{end}_train"].values
        assert_close(np.take_along_axis(influences, at, axis=1), summary[f"{end}_influence"])


def test_self_influence_is_the_quadratic_form(finished_project):
    x, y = finished_project.tensors("train")
    module = stored_module(finished_project)
    gradients = reference.per_sample_gradients(module, F.cross_entropy, x, y)
    solved = reference.damped_solve(
        reference.hessian(module, F.cross_entropy, x, y), gradients, DAMPING
    )
    stored = finished_project.results.open("direct/summary").self_influence
    assert_close(stored, (gradients * solved).sum(dim=1).numpy())
    assert "self_influence" not in finished_project.results.open("cg/summary")


def test_the_report_says_how_the_methods_agree(finished_project):
    report = finished_project.results.open("report")
    (error, pearson, spearman) = report.agreement.values[0]
    assert error < 1e-8
    assert pearson == pytest.approx(1.0)
    assert spearman == pytest.approx(1.0)
    assert list(report.pair.values) == ["direct vs cg"]


def test_attributes_say_what_the_numbers_are(finished_project):
    dataset = finished_project.results["direct"]
    about = dataset.attrs | dataset.influences.attrs
    assert about["damping"] == DAMPING
    assert about["method"] == "direct"
    assert about["n_train"] == 40
    assert about["loss"] == "cross_entropy"
    assert about["formula"] == "∇L(z_test)ᵀ (H + λI)⁻¹ ∇L(z_train)"
    assert about["sign"].startswith("positive: the training row helps")
    assert about["units"] == "loss; not divided by n_train"


# What is computed again


def test_a_second_run_computes_nothing(project):
    before = project.data_versions()
    updates = project.refresh()
    assert updates.keys() == ALL
    assert computed(updates) == set()
    assert {update.version for update in updates.values()} == {1}
    assert "current (version 1, 15 blocks kept)" in str(updates["direct/influences"])
    assert project.data_versions() == before


def only_edited(project: Project, *, kept: list[str]) -> Project:
    """The same project with everything but `kept` computed from nothing."""
    other = project.copy(project.root.with_name(f"{project.root.name}-scratch"))
    for name in set(other.results.artifacts) - set(kept):
        remove(other.store / name)
    other.refresh()
    return other


def assert_same_arrays(first: Project, second: Project) -> None:
    for name in ("gradients", "direct/influences", "direct/perturbation_influences", "cg/summary"):
        one, other = first.results.open(name).load(), second.results.open(name).load()
        for variable in one.data_vars:
            np.testing.assert_allclose(one[variable], other[variable], rtol=1e-12, atol=1e-15)
            assert list(one[variable].coords) == list(other[variable].coords)


def test_one_edited_training_row_costs_its_own_chunks(project):
    project.write_settings(**PINNED)
    assert computed(project.refresh()) == set(), "policies by themselves change no number"
    before = project.results["direct"].influences.values
    project.edit("train", 11, height=3.0, label=2)
    updates = project.refresh()
    assert computed(updates) == {
        "dataset",
        "gradients",
        *(f"{method}/{what}" for method in ("direct", "cg") for what in ("influences", "summary")),
        "direct/perturbation_influences",
        "report",
    }
    for name in ("direct/influences", "cg/influences", "direct/perturbation_influences"):
        assert (updates[name].blocks_computed, updates[name].blocks_reused) == (3, 12)
    after = project.results["direct"].influences.values
    changed = np.abs(before - after).max(axis=0) > 1e-12
    assert changed.nonzero()[0].tolist() == [11]
    assert_same_arrays(project, only_edited(project, kept=["model", "hessian", *FACTORS]))


FACTORS = [f"{m}/{what}" for m in ("direct", "cg") for what in ("curvature", "influence_factors")]


def test_an_edited_column_is_the_product_of_kept_factors_and_its_new_gradient(project):
    project.write_settings(**PINNED)
    project.edit("train", 11, height=3.0, label=2)
    project.refresh()
    results = project.results
    module, (x, y) = stored_module(project), project.tensors("train")
    gradients = reference.per_sample_gradients(module, F.cross_entropy, x, y).numpy()
    factors = results.influence_factors("direct").values
    assert_close(results["direct"].influences, factors @ gradients.T, 1e-12)
    mixed = reference.mixed_products(module, F.cross_entropy, torch.tensor(factors), x, y)
    assert_close(results.perturbation("direct"), mixed.numpy(), 1e-12)


def test_rows_come_and_go_at_the_price_of_their_chunks(project):
    project.write_settings(**PINNED)
    rows = project.rows["train"]
    new = ["train-new", 0.1, 0.2, 0.3, 1]
    project.write("train", [row for row in rows if row[0] not in ("train-03", "train-20")])
    updates = project.refresh()
    assert updates["direct/influences"].blocks_computed == 3 * 2
    assert updates["dataset"].info["train"] == {"added": 0, "changed": 0, "removed": 2}
    assert project.results["direct"].sizes == {"test": 10, "train": 38}
    project.write("train", [new, *project.rows["train"]])
    updates = project.refresh()
    assert updates["direct/influences"].blocks_computed == 3
    influences = project.results["direct"].influences
    assert influences.train.values.tolist()[3] == "train-new"
    assert influences.notnull().all()
    assert_same_arrays(
        project, only_edited(project, kept=["dataset", "model", "hessian", *FACTORS])
    )


def test_an_edited_test_row_is_solved_again_alone(project):
    before = project.results["direct"].influences.values
    project.edit("test", 5, width=-1.0)
    updates = project.refresh()
    assert computed(updates) == {
        "dataset",
        *(
            f"{method}/{what}"
            for method in ("direct", "cg")
            for what in ("influence_factors", "influences", "summary")
        ),
        "direct/perturbation_influences",
        "report",
    }
    assert updates["direct/influences"].blocks_computed == 5
    after = project.results["direct"].influences.values
    changed = np.abs(before - after).max(axis=1) > 1e-12
    assert changed.nonzero()[0].tolist() == [5]
    assert_close(after, expected(project, "influences"))


def test_a_refitted_model_changes_everything_truthfully(project):
    project.edit("train", 0, height=2.5)
    assert computed(project.refresh()) == ALL
    assert_close(project.results["direct"].influences, expected(project, "influences"))
    assert_close(
        project.results.perturbation("direct"), expected(project, "perturbation_influences")
    )


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"compute": {"block_bytes": 200, "batch_size": 7}}, set()),
        ({"methods": {"cg": {"rtol": 1e-11}}}, {"cg/influence_factors", "cg/influences"}),
        ({"methods": {"cg": {"rank": 5}}}, {f"cg/{what}" for what in ("curvature", "influences")}),
        ({"summary": {"top": 4}}, {"direct/summary", "cg/summary"}),
        ({"damping": 0.2}, {"direct/influence_factors", "cg/influences"}),
    ],
    ids=shown,
)
def test_a_setting_costs_what_depends_on_it(project, changes, again):
    project.write_settings(**changes)
    done = computed(project.refresh())
    assert again <= done
    assert not done & {"dataset", "model", "gradients", "hessian"}
    if "damping" not in changes:
        assert not any(name.startswith("direct") for name in done - {"direct/summary"})
    damping = changes.get("damping", DAMPING)
    assert_close(project.results["cg"].influences, expected(project, "influences", damping), 1e-8)


def test_blocks_smaller_than_a_row_give_the_same_numbers(finished_project, tmp_path):
    project = Project(tmp_path, compute={"block_bytes": 100, "batch_size": 3}, methods={"cg": None})
    project.refresh()
    for name in ("direct/influences", "direct/perturbation_influences"):
        one, other = project.results.open(name), finished_project.results.open(name)
        for variable in one.data_vars:
            assert_close(one[variable], other[variable].values, 1e-10)
