"""Models of several kinds from data to stored influences, against plain float64 autograd."""

import numpy as np
import pytest
import reference
import torch
from networks import CASES, Shifted, Tokens
from reduced_forms import kept, longest
from safetensors.torch import save_file
from tiny_answers import assert_close
from tiny_project import Project
from torch.nn import functional as F

from influence_dag.errors import ModelError

DAMPING = 0.02
SOURCE = """\
import networks
import torch

NAME = {name!r}


class Data(torch.utils.data.Dataset):
    def __init__(self, first, last):
        module, x, y = networks.CASES[NAME].make()
        self.x, self.y = x[first:last], y[first:last]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


def train():
    return Data(0, 6)


def test():
    return Data(6, 9)


def build():
    return networks.CASES[NAME].make()[0]
"""


def project_of(name, root, **perturbation):
    """A study of a ready-made model on its rows."""
    module, x, y = CASES[name].make()
    project = Project(
        root,
        model=SOURCE.format(name=name),
        data={"train": "tiny_model:train", "test": "tiny_model:test", "id": None, "target": None},
        methods={"cg": None, "direct": {"on_indefinite": "lu"}},
        damping=DAMPING,
    )
    save_file(module.state_dict(), root / "model.safetensors")
    project.write_settings(
        model={"fit": None, "checkpoint": "model.safetensors"},
        perturbation={"methods": ["direct"], **perturbation},
    )
    return project, module, (x[:6], y[:6]), (x[6:], y[6:])


@pytest.mark.parametrize(
    "name",
    [
        "pooled images",
        "lstm",
        *(
            pytest.param(name, marks=pytest.mark.campaign)
            for name in ("pooled signal", "transformer")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_study_of_a_model_that_is_no_mlp(name, tmp_path):
    project, module, *rows = project_of(name, tmp_path)
    project.refresh()
    wanted = reference.influences(module, F.cross_entropy, *rows, DAMPING)
    assert_close(project.results["direct"].influences, wanted.numpy(), 1e-6)
    wanted = reference.perturbation_influences(module, F.cross_entropy, *rows, DAMPING)
    assert_close(project.results.perturbation("direct"), wanted.numpy(), 1e-6)


def test_a_study_in_the_output_of_an_embedding(tmp_path):
    project, module, (x, y), test = project_of("tokens", tmp_path, wrt="embed")
    project.refresh()
    stored = project.results.perturbation("direct")
    assert stored.dims == ("test", "train", "embed_0", "embed_1")
    assert stored.attrs["units"].startswith("loss per unit of the output of module 'embed'")
    factors = reference.influence_factors(module, F.cross_entropy, (x, y), test, DAMPING)
    moved = x, torch.zeros(len(x), 4, 4).double()
    assert isinstance(module, Tokens)
    wanted = reference.mixed_products(Shifted(module), F.cross_entropy, factors, moved, y, of=1)
    assert_close(stored, wanted.numpy(), 1e-8)
    lazy = project.results.lazy_perturbation("direct")
    np.testing.assert_allclose(lazy, stored, rtol=1e-12)
    assert all(update.is_current for update in project.refresh().values())
    kept(project, reduce={"over": "feature", "by": "l2"})
    norms = np.sqrt((wanted.numpy() ** 2).sum((2, 3)))
    assert_close(project.results.perturbation("direct"), norms, 1e-8)
    kept(project, pairs="top-2")
    found, order = project.results.perturbation("direct"), longest(wanted.numpy(), 2)
    assert_close(found, np.take_along_axis(wanted.numpy(), order[:, :, None, None], 1), 1e-8)


def test_a_study_of_tokens_says_how_to_ask_for_their_embedding(tmp_path):
    project, *_ = project_of("tokens", tmp_path)
    with pytest.raises(ModelError, match=r"torch\.int64 have no derivative.*wrt='embed'"):
        project.refresh()
    project.write_settings(perturbation={"wrt": "embedding"})
    with pytest.raises(ModelError, match="no module 'embedding'; it has 'embed', 'outer'"):
        project.refresh()
