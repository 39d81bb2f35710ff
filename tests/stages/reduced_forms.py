"""Perturbation influences of which less than all is kept, and numpy's answers."""

import numpy as np

from influence_dag.stages.graph import artifacts, reads_of
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


def kept(project, plan_only=False, executor=None, **form):
    """The artifact of a finished study again, with less of it kept; what the refresh did."""
    project.write_settings(perturbation={"reduce": None, "pairs": None, **form})
    study = load_study(project.folder)
    bench = Workbench(study, plan_only=plan_only, executor=executor)
    return next(each.refresh(bench) for each in artifacts(bench.study) if each.name == NAME)


def brought_up(project, plan_only=False):
    """What the artifact is made from and the artifact, after an edit; nothing else."""
    bench = Workbench(load_study(project.folder), plan_only=plan_only)
    wanted = {*reads_of(bench.study, NAME), "hessian", NAME}
    nodes = [node for node in artifacts(bench.study) if node.name in wanted]
    return {node.name: node.refresh(bench) for node in nodes}[NAME]


def longest(whole, top=5):
    """Positions on the train axis."""
    norms = np.linalg.norm(np.asarray(whole).reshape(*whole.shape[:2], -1), axis=2)
    return np.argsort(-norms, axis=1, kind="stable")[:, :top]
