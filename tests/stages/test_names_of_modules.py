"""A module may be called `_fc`, as private ones are, and parameters may be the network's own."""

import numpy as np
from tiny_project import Project

from influence_dag.stages.graph import artifacts

NETWORK = """\
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.{hidden} = nn.Linear(3, 2)
        self.{scale} = nn.Parameter(torch.rand(2))
        self.last = nn.ModuleDict({{"{last}": nn.Linear(2, 3)}})

    def forward(self, x):
        return self.last["{last}"](self.{scale} * torch.tanh(self.{hidden}(x)))


def build():
    return Network()
"""
SETTINGS = {
    "methods": {"direct": {"blocks": "layer", "block_damping": {"": 0.5}}, "ekfac": {}, "cg": None},
    "perturbation": None,
    "damping": 2.0,
}


def test_every_name_of_a_module_can_be_stored(tmp_path):
    names = {"hidden": "_fc", "scale": "_scale", "last": "a/b 50%20"}
    project = Project(tmp_path, model=NETWORK.format(**names), **SETTINGS)
    project.refresh()
    shares, whole = project.results.block_influences("direct"), project.results["direct"].influences
    assert shares.block.values.tolist() == ["", "_fc", "last.a/b 50%20"]
    np.testing.assert_allclose(shares.sum("block"), whole, rtol=1e-9, atol=1e-12)
    # A sum by difference begins from what is stored under these names.
    project.edit("train", 3, width=0.25)
    project.write_settings(model={"refit": "pinned"})
    bench = project.bench()
    wanted = ("dataset", "model", "ekfac/curvature")
    nodes = [node for node in artifacts(bench.study) if node.name in wanted]
    assert [node.refresh(bench) for node in nodes][-1].info["rows_summed"] == 2
