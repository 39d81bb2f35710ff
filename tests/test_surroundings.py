"""Calls in memory: the same answers whatever torch's modes are around them; what they refuse."""

import copy
import importlib
import threading
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import influence_dag as idag
from influence_dag.errors import ModelError
from influence_dag.objective import twice_differentiable
from influence_dag.objective.objective import Objective, Rows
from influence_dag.objective.twice_differentiable import TwiceDifferentiable
from influence_dag.study.torch_modes import plain_modes

SEED = torch.Generator().manual_seed(0)
X, Y = torch.randn(9, 4, generator=SEED), torch.arange(9) % 3


@contextmanager
def rounding(precision):
    """As scripts for a GPU begin; on a processor that has them, products are of bfloat16 here."""
    torch.set_float32_matmul_precision(precision)
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        yield
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.mkldnn.conv.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.conv.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


MODES = {
    "medium": lambda: rounding("medium"),
    "high": lambda: rounding("high"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def wrapped(module=None, loss="cross_entropy"):
    torch.manual_seed(0)
    module = module or nn.Linear(4, 3)
    return idag.TorchTwiceDifferentiable(module, loss)


def answers():
    model, loader = wrapped(), [(X, Y)]
    factors = idag.compute_influence_factors(model, loader, hessian_regularization=0.5).x
    return (
        factors,
        idag.compute_influences(model, loader, hessian_regularization=0.5),
        idag.compute_influences(
            model, loader, influence_type="perturbation", hessian_regularization=0.5
        ),
        idag.solve_hvp("cg", model, loader, factors, hessian_perturbation=0.5).x,
        idag.compute_influences(
            wrapped(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))),
            loader,
            inversion_method="ekfac",
            hessian_regularization=0.5,
        ),
    )


@pytest.fixture(scope="module")
def wanted():
    return answers()


@pytest.mark.parametrize("mode", MODES)
def test_modes_around_a_call_change_nothing(wanted, mode):
    with MODES[mode]():
        found = answers()
        outside = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        assert outside == ("no" not in mode and "inf" not in mode, mode == "autocast")
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_an_interrupt_between_torchs_switches_leaves_them_as_they_were(monkeypatch):
    switches = {"first": False, "second": False}

    def turned(name, on):
        switches[name] = on
        if name == "second" and on:
            raise KeyboardInterrupt

    kernels = [(partial(switches.get, name), partial(turned, name), True) for name in switches]
    switched = twice_differentiable._OfTheProcess(*kernels)
    monkeypatch.setattr(twice_differentiable, "_PLAIN_ATTENTION", switched)
    with pytest.raises(KeyboardInterrupt):
        Objective(nn.Linear(4, 3), "cross_entropy").losses(torch.ones(15), Rows(X, Y))
    assert switches == {"first": False, "second": False}


def overlapping(context, seen) -> list:
    """What is `seen` by a thread that is inside while another one, inside before it, leaves."""
    inside, left, found = threading.Event(), threading.Event(), []

    def second():
        with context():
            inside.set()
            assert left.wait(60)
            found.append(seen())

    thread = threading.Thread(target=second)
    with context():
        thread.start()
        assert inside.wait(60)
    left.set()
    thread.join(60)
    return found


def test_switches_of_the_process_stay_until_the_last_thread_has_left():
    encoder = nn.TransformerEncoderLayer(4, 2, 6)
    flags = {
        "fast path": torch.backends.mha.get_fastpath_enabled,
        "flash": torch.backends.cuda.flash_sdp_enabled,
    }
    for seen in flags.values():
        assert seen()
        assert overlapping(lambda: TwiceDifferentiable.of(encoder), seen) == [False]
        assert seen()


@pytest.mark.parametrize(("flag", "before"), [("enabled", True), ("allow_tf32", False)])
def test_recurrent_layers_leave_cudnn_as_it_was_in_all_threads(monkeypatch, flag, before):
    monkeypatch.setattr(torch.backends.cudnn, flag, before)
    recurrent = nn.LSTM(2, 2)
    found = overlapping(
        lambda: TwiceDifferentiable.of(recurrent), lambda: getattr(torch.backends.cudnn, flag)
    )
    assert found == [False]
    assert getattr(torch.backends.cudnn, flag) is before


@pytest.mark.parametrize(
    ("said", "inside"),
    [
        ({"use_cache": True}, {"use_cache": False}),
        ({"_attn_implementation": "flex_attention"}, {"_attn_implementation": "eager"}),
        ({"use_cache": True, "_attn_implementation": "sdpa"}, {"use_cache": False}),
    ],
)
def test_a_config_keeps_its_words_until_the_last_thread_has_left(said, inside):
    module = nn.Linear(1, 1)
    module.config = SimpleNamespace(**said)
    before = vars(module.config).copy()
    found = overlapping(lambda: TwiceDifferentiable.of(module), lambda: vars(module.config).copy())
    assert found == [said | inside]
    assert vars(module.config) == before


def _seen() -> tuple[str, str]:
    return torch.get_float32_matmul_precision(), torch._dynamo.eval_frame._stance.stance


def test_digits_of_the_process_are_kept_until_the_last_thread_has_left():
    importlib.import_module("torch._dynamo")
    torch.set_float32_matmul_precision("medium")
    try:
        assert overlapping(plain_modes, _seen) == [("highest", "force_eager")]
        assert _seen() == ("medium", "default")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_denormal_numbers_are_zero_within_a_call():
    seen = []

    def loss(output, target):
        seen.append(float(torch.tensor(torch.finfo(torch.float32).tiny) / 2))
        return nn.functional.cross_entropy(output, target, reduction="none")

    model = idag.TorchTwiceDifferentiable(nn.Linear(4, 3), loss)
    idag.compute_influences(model, [(X, Y)], hessian_regularization=0.5)
    assert seen
    assert not any(seen)
    assert torch.tensor(torch.finfo(torch.float32).tiny) / 2 > 0


def test_a_check_works_where_no_gradients_are_kept():
    objective = idag.Objective(wrapped().model, "cross_entropy")
    with torch.no_grad():
        objective.check(idag.Rows(X, Y))
        with pytest.raises(ModelError, match="row 1 has label 7"):
            objective.check(idag.Rows(X, torch.tensor([0, 7, *Y[2:]])))


def complex_numbers():
    module = nn.Linear(4, 3)
    module.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.complex64))
    return module


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.LazyLinear(3), "the size of weight is not known before the first batch"),
        (nn.Linear(4, 3, device="meta"), "weight is on the meta device"),
        (complex_numbers(), "weight is torch.complex64"),
    ],
)
def test_parameters_that_are_no_numbers_are_refused(module, told):
    with pytest.raises(ModelError, match=told):
        wrapped(module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("which", ["all", "one of two"])
def test_parameters_of_half_the_bits_are_refused_alike(dtype, which):
    """In float16 influences were 3e-3 off, in bfloat16 they were refused for an asymmetry."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    (module if which == "all" else module[1]).to(dtype)
    with pytest.raises(ModelError, match=rf"weight is {dtype}, .*module.float\(\)"):
        idag.compute_influences(wrapped(module), [(X, Y)], hessian_regularization=0.5)


def test_a_frozen_part_of_half_the_bits_makes_features():
    body, head = nn.Linear(4, 4).bfloat16().requires_grad_(False), nn.Linear(4, 3)

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = body, head

        def forward(self, x):
            return self.head(self.body(x.bfloat16()).float())

    seen = body(X.bfloat16()).float()
    found, expected = (
        idag.compute_influences(wrapped(module), [(x, Y)], hessian_regularization=0.5)
        for module, x in ((Features(), X), (head, seen))
    )
    torch.testing.assert_close(found, expected)


class Pair(nn.Module):
    """Two layers; what lies where is the test's."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_two_tensors_in_one_memory_are_refused_where_a_training_moves_both():
    """Without `.data` they are one parameter, whose derivative sees both of its places."""
    module = Pair()
    module.second.weight.data = module.first.weight.data[1:]
    with pytest.raises(ModelError, match=r"first.weight and second.weight .* in the same memory"):
        wrapped(module)
    module.first.requires_grad_(False)
    with pytest.raises(ModelError, match="a step of a training moves both"):
        wrapped(module)
    wrapped(module.requires_grad_(False).double().requires_grad_())  # which parts them
    module = Pair()
    module.register_buffer("kept", module.second.weight.detach().T)
    with pytest.raises(ModelError, match=r"in the same memory: .* of its own \(clone\(\)\)"):
        wrapped(module)
    module.second.weight.requires_grad_(False)  # and then no training moves it
    wrapped(module)


def test_parts_of_one_memory_that_do_not_meet_are_parameters_like_others():
    module, table = Pair(), torch.randn(7, 4)
    module.first.weight.data, module.second.weight.data = table[:4], table[4:]
    right = idag.compute_influences(
        wrapped(copy.deepcopy(module)), [(X, Y)], hessian_regularization=9.0
    )
    columns = torch.randn(7, 9)
    columns[:4, :4], columns[:3, 4:8] = table[:4], table[4:]
    module.first.weight.data, module.second.weight.data = columns[:4, :4], columns[:3, 4:8]
    found = idag.compute_influences(wrapped(module), [(X, Y)], hessian_regularization=9.0)
    assert torch.allclose(found, right, rtol=1e-4, atol=1e-6)


def test_arguments_of_another_kind_are_told():
    model, loader = wrapped(), [(X, Y)]
    with pytest.raises(TypeError, match="damping is a list; one number or 'auto' is wanted"):
        idag.compute_influences(model, loader, hessian_regularization=[0.1, 0.5])  # type: ignore
    with pytest.raises(TypeError, match=r"b is a list; a tensor \(k, 15\) is wanted"):
        idag.solve_hvp("direct", model, loader, [1.0] * 15)  # type: ignore[arg-type]
    b = torch.ones(2, 15)
    with pytest.raises(ValueError, match=r"first guess has shape \(3, 15\)"):
        idag.solve_hvp("cg", model, loader, b, hessian_perturbation=0.5, x0=torch.ones(3, 15))


def test_what_copies_a_module_to_several_devices_is_looked_through(wanted):
    module = wrapped().model
    found = idag.compute_influences(
        wrapped(nn.DataParallel(module)), [(X, Y)], hessian_regularization=0.5
    )
    assert torch.equal(found, wanted[1])


def test_a_compiled_module_is_refused():
    with pytest.raises(ModelError, match=r"compiled by torch\.jit"):
        wrapped(nn.Sequential(torch.jit.trace(nn.Linear(4, 3), X)))


def test_pixels_as_whole_numbers_are_told_apart_from_tokens():
    pixels = (255 * X.abs()).to(torch.uint8)
    with pytest.raises(ModelError, match="Whole numbers come to it as they are, as tokens do"):
        idag.compute_influences(wrapped(), [(pixels, Y)], hessian_regularization=0.5)


class Weighing(nn.Module):
    """A loss with a scale that is trained beside the network's parameters."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, output, target):
        return self.log_scale.exp() * nn.functional.cross_entropy(output, target) - self.log_scale


def convolving():
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(6, 3))


def recurrent():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.GRU(1, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x):
            return self.out(self.cell(x[..., None])[0][:, -1])

    return Last()


def layered():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize("make", [layered, convolving, recurrent])
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("up", "direct"), ("up", "cg"), ("up", "lissa"), ("up", "arnoldi"), ("up", "nystroem"),
        ("up", "ekfac"), ("perturbation", "direct"),
    ],
)  # fmt: skip
def test_trainable_tensors_of_a_loss_are_constants(make, kind, method):
    """The weight of a task, a teacher that is not frozen: as if they were."""
    torch.manual_seed(0)
    module, loss = make(), Weighing()
    given = {"influence_type": kind, "inversion_method": method, "hessian_regularization": 2.0}
    given |= {"fisher": "empirical"} if method == "ekfac" else {}
    found = idag.compute_influences(wrapped(module, loss), [(X, Y)], **given)
    assert not found.requires_grad
    loss.requires_grad_(False)
    expected = idag.compute_influences(wrapped(module, loss), [(X, Y)], **given)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["up", "perturbation"])
def test_rows_that_a_gradient_is_kept_of_give_numbers_without(kind):
    model = wrapped(nn.Linear(4, 3))
    given = {"influence_type": kind, "hessian_regularization": 0.5}
    found = idag.compute_influences(model, [(X.clone().requires_grad_(), Y)], **given)
    assert not found.requires_grad
    torch.testing.assert_close(found, idag.compute_influences(model, [(X, Y)], **given))


def test_gaps_of_masked_arrays_are_refused():
    given = np.ma.masked_greater(X.numpy(), 0.5)
    with pytest.raises(ModelError, match=r"masked .* fill them"):
        idag.compute_influences(wrapped(), [(given, Y)], hessian_regularization=0.5)
    whole = np.ma.masked_greater(X.numpy(), 1e9)
    idag.compute_influences(wrapped(), [(whole, Y)], hessian_regularization=0.5)


def test_what_is_compiled_runs_as_it_is_written():
    """Under derivatives torch's compiler failed on a module that is handed a function."""

    class Calling(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    plain = nn.Sequential(nn.Linear(4, 4), Calling(torch.tanh), nn.Linear(4, 3))
    compiled = torch.compile(plain, backend="eager")
    compiled(X)
    for kind in ("up", "perturbation"):
        found, expected = (
            idag.compute_influences(
                wrapped(module), [(X, Y)], influence_type=kind, hessian_regularization=2.0
            )
            for module in (compiled, plain)
        )
        torch.testing.assert_close(found, expected)
    assert torch._dynamo.eval_frame._stance.stance == "default"
