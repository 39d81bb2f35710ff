from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from interrupts import each_interruption
from networks import CASES, LAYERED
from torch import nn
from torch.fx._symbolic_trace import _maybe_revert_all_patches, is_fx_symbolic_tracing

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
        with _maybe_revert_all_patches():  # as torch's compiler does
            pass
        assert nn.Module.__call__ is before
        assert not is_fx_symbolic_tracing()
        steps += 1
    assert steps > 10


def test_threads_trace_and_call_their_modules_as_if_alone():
    before, deep = nn.Module.__call__, nn.Sequential(*(nn.Linear(3, 3) for _ in range(30)))
    own, x = [nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(2)], torch.ones(2, 3)

    def calls(module):
        expected = module(x)
        return all(torch.equal(module(x), expected) for _ in range(1500))

    def traces(_):
        return all(len(linear_chain(deep).linears) == 30 for _ in range(15))

    with ThreadPoolExecutor(4) as pool:
        called, traced = pool.map(calls, own), pool.map(traces, range(2))
        assert all(called)
        assert all(traced)
    assert nn.Module.__call__ is before


@pytest.mark.parametrize("column", [False, True], ids=["labels", "labels in a column"])
@pytest.mark.parametrize("weighted", [False, True])
def test_second_derivatives_of_cross_entropy_are_autograds(weighted, column, monkeypatch):
    """Written out, and through a graph; of a row without a label they are zero."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    y = torch.tensor([0, 4, -100, 2, 2, 1])
    rows = Rows(
        torch.randn(6, 3).double(),
        y[:, None] if column else y,
        torch.rand(6).double() if weighted else None,
    )
    network = LayeredNetwork.of(Objective(module, "cross_entropy"), rows)
    written = network.run(rows).output_matrix()
    assert network._softmax_product(torch.zeros(6, 5).double(), rows) is not None
    monkeypatch.setattr(LayeredNetwork, "_softmax_product", lambda *_: None)
    torch.testing.assert_close(written, network.run(rows).output_matrix())
    assert written[2].count_nonzero() == 0


@pytest.mark.parametrize("loss", ["mse", lambda f, y: torch.logsumexp(f, 1) - f[:, 0]])
def test_other_losses_go_through_a_graph(loss):
    module, rows = nn.Linear(3, 2), Rows(torch.randn(5, 3), torch.randn(5, 2))
    network = LayeredNetwork.of(Objective(module, loss), rows)
    assert network._softmax_product(torch.zeros(5, 2), rows) is None


def test_probabilities_of_classes_go_through_a_graph():
    module, rows = nn.Linear(3, 2), Rows(torch.randn(5, 3), torch.rand(5, 2))
    network = LayeredNetwork.of(Objective(module, "cross_entropy"), rows)
    assert network._softmax_product(torch.zeros(5, 2), rows) is None


def test_second_derivatives_of_rows_that_a_model_is_sure_of_have_their_digits():
    module = nn.Linear(3, 4)
    with torch.no_grad():
        module.weight.copy_(18 * torch.eye(4)[:, :3])
    rows = Rows(torch.eye(3).repeat(2, 1), torch.arange(6) % 4)
    state = LayeredNetwork.of(Objective(module, "cross_entropy"), rows).run(rows)
    double = Objective(module.double(), "cross_entropy"), rows.to(dtype=torch.float64)
    expected = LayeredNetwork.of(*double).run(double[1]).output_matrix()
    assert 0 < expected.abs().amax((1, 2)).max() <= 1e-6
    torch.testing.assert_close(state.output_matrix().double(), expected, rtol=1e-4, atol=0)
