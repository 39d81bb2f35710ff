"""The tiny study's artifacts as they are stored, and slow dense answers to what they hold."""

import numpy as np
import reference
from safetensors.torch import load_file
from tiny_project import Project
from torch import nn
from torch.nn import functional as F

DAMPING = 0.05
PINNED = {"model": {"refit": "pinned"}, "curvature": {"refresh": "pinned"}}
ALL = {
    "dataset",
    "model",
    "gradients",
    "hessian",
    "direct/curvature",
    "direct/influence_factors",
    "direct/influences",
    "direct/perturbation_influences",
    "direct/summary",
    "cg/curvature",
    "cg/influence_factors",
    "cg/influences",
    "cg/summary",
    "report",
}


def stored_module(project: Project) -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    module.load_state_dict(load_file(project.store / "model/current/model.safetensors"))
    return module


def expected(project: Project, what: str, damping: float = DAMPING) -> np.ndarray:
    train, test = project.tensors("train"), project.tensors("test")
    module = stored_module(project)
    return getattr(reference, what)(module, F.cross_entropy, train, test, damping).numpy()


def in_file_order(project: Project, method: str = "direct") -> np.ndarray:
    rows = {split: [row[0] for row in project.rows[split]] for split in ("test", "train")}
    return project.results[method].influences.sel(rows).values


def assert_close(seen, wanted, tolerance: float = 1e-9) -> None:
    error = np.linalg.norm(np.asarray(seen) - wanted) / np.linalg.norm(wanted)
    assert error <= tolerance, f"relative error {error:.1e}"


def computed(updates) -> set[str]:
    return {name for name, update in updates.items() if not update.is_current}


def remove(folder) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
