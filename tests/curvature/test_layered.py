import pytest
import torch
from interrupts import each_interruption
from networks import CASES, LAYERED
from torch import nn

from influence_dag.curvature.layered import LayeredNetwork
from influence_dag.curvature.tracing import linear_chain
from influence_dag.objective.objective import Objective, Rows


def network_of(module, x, y):
    return LayeredNetwork.of(Objective(module, "cross_entropy"), Rows(x, y))


@pytest.mark.parametrize("name", CASES)
def test_chains_of_linear_and_elementwise_layers_are_found_and_nothing_else(name):
    assert (network_of(*CASES[name].make()) is not None) == (name in LAYERED)


@pytest.mark.parametrize("name", LAYERED)
def test_a_pass_has_autograds_gradients_of_the_preactivations(name):
    module, x, y = CASES[name].make()
    objective, rows = Objective(module, "cross_entropy"), Rows(x, y)
    network = LayeredNetwork.of(objective, rows)
    state = network.run(rows)
    theta = objective.params.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective.losses(theta, rows).sum(), theta)
    for layer, a, g in zip(network.layers, state.inputs, state.gradients, strict=True):
        if layer.weight_place is not None:
            torch.testing.assert_close((g.T @ a).flatten(), gradient[layer.weight_place])
        if layer.bias_place is not None:
            torch.testing.assert_close(g.sum(0), gradient[layer.bias_place])


class Doubled(nn.Linear):
    """Looks like a Linear layer and is not one."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_linear():
    module = nn.Sequential(Doubled(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    _, x, y = CASES["mlp"].make()
    assert network_of(module, x, y) is None


def test_a_hook_that_changes_an_output_is_noticed():
    module, x, y = CASES["mlp"].make()
    module[0].register_forward_hook(lambda layer, inputs, output: 2 * output)
    assert network_of(module, x, y) is None


def test_a_learned_activation_is_not_layered():
    module = nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3)).double()
    _, x, y = CASES["mlp"].make()
    assert network_of(module, x, y) is None
    module[1].weight.requires_grad_(False)
    assert network_of(module, x, y) is not None


def test_wherever_ctrl_c_meets_a_trace_modules_are_called_as_before():
    net, before = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), nn.Module.__call__

    def watched(code):
        ends = code.co_name in ("revert", "revert_all_patches", "__exit__", "_new_patcher")
        return ends and code.co_filename.endswith("_symbolic_trace.py")

    steps = 0
    for _ in each_interruption(lambda: linear_chain(net), watched):
        assert nn.Module.__call__ is before
        steps += 1
    assert steps > 10
