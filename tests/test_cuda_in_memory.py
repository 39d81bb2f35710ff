"""What is asked in memory of a model on a CUDA device is answered there, with the same numbers.

Skipped where there is none; `tests/simulated_cuda` runs this on one that is made of the processor.
"""

import copy

import pytest
import torch
from networks import CASES
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import influence_dag as idag
from influence_dag.errors import ModelError

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    # Cells of recurrent layers are not called row by row, whatever else is.
    pytest.mark.filterwarnings(
        *("ignore:.*without cuDNN", "ignore:There is a performance drop"),
        "error:.*batching rule for aten::_thnn",
    ),
]

DAMPING = 30.0  # above what is negative in the curvature of networks that were not trained
METHODS = {
    "direct": {},
    "cg": {"rtol": 1e-10},
    "lissa": {"rtol": 1e-8},
    "arnoldi": {"rank_estimate": 5, "tol": 1e-9},
    "nystroem": {"rank": 200},
    "ekfac": {},
    "kfac": {},
    "identity": {},
}


def batches(x, y, device="cpu"):
    return [(x[part].to(device), y[part].to(device)) for part in torch.arange(len(x)).split(4)]


def wrapped(name, device, loss="cross_entropy", **options):
    module, x, y = CASES[name].make()
    return idag.TorchTwiceDifferentiable(module, loss, device, **options), batches(x, y)


def influences(name, device, **asked):
    model, rows = wrapped(name, device)
    asked = {"inversion_method": "direct", "hessian_regularization": DAMPING} | asked
    return idag.compute_influences(model, rows, **asked)


def assert_there(found, expected, tolerance=1e-8):
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_influences_of_every_kind_of_network(name):
    assert_there(influences(name, "cuda"), influences(name, "cpu"))
    fisher = {"inversion_method": "ekfac"}
    assert_there(influences(name, "cuda", **fisher), influences(name, "cpu", **fisher))


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].tokens])
def test_perturbations_of_every_kind_of_network(name):
    asked = {"influence_type": "perturbation"}
    assert_there(influences(name, "cuda", **asked), influences(name, "cpu", **asked))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_of_packed_sequences(kind):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = kind(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            lengths = torch.full((len(x),), x.shape[1])
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.outer(nn.utils.rnn.pad_packed_sequence(self.inner(packed)[0])[0][-1])

    torch.manual_seed(0)
    module, x = Packed().double(), torch.randn(5, 4, 3).double()
    rows = batches(x, torch.arange(5) % 3)
    there, here = (
        idag.compute_influences(
            idag.TorchTwiceDifferentiable(copy.deepcopy(module), "cross_entropy", device),
            rows,
            hessian_regularization=DAMPING,
        )
        for device in ("cuda", "cpu")
    )
    assert_there(there, here)


@pytest.mark.filterwarnings("ignore:the curvature is not positive")
@pytest.mark.parametrize("method", METHODS)
def test_solves_by_every_method(method):
    found = []
    for device in ("cuda", "cpu"):
        model, rows = wrapped("mlp", device)
        b = torch.randn(3, model.num_params, generator=torch.Generator().manual_seed(0)).double()
        solved = idag.solve_hvp(
            method, model, rows, b, hessian_perturbation=DAMPING, **METHODS[method]
        )
        found.append(solved.x)
    assert_there(*found)


class OnTheHost(TorchDispatchMode):
    """Notes products and factorisations of matrices on the host; drawn rows cost nothing."""

    COSTLY = (
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "convolution",
        "linalg_eigh",
        "cholesky",
        "linalg_qr",
    )

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.split("::")[1].strip("_").startswith(self.COSTLY):
            here = [each for each in args if isinstance(each, torch.Tensor) and not each.is_cuda]
            shapes = [tuple(each.shape) for each in here if min(each.shape, default=0) > 1]
            self.seen += [f"{func} of {shape}" for shape in shapes]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["direct", "ekfac", "kfac", "identity"])
@pytest.mark.parametrize("name", ["mlp", "images", "transformer"])
def test_nothing_that_costs_is_computed_on_the_host(name, method):
    with OnTheHost() as host:
        torch.ones(2, 2) @ torch.ones(2, 2)
        assert len(host.seen) == 2, "the host's operands are seen"
        model, rows = wrapped(name, "cuda")
        for kind in ("up", "perturbation"):
            asked = {"inversion_method": method, "influence_type": kind}
            idag.compute_influences(model, rows, hessian_regularization=DAMPING, **asked)
    assert not host.seen[2:]


def test_rows_may_be_on_either_device():
    module, x, y = CASES["mlp"].make()
    model = idag.TorchTwiceDifferentiable(module, "cross_entropy", "cuda")
    asked = {"hessian_regularization": DAMPING}
    there, here = (
        idag.compute_influences(model, batches(x, y, device), **asked) for device in ("cuda", "cpu")
    )
    assert torch.equal(there, here)


class Weighted(nn.Module):
    """Has a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))

    def forward(self, output, target):
        return nn.functional.cross_entropy(output, target, reduction="none") * self.weights[target]


@pytest.mark.parametrize(
    "loss", [Weighted, lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double())]
)
def test_modules_that_are_losses_and_measurements_are_moved_as_the_model_is(loss):
    found = []
    for device in ("cuda", "cpu"):
        model, rows = wrapped("mlp", device, loss(), measurement=loss())
        found.append(idag.compute_influences(model, rows, hessian_regularization=DAMPING))
    assert_there(*found)


class LeftBehind(nn.Module):
    """A tensor that `to` knows nothing of."""

    def __init__(self):
        super().__init__()
        self.layer, self.mean = nn.Linear(5, 3).double(), torch.ones(5).double()

    def forward(self, x):
        return self.layer(x - self.mean)


def test_a_tensor_that_does_not_move_with_its_module_is_told_with_the_cure():
    rows = batches(*CASES["mlp"].make()[1:])
    here = idag.TorchTwiceDifferentiable(LeftBehind(), "cross_entropy")
    idag.compute_influences(here, rows, hessian_regularization=DAMPING)
    there = idag.TorchTwiceDifferentiable(LeftBehind(), "cross_entropy", "cuda")
    with pytest.raises(ModelError, match=r"same device.*register_buffer"):
        idag.compute_influences(there, rows, hessian_regularization=DAMPING)
