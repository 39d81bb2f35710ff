"""What an artifact is made from is what its node says: the lineage that people see is the truth."""

from collections import defaultdict

import pytest
from tiny_project import Project

import influence_dag.gradients
from influence_dag.stages import dataset, formulas, gradients, refits
from influence_dag.stages.graph import artifacts
from influence_dag.stages.workbench import Workbench

METHODS = {"direct": {}, "cg": {"rtol": 1e-8}, "ekfac": {}, "identity": {}}
STUDIES = {
    "one damping": {"damping": 0.05, "validation": {"leave_one_out": {"rows": 2}}},
    "series": {"damping": [0.1, 0.5]},
    "automatic": {"damping": "auto", "summary": {"self_influence": True}},
}


@pytest.mark.parametrize("changes", STUDIES.values(), ids=STUDIES)
def test_a_node_reads_all_that_it_declares_and_nothing_else(tmp_path, monkeypatch, changes):
    project = Project(tmp_path, methods=METHODS, **changes)
    bench = project.bench()
    read, require = defaultdict(set), Workbench.require

    def recorded(self, artifact):
        read[self._readable[0]].add(artifact)
        return require(self, artifact)

    monkeypatch.setattr(Workbench, "require", recorded)
    monkeypatch.setattr(refits, "MOST_BYTES", 0)  # as for a large model: its factor is read
    nodes = list(artifacts(bench.study))
    for node in nodes:
        node.refresh(bench)
    declared = {node.name: {*node.reads} - {"source"} for node in nodes}
    assert {name: read[name] - {name} for name in declared} == declared


def test_what_is_not_declared_is_not_read(finished_project):
    bench = finished_project.bench()
    with (
        bench.at("report", ("cg/summary",)),
        pytest.raises(LookupError, match=r"report reads model; its node says cg/summary"),
    ):
        bench.require("model")
    assert bench.require("model").number == 1  # outside a stage anything may be read


@pytest.mark.parametrize("stage", formulas.FORMULAS)
def test_another_formula_is_another_version_of_the_code(finished_project, monkeypatch, stage):
    from influence_dag.components.assets import code_version

    study = finished_project.bench().study
    before = {node.name: code_version(study, node) for node in artifacts(study)}
    monkeypatch.setitem(formulas.FORMULAS, stage, 99)
    after = {node.name: node for node in artifacts(study)}
    changed = {name for name, node in after.items() if code_version(study, node) != before[name]}
    assert changed == {name for name, node in after.items() if node.stage == stage}


def test_how_layers_are_kept_is_found_once_for_each_formula(project, monkeypatch):
    """Nothing is differentiated to see that gradients are current."""
    asked = []

    def counted(*arguments, **options):
        asked.append(arguments)
        return found(*arguments, **options)

    found = influence_dag.gradients.gradient_layout
    monkeypatch.setattr(influence_dag.gradients, "gradient_layout", counted)
    assert gradients.refresh(project.bench()).is_current
    assert asked == []
    monkeypatch.setattr(gradients, "FORMULA", 99)
    assert gradients.refresh(project.bench()).blocks_reused == 0
    assert len(asked) == 1


def test_rows_that_an_earlier_version_has_read_are_read_anew(project, monkeypatch):
    """What is refused since, or summed otherwise, was stored; nothing else is computed."""
    with monkeypatch.context() as earlier:
        earlier.setattr(dataset, "FORMULA", 3)
        dataset.refresh(project.bench())
    assert dataset.refresh(project.bench()).blocks_reused == 0
    later = (node.refresh(project.bench()) for node in artifacts(project.bench().study))
    assert all(update.is_current for update in later)
