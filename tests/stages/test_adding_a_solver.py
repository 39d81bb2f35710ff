"""A solver in one file and its settings: the graph, checks, settings' page and results have it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from pydantic import Field
from tiny_answers import DAMPING, assert_close, expected
from tiny_project import Project
from torch import Tensor

from influence_dag.curvature import Curvature
from influence_dag.solvers import METHODS, Solution
from influence_dag.solvers.base import register, residuals
from influence_dag.stages.graph import artifacts
from influence_dag.study import methods as study_methods
from influence_dag.study.loading import load_study
from influence_dag.study.methods import MethodSettings, MethodsSettings, add_method
from influence_dag.study.reference import reference


class OutrightSettings(MethodSettings):
    """The inverse itself, then steps that refine the answer."""

    is_exact: ClassVar[bool] = True
    refinements: int = Field(default=1, ge=0, description="steps of refinement")


@dataclass(frozen=True, kw_only=True)
class Outright:
    refinements: int = OutrightSettings().refinements

    def factorize(self, curvature: Curvature) -> "Inverted":
        return Inverted(curvature.dense(), curvature, self.refinements)

    def restore(self, tensors: Mapping[str, Tensor], curvature: Curvature | None) -> "Inverted":
        assert curvature is not None
        return Inverted(tensors["matrix"], curvature, self.refinements)


@dataclass(frozen=True, eq=False)
class Inverted:
    matrix: Tensor
    curvature: Curvature
    refinements: int

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def solve(self, rhs: Tensor, *, damping: float, x0: Tensor | None = None) -> Solution:
        damped = self.matrix + damping * torch.eye(len(self.matrix)).to(self.matrix)
        inverse = torch.linalg.inv(damped)
        x = rhs @ inverse
        for _ in range(self.refinements):
            x = x + (rhs - x @ damped) @ inverse
        return Solution(x, {"residual": residuals(self.curvature, x, rhs, damping=damping)})


@pytest.fixture
def outright() -> Iterator[str]:
    add_method("outright", OutrightSettings)
    register("outright")(Outright)
    yield "outright"
    del METHODS["outright"], MethodsSettings.model_fields["outright"]
    study_methods.rebuilt()


def test_a_solver_joins_a_study(outright, tmp_path):
    project = Project(
        tmp_path, methods={"cg": None, outright: {"refinements": 2}}, perturbation=None
    )
    project.refresh()
    results = project.results
    assert_close(results[outright].influences, expected(project, "influences"), 1e-8)
    assert_close(results[outright].influences, results["direct"].influences, 1e-8)
    stored = project.results.versions(f"{outright}/influences")[-1].attrs
    assert stored["method_settings"]["refinements"] == 2
    assert stored["damping"] == DAMPING
    assert "outright" in results.methods


def test_its_nodes_and_checks_are_those_of_any_exact_method(outright, tmp_path):
    project = Project(tmp_path, methods={"cg": None, outright: {}}, perturbation=None)
    study = load_study(project.folder)
    mine = {one.name for one in artifacts(study) if one.method == outright}
    kinds = ("curvature", "influence_factors", "influences", "summary")
    assert mine == {f"{outright}/{kind}" for kind in kinds}
    checks = {(one.name, each.name) for one in artifacts(study) for each in one.checks}
    assert (f"{outright}/influence_factors", "residual_below_tolerance") in checks
    assert (f"{outright}/curvature", "damping_near_spectrum") in checks
    assert ("report", "methods_agree") in checks


def test_the_page_of_settings_has_it(outright):
    page = reference()
    assert "outright" in page
    assert "steps of refinement" in page


def test_a_name_that_is_taken_is_refused(outright):
    with pytest.raises(ValueError, match="'outright' exists already"):
        add_method("outright", OutrightSettings)


def test_without_it_the_name_is_unknown(tmp_path):
    project = Project(tmp_path, methods={"outright": {}})
    with pytest.raises(Exception, match="outright: unknown name"):
        load_study(project.folder)
