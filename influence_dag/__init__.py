"""Influence functions of PyTorch models as a persisted, labelled, incremental asset graph."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# In the order of the stages. Resolved when first used, so that reading stored results does not
# import torch.
_PUBLIC = {
    "Rows": "rows",
    "Objective": "objective",
    "per_sample_gradients": "gradients",
    "Hessian": "curvature",
    "GaussNewton": "curvature",
    "Direct": "solvers",
    "ConjugateGradient": "solvers",
    "LiSSA": "solvers",
    "Arnoldi": "solvers",
    "Nystroem": "solvers",
    "EKFAC": "solvers",
    "KFAC": "solvers",
    "Identity": "solvers",
    "Blockwise": "solvers",
    "influences": "influence",
    "perturbation_influences": "influence",
    "TorchTwiceDifferentiable": "functional",
    "InverseHvpResult": "functional",
    "compute_influences": "functional",
    "compute_influence_factors": "functional",
    "solve_hvp": "functional",
    "study_assets": "components",
    "study_definitions": "components",
    "StudyResource": "components",
    "StudyIOManager": "components",
    "materialize": "running",
    "status": "study_status",
    "open_study": "query",
    "StudyResults": "query",
    "suspects": "suspect_rows",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"influence_dag.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'influence_dag' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
