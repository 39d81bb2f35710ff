"""Perturbation influences are slopes of what the model does with its inputs, or refused."""

import pytest
import torch
from torch import nn

from influence_dag import Objective, Rows, perturbation_influences
from influence_dag.errors import ModelError
from influence_dag.influence import differences

ROWS, FEATURES = 12, 4
SEED = torch.Generator().manual_seed(0)
NUMBERS = torch.randn(ROWS, FEATURES, generator=SEED)
PIXELS = (2 * torch.rand(ROWS, FEATURES, generator=SEED) - 0.5).clamp(0, 1)  # many at the ends
CATEGORIES = torch.randint(0, 4, (ROWS, FEATURES), generator=SEED).float()


class Network(nn.Module):
    """A linear layer behind a function of the inputs."""

    def __init__(self, function):
        super().__init__()
        self.function, self.body, self.head = function, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.function(self, x))


def frozen_body(network, x):
    with torch.no_grad():
        return network.body(x).tanh()


def centred_by_a_constant(network, x):
    return x - x.mean(1, keepdim=True).detach()


def rounded_straight_through(network, x):
    return x + (x.round() - x).detach()


def through_numpy(network, x):
    return torch.from_numpy(x.detach().numpy()).tanh()


def asked(function, x, dtype=torch.float64, **of):
    torch.manual_seed(0)
    objective = Objective(Network(function).to(dtype), "cross_entropy")
    factors = torch.randn(3, objective.size, dtype=dtype)
    rows = Rows(x.to(dtype), torch.arange(ROWS) % 3)
    return objective, factors, rows, perturbation_influences(objective, factors, rows, **of)


@pytest.mark.parametrize(
    ("x", "dtype"),
    [(NUMBERS, torch.float32), (PIXELS, torch.float64)],
    ids=["numbers in float32", "pixels"],
)
@pytest.mark.parametrize(
    "function", [frozen_body, centred_by_a_constant, rounded_straight_through, through_numpy]
)
def test_inputs_that_autograd_does_not_see_are_refused(function, x, dtype):
    with pytest.raises(ModelError, match=r"derivatives in the inputs .*torch\.no_grad"):
        asked(function, x, dtype)


def test_a_model_that_takes_no_other_inputs_is_not_moved():
    def as_they_came(network, x):
        if not torch.isin(x.detach(), PIXELS.to(x)).all():
            raise ValueError("no such pixel")
        return x.tanh()

    assert asked(as_they_came, PIXELS)[-1].any()


def test_a_fault_of_the_check_does_not_turn_it_off(monkeypatch):
    monkeypatch.setattr(differences._Along, "of_each_input", lambda along: [None])
    with pytest.raises(AttributeError, match="verdicts"):
        asked(lambda network, x: x.tanh(), NUMBERS)


class Beside(nn.Module):
    """A second input that autograd does not see, and that counts for little."""

    def __init__(self, share):
        super().__init__()
        self.body, self.head, self.share = nn.Linear(4, 4), nn.Linear(4, 3), share

    def forward(self, x, z):
        with torch.no_grad():
            aside = self.share * z.tanh()
        return self.head(self.body(x).tanh() + aside)


@pytest.mark.parametrize("share", [1.0, 1e-5])
def test_each_of_several_inputs_is_looked_at(share):
    torch.manual_seed(0)
    objective = Objective(Beside(share).double(), "cross_entropy")
    factors = torch.randn(3, objective.size, dtype=torch.float64)
    rows = Rows((NUMBERS.double(), NUMBERS.flip(0).double()), torch.arange(ROWS) % 3)
    with pytest.raises(ModelError, match=r"derivatives in the inputs .*torch\.no_grad"):
        perturbation_influences(objective, factors, rows)


def test_a_feature_is_looked_at_in_units_of_its_own_size():
    """In those of the others it would be moved to where the model does not answer any more."""

    def small_one_aside(network, x):
        return torch.cat([(1e6 * x[:, :1].detach()).tanh(), x[:, 1:]], dim=1)

    x = NUMBERS * torch.tensor([1e-6, 1.0, 1.0, 1.0])
    with pytest.raises(ModelError, match=r"derivatives in the inputs .*torch\.no_grad"):
        asked(small_one_aside, x)


def test_a_modules_output_that_autograd_does_not_see_is_refused():
    def detached(network, x):
        return network.body(x).detach().tanh()

    with pytest.raises(ModelError, match="in the output of module 'body'"):
        asked(detached, NUMBERS, wrt="body")


@pytest.mark.parametrize("x", [PIXELS, CATEGORIES], ids=["pixels", "codes"])
@pytest.mark.parametrize(
    "function",
    [
        lambda network, x: x.clamp(0, 1),
        lambda network, x: x.abs(),
        lambda network, x: network.body(x).relu(),
        lambda network, x: (2 * x).round() / 2,
        lambda network, x: x * x.amax(1, keepdim=True),
        lambda network, x: nn.functional.one_hot(x[:, 0].abs().clamp(max=3).long(), 4).to(x) + x,
    ],
    ids=["clamped", "absolute", "relu", "rounded", "largest", "categories"],
)
def test_kinks_and_jumps_are_no_fault(function, x):
    objective, factors, rows, _ = asked(function, x)
    away = Rows(rows.x + 1e-3 * torch.rand(rows.x.shape, generator=SEED), rows.y)
    found = perturbation_influences(objective, factors, away)
    v = torch.randn(FEATURES, generator=SEED, dtype=torch.float64)
    ends = [inner_products(objective, factors, away, step * v) for step in (1e-6, -1e-6)]
    assert torch.allclose(found @ v, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)


def inner_products(objective, factors, rows, step):
    """s · ∇L of each row where it is moved to, by autograd row by row."""
    theta = objective.params.clone().requires_grad_()
    values = objective.losses(theta, Rows(rows.x + step, rows.y))
    gradients = [torch.autograd.grad(value, theta, retain_graph=True)[0] for value in values]
    return factors @ torch.stack(gradients).T


def test_rows_of_one_number_without_an_axis_are_looked_at():
    def aside(network, x):
        return x[:, None].detach().expand(-1, FEATURES).tanh()

    with pytest.raises(ModelError, match=r"derivatives in the inputs .*torch\.no_grad"):
        asked(aside, NUMBERS[:, 0])


@pytest.mark.parametrize("count", [1, 3])  # of one factor plain autograd comes first
def test_without_a_mixed_derivative_the_cure_is_told(count):
    torch.manual_seed(0)
    corners = torch.eye(4, dtype=torch.float64)  # torch has one derivative of distances
    network = Network(lambda net, x: torch.cdist(net.body(x), corners, p=3.0))
    objective = Objective(network.double(), "cross_entropy")
    rows = Rows(NUMBERS.double(), torch.arange(ROWS) % 3)
    factors = torch.randn(count, objective.size, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"has no mixed second derivative: .*plain operations"):
        perturbation_influences(objective, factors, rows)
