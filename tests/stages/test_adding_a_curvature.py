"""A curvature in one file and its words: settings, graph, checks, pictures and results have it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from tiny_answers import DAMPING, assert_close, stored_module
from tiny_project import Project
from torch import Tensor, nn
from torch.nn import functional as F

from influence_dag.curvature import CURVATURES
from influence_dag.curvature.batched import BatchedCurvature
from influence_dag.curvature.layered import LayeredNetwork
from influence_dag.errors import ModelError, StudyError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.stages.graph import artifacts
from influence_dag.study.curvatures import CURVATURE_KINDS, CurvatureKind, add_curvature
from influence_dag.study.loading import load_study
from influence_dag.study.reference import reference as settings_page

NAME = "outer"
KIND = CurvatureKind(
    "E", "∇L(z_i, θ) ∇L(z_i, θ)ᵀ", "the empirical Fisher", f"{__name__}:Outer", is_semidefinite=True
)


class Outer(BatchedCurvature):
    """The mean of the outer products of gradients."""

    def check_derivatives(self, rows: Rows) -> None:
        pass  # first derivatives, which are checked where they are made

    def product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        G = self._gradients(batch)
        return lambda vectors: vectors @ G.T @ batch.weighted(G)

    plain_product = product

    def layered_sum(self, network: LayeredNetwork, rows: Rows) -> Tensor:
        G = self._gradients(rows).double()
        return G.T @ rows.weighted(G)

    def _gradients(self, rows: Rows) -> Tensor:
        return per_sample_gradients(self.objective, rows.unweighted).dense()


class WeightedTwice(Outer):
    """Gradients of rows with weights have them as a factor, which a square has twice."""

    def product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        G = per_sample_gradients(self.objective, batch).dense()
        return lambda vectors: vectors @ G.T @ G

    plain_product = product


class Unweighted(Outer):
    """What is asked of the rows alone counts them alike."""

    def product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        return super().product(batch.unweighted)

    plain_product = product


@pytest.fixture(scope="module", autouse=True)
def outer() -> Iterator[None]:
    add_curvature(NAME, KIND)
    yield
    del CURVATURE_KINDS[NAME]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    made = Project(
        tmp_path_factory.mktemp("outer"),
        methods={"direct": {"curvature": NAME}, "cg": {"curvature": NAME, "rtol": 1e-12}},
        perturbation=None,
    )
    made.refresh()
    return made


def test_a_study_computes_with_it(project):
    module = stored_module(project)
    G, tested = (
        reference.per_sample_gradients(module, F.cross_entropy, *project.tensors(split))
        for split in ("train", "test")
    )
    fisher = (G.T @ G / len(G)).numpy()
    wanted = tested.numpy() @ np.linalg.solve(fisher + DAMPING * np.eye(len(fisher)), G.numpy().T)
    results = project.results
    assert_close(project.results.open(NAME)[NAME], fisher)
    assert_close(results["direct"].influences, wanted, 1e-8)
    assert_close(results["cg"].influences, wanted, 1e-8)


@pytest.fixture
def rows() -> Rows:
    """Of which one weighs nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    return Rows(x, torch.arange(12) % 3, torch.arange(12).double() / 4)


def test_a_row_of_weight_2_is_the_row_twice(rows):
    objective = Objective(nn.Linear(3, 3).double(), "cross_entropy")
    G = per_sample_gradients(objective, rows.unweighted).dense()
    fisher = G.T @ (rows.weights[:, None] * G) / rows.weights.sum()
    for route in ("auto", "autograd"):
        torch.testing.assert_close(Outer(objective, rows, route=route).dense(), fisher)
    torch.testing.assert_close(Outer(objective, rows).apply(G), G @ fisher)


@pytest.mark.parametrize("kind", [WeightedTwice, Unweighted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("asked", ["apply", "dense", "autograd"])
def test_a_curvature_that_counts_rows_otherwise_is_refused(rows, kind, dtype, asked):
    rows, objective = rows.to(dtype=dtype), Objective(nn.Linear(3, 3).to(dtype), "cross_entropy")
    curvature = kind(objective, rows, route="autograd" if asked == "autograd" else "auto")
    with pytest.raises(ModelError, match=f"{kind.__name__} does not count rows by their weights"):
        curvature.apply(torch.ones(1, 12, dtype=dtype)) if asked == "apply" else curvature.dense()
    alike = replace(rows, weights=None)
    assert kind(objective, alike).dense().isfinite().all()


def test_weights_of_more_rows_than_float32_counts_are_looked_at():
    n = 2**24 + 4
    rows = Rows(torch.zeros(1, 3).expand(n, 3), torch.zeros(1).long().expand(n), torch.ones(n))
    Outer(Objective(nn.Linear(3, 3), "cross_entropy"), rows)._check_weights(rows)
    rows.weights[-1] = 2
    with pytest.raises(ModelError, match="does not count rows by their weights"):
        Unweighted(Objective(nn.Linear(3, 3), "cross_entropy"), rows)._check_weights(rows)


def test_what_is_stored_says_its_formula(project):
    study = project.results
    assert study.open(NAME)[NAME].attrs["formula"] == f"E = (1/n_train) Σ_i {KIND.term}"
    assert study["direct"].influences.attrs["formula"] == "∇L(z_test)ᵀ (E + λI)⁻¹ ∇L(z_train)"
    assert study.versions("cg/influences")[-1].attrs["curvature"] == NAME


def test_graph_checks_and_pictures_have_it(project):
    study = load_study(project.folder)
    node = next(node for node in artifacts(study) if node.name == NAME)
    assert node.reads == ("dataset", "model")
    assert {check.name for check in node.checks} == {"symmetric", "damped_positive_definite"}
    bench = project.bench()
    assert all(check.outcome(bench).passed for check in node.checks)
    assert node.picture is not None
    (spectrum,) = node.picture.drawn(bench, bench.require(NAME), None).values()
    assert "data:image/png;base64," in spectrum


def test_the_page_of_settings_and_the_operators_have_it():
    assert "`hessian`, `gauss_newton`, `outer`" in settings_page()
    assert CURVATURES[NAME] is Outer


def test_methods_that_solve_with_another_one_are_not_compared(project, tmp_path):
    other = project.copy(tmp_path)
    agree = ("report", "methods_agree")

    def checks() -> set[tuple[str, str]]:
        nodes = artifacts(load_study(other.folder))
        return {(node.name, check.name) for node in nodes for check in node.checks}

    assert agree in checks()
    other.write_settings(methods={"cg": {"curvature": "hessian"}})
    assert agree not in checks()


def test_a_name_that_is_taken_or_unknown_is_refused(project, tmp_path):
    with pytest.raises(ValueError, match="'outer' exists already"):
        add_curvature(NAME, KIND)
    other = project.copy(tmp_path)
    other.write_settings(methods={"cg": {"curvature": "inner"}})
    known = r"Input should be 'hessian', 'gauss_newton' or 'outer' \(got 'inner'\)"
    with pytest.raises(StudyError, match=known):
        load_study(other.folder)
