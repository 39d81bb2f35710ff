"""Influences against captum's naive ones; skipped where it is not installed (extra `oracles`).

Captum sums over rows where we take means: its Hessian is n of ours, so `hessian_reg` is nλ and its
scores are 1/n of ours. Its sign is ours: positive helps.
"""

import pytest
import torch
from networks import CASES
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import influence_dag as idag

captum_influence = pytest.importorskip("captum.influence", exc_type=ImportError)

# Above minus the smallest eigenvalue: captum drops pairs that are not positive.
DAMPINGS = {"linear": 0.01, "mlp": 1.0, "images": 0.9, "norms": 5.0}


def _load(module, path):
    module.load_state_dict(torch.load(path))
    return 1.0


@pytest.mark.parametrize(("name", "damping"), DAMPINGS.items())
def test_scores_are_those_of_captum_with_all_eigenpairs(name, damping, tmp_path):
    from captum.influence._core.influence_function import NaiveInfluenceFunction

    module, x, y = CASES[name].make()
    train, test = (x[:6], y[:6]), (x[6:], y[6:])
    torch.save(module.state_dict(), tmp_path / "module.pt")
    theirs = NaiveInfluenceFunction(
        module,
        DataLoader(TensorDataset(*train), batch_size=4),
        str(tmp_path / "module.pt"),
        _load,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=None,
        projection_dim=sum(p.numel() for p in module.parameters()),
        hessian_reg=len(y[:6]) * damping,
        hessian_inverse_tol=1e-9,
    )
    wrapped = idag.TorchTwiceDifferentiable(module, "cross_entropy")
    ours = idag.compute_influences(wrapped, [train], [test], hessian_regularization=damping)
    torch.testing.assert_close(theirs.influence(test) * len(y[:6]), ours)
