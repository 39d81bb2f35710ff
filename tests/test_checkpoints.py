"""Checkpoints as training loops write them."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from influence_dag.errors import ModelError
from influence_dag.objective import modules


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(4, 3))


def state():
    return build(1).state_dict()


def prefixed(prefix):
    return {prefix + name: value for name, value in state().items()}


WAYS = {
    "state dict": state,
    "state_dict": lambda: {"epoch": 3, "state_dict": state()},
    "model_state_dict": lambda: {"model_state_dict": state(), "optimizer": {"lr": 0.1}},
    "model": lambda: {"model": state(), "step": torch.tensor(7)},
    "nested twice": lambda: {"model": {"state_dict": state(), "ema": 0.9}},
    "data parallel": lambda: prefixed("module."),
    "compiled": lambda: prefixed("_orig_mod."),
    "compiled, parallel": lambda: {"state_dict": prefixed("module._orig_mod.")},
    "a compiled layer": lambda: {
        name.replace("3.", "3._orig_mod."): value for name, value in state().items()
    },
    "half precision": lambda: {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in state().items()
    },
    "before batches were counted": lambda: {
        name: value for name, value in state().items() if "num_batches" not in name
    },
}


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_saved_state_is_found(tmp_path, way, ending):
    torch.save(way(), tmp_path / f"saved{ending}")
    module, expected = build().double(), build(1)
    modules.load_checkpoint(module, tmp_path / f"saved{ending}")
    tolerance = 1e-2 if way is WAYS["half precision"] else 0.0
    for name, value in module.named_parameters():
        assert value.dtype == torch.float64
        wanted = expected.get_parameter(name).double()
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=0.0)


def test_prefixes_that_the_module_has_itself_stay(tmp_path):
    module = nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save(module.state_dict(), tmp_path / "saved.pt")
    other = nn.ModuleDict({"module": nn.Linear(2, 2)})
    modules.load_checkpoint(other, tmp_path / "saved.pt")
    assert modules.save_checkpoint(other) == modules.save_checkpoint(module)


def tied():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    return module


def test_a_tied_weight_that_is_stored_twice_is_stored_alike(tmp_path):
    apart, module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), tied()
    torch.save(apart.state_dict(), tmp_path / "saved.pt")
    with pytest.raises(
        ModelError, match=r"0\.weight and 1\.weight are one tensor of the module, and"
    ):
        modules.load_checkpoint(module, tmp_path / "saved.pt")
    torch.save(tied().state_dict(), tmp_path / "saved.pt")
    modules.load_checkpoint(module, tmp_path / "saved.pt")


def test_views_of_one_tensor_may_have_its_numbers_in_another_order():
    module, square = nn.Linear(2, 2), torch.arange(4.0).reshape(2, 2)
    module.register_buffer("square", square)
    module.register_buffer("turned", square.mT)
    modules.load_state(module, modules.save_checkpoint(module), "its own state")
    assert module.turned.tolist() == [[0.0, 2.0], [1.0, 3.0]]


def test_a_tied_weight_is_stored_under_one_name(tmp_path):
    saved, module = tied(), tied()
    save_file(
        {name: value for name, value in saved.state_dict().items() if name != "1.weight"},
        tmp_path / "saved.safetensors",
    )
    modules.load_checkpoint(module, tmp_path / "saved.safetensors")
    assert torch.equal(module[1].weight, saved[0].weight)


REFUSED = {
    "a module": (
        lambda: build(1),
        r"it holds a torch\.nn\S+; only tensors and plain values .*model\.state_dict\(\)",
    ),
    "numbers": (lambda: {"epoch": 3}, r"holds a mapping with 'epoch'; wanted a state dict"),
    "a tensor": (lambda: torch.ones(3), r"holds a Tensor; wanted a state dict"),
    "nothing": (dict, r"holds a mapping with nothing; wanted"),
    "another shape": (
        lambda: {"model": state() | {"3.bias": torch.ones(4)}},
        r"does not fit Sequential: 3\.bias has shape \(4,\), the module's is \(3,\)",
    ),
    "many missing": (
        lambda: {"3.bias": torch.ones(3)},
        r"0\.weight is missing \(wanted \(2, 1, 3\)\).*; 2 more",
    ),
    "unexpected": (lambda: state() | {"head": torch.ones(2)}, r"head is unexpected \(2,\)"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_told(tmp_path, content, words):
    torch.save(content(), tmp_path / "saved.pt")
    module = build()
    before = modules.save_checkpoint(module)
    with pytest.raises(ModelError, match=rf"saved\.pt.*{words}"):
        modules.load_checkpoint(module, tmp_path / "saved.pt")
    assert modules.save_checkpoint(module) == before


@pytest.mark.parametrize("content", [None, b"not a checkpoint"], ids=["absent", "damaged"])
def test_a_file_that_torch_cannot_read_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "saved.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"saved\.pt: not a readable checkpoint"):
        modules.load_checkpoint(build(), tmp_path / "saved.pt")


class Masked(nn.Module):
    """Attention keeps what comes later out by -∞, in a buffer that is saved along."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


def test_a_mask_of_infinities_is_no_fault(tmp_path):
    """Networks that keep one could be neither fitted nor loaded."""
    stored = Masked().state_dict()
    torch.save(stored, tmp_path / "saved.pt")
    modules.load_checkpoint(module := Masked(), tmp_path / "saved.pt")
    modules.load_state(module, modules.save_checkpoint(module), "stored")
    torch.testing.assert_close(module.layer.weight, stored["layer.weight"])
    for place, number in (((0, 0), torch.inf), ((0, 1), torch.nan), ((0, 1), torch.inf)):
        wrong = stored["mask"].clone()
        wrong[place] = number
        torch.save({**stored, "mask": wrong}, tmp_path / "saved.pt")
        with pytest.raises(ModelError, match="mask is not finite"):
            modules.load_checkpoint(Masked(), tmp_path / "saved.pt")
