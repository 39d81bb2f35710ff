"""Weights of training rows: 2 counts as the row twice, everywhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_project import Project
from torch.nn import functional as F
from weighted import WEIGHTS, Weighted

from influence_dag.curvature.batched import BatchedCurvature
from influence_dag.query.results import StudyResults
from influence_dag.stages import methods
from influence_dag.stages.graph import artifacts

DAMPING = 0.05


MODEL = "from torch import nn\n\n\ndef build():\n    return nn.Linear(3, 3)\n"


def project(folder, **changes) -> Weighted:
    settings = {"data": {"weight": "importance"}, "perturbation": None, **changes}
    return Weighted(folder, model=MODEL, **settings)


def wanted(made: Project, weights, *, damping=DAMPING) -> tuple[np.ndarray, np.ndarray]:
    """Autograd's influences at the stored θ, and the gradient of what the fit minimised."""
    theta = torch.from_numpy(made.results.open("model").parameters.values)
    w = torch.tensor(weights, dtype=torch.float64)
    (x, y), (x_test, y_test) = made.tensors("train"), made.tensors("test")

    def losses(t, inputs, targets):
        logits = inputs @ t[:9].reshape(3, 3).T + t[9:]
        return F.cross_entropy(logits, targets, reduction="none")

    def mean(t):
        return (w * losses(t, x, y)).sum() / w.sum()

    hessian = torch.autograd.functional.hessian(mean, theta)
    train = w[:, None] * torch.autograd.functional.jacobian(lambda t: losses(t, x, y), theta)
    test = torch.autograd.functional.jacobian(lambda t: losses(t, x_test, y_test), theta)
    gradient = torch.autograd.functional.jacobian(mean, theta) + DAMPING * theta
    solved = torch.linalg.solve(hessian + damping * torch.eye(12, dtype=torch.float64), test.T)
    return (solved.T @ train.T).numpy(), gradient.numpy()


def own_influences(made: Project) -> np.ndarray:
    """`w gᵀ (H + λI)⁻¹ g` of each training row: what it does to its own loss."""
    same = made.rows["test"]
    made.rows["test"] = made.rows["train"]
    pairs, _ = wanted(made, WEIGHTS)
    made.rows["test"] = same
    return pairs.diagonal()


def served(results: StudyResults, made: Project, method: str = "direct") -> np.ndarray:
    ids = {split: [row[0] for row in made.rows[split]] for split in ("test", "train")}
    return results[method].influences.sel(**ids).values


def test_a_weighted_study_is_autograds_answer(tmp_path):
    made = project(tmp_path)
    results = made.materialize()
    influences, gradient = wanted(made, WEIGHTS)
    assert np.linalg.norm(gradient) < 1e-6
    for method in ("direct", "cg"):
        np.testing.assert_allclose(served(results, made, method), influences, rtol=1e-7, atol=1e-9)
    ids = [row[0] for row in made.rows["train"]]
    own = results.open("direct/summary").self_influence.sel(train=ids).values
    np.testing.assert_allclose(own, own_influences(made), rtol=1e-7, atol=1e-12)
    attrs = results["direct"].attrs
    assert (attrs["weights"], attrs["n_train"], attrs["weight_sum"]) == ("importance", 40, 30.0)


def test_a_weight_of_two_is_the_row_twice(tmp_path):
    whole = [float(1 + k % 2) for k in range(40)]
    made = project(tmp_path / "a")
    made.write("train", weights=whole)
    made.materialize()
    twice = Project(tmp_path / "b", model=MODEL, perturbation=None)
    again = [[f"{row[0]}-again", *row[1:]] for row in made.rows["train"][1::2]]
    twice.write("train", [*made.rows["train"], *again])
    twice.materialize()
    influences = twice.results["direct"].influences
    np.testing.assert_allclose(
        made.results.open("model").parameters, twice.results.open("model").parameters, atol=1e-7
    )
    one = influences.sel(train=[row[0] for row in made.rows["train"]]).values
    one[:, 1::2] *= 2
    np.testing.assert_allclose(served(made.results, made), one, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 30])
def test_an_edited_weight_recomputes_what_depends_on_it(tmp_path, rows):
    made = project(tmp_path)
    made.write_settings(model={"refit": "pinned"}, damping=0.5)
    made.refresh()
    weights = list(WEIGHTS)
    weights[9 : 9 + rows] = [3.0] * rows
    made.write("train", weights=weights)
    updates = made.refresh()
    assert updates["dataset"].info["train"] == {"added": 0, "changed": rows, "removed": 0}
    assert updates["model"].is_current
    gradients = updates["gradients"]
    assert gradients.blocks_computed * 4 == gradients.blocks_reused or rows > 1  # 1 of 5 chunks
    np.testing.assert_allclose(
        served(made.results, made), wanted(made, weights, damping=0.5)[0], rtol=1e-9, atol=1e-12
    )


def test_rows_and_weights_that_come_and_go_are_autograds_answer(tmp_path):
    made = project(tmp_path)
    made.write_settings(model={"refit": "pinned"}, damping=0.5)
    made.refresh()
    rows = [*made.rows["train"][3:], ["train-new", 0.1, -0.2, 0.3, 1]]
    weights = [*WEIGHTS[3:], 2.5]
    made.write("train", rows, weights)
    made.refresh()
    np.testing.assert_allclose(
        served(made.results, made), wanted(made, weights, damping=0.5)[0], rtol=1e-9, atol=1e-12
    )


def test_weights_of_test_rows_change_nothing(tmp_path):
    made = project(tmp_path)
    made.refresh()
    made.write("test", weights=[0.5] * 10)
    assert all(update.blocks_computed == 0 for update in made.refresh().values())
    Project.write(made, "test")  # without the column
    updates = made.refresh()
    assert all(update.blocks_computed == 0 for update in updates.values())
    assert "test_weight" not in made.results.open("dataset")


def test_an_estimate_from_batches_over_their_own_weights_is_made_anew(tmp_path, monkeypatch):
    """The scale of `lissa`, stored by a version that divided a batch by what its rows weigh."""
    lissa = {"direct": None, "cg": None, "lissa": {"batch_size": 1}}
    made = project(tmp_path, methods=lissa, damping=0.5)
    settings = methods.factorization_settings

    def estimated() -> float:
        for node in artifacts(made.bench().study):
            if node.name in ("dataset", "model", "lissa/curvature"):
                node.refresh(made.bench())
        return float(made.results.store.version("lissa/curvature").read("largest_eigenvalue")[0])

    with monkeypatch.context() as earlier:
        earlier.setattr(BatchedCurvature, "over", lambda self, rows: replace(self, rows=rows))
        earlier.setattr(
            methods,
            "factorization_settings",
            lambda *of: {k: v for k, v in settings(*of).items() if k != "batches"},
        )
        before = estimated()
    assert estimated() > 1.05 * before
