"""The simulated device itself: it refuses what CUDA refuses, and aliases as CUDA does."""

import copy
import io

import pytest
import torch
from simulated_cuda import device
from torch import nn

SAME = "on the same device"


@pytest.fixture
def there():
    return torch.arange(12.0, device="cuda").reshape(3, 4)


def test_tensors_say_where_they_are(there):
    assert (there @ there.T).device == torch.device("cuda", 0)
    assert there.is_cuda
    assert there.cpu().device.type == "cpu"
    assert torch.empty_like(there).is_cuda
    with pytest.raises(TypeError, match="cuda:0 device type tensor to numpy"):
        there.numpy()


def test_devices_are_not_mixed(there):
    here = torch.ones(3, 4)
    for mixed in (
        lambda: there + here,
        lambda: there @ here.T,
        lambda: torch.cat([there, here]),
        lambda: torch.where(there > 0, there, here),
        lambda: there.index_select(0, torch.tensor([0])),
        lambda: nn.functional.linear(there, here),
        lambda: there.add_(here),
        lambda: torch.mm(there, there.T, out=torch.empty(3, 3)),
        lambda: here[there > 0],
    ):
        with pytest.raises(RuntimeError, match=SAME):
            mixed()


def test_there_are_no_products_of_whole_numbers(there):
    whole = there.long()
    for product in (lambda: whole @ whole.T, lambda: whole[0].dot(whole[0])):
        with pytest.raises(RuntimeError, match="_cuda\" not implemented for 'Long'"):
            product()


def test_what_cuda_lets_mix_may_be_mixed(there):
    assert (there + torch.tensor(1.0)).is_cuda
    assert there[torch.tensor([0, 2])].is_cuda
    assert torch.where(there > 5, there, torch.tensor(0.0)).is_cuda
    there[0] = torch.tensor(7.0)
    assert there.cpu()[0].eq(7).all()


def test_views_and_work_in_place_share_memory(there):
    column, before = there[:, 1], there.data_ptr()
    there.mul_(2).t()[1].add_(1)
    assert column.tolist() == [3.0, 11.0, 19.0]
    assert there.data_ptr() == before
    out = torch.empty(0, device="cuda")
    torch.mm(there, there.T, out=out)
    assert torch.equal(out, there @ there.T)
    assert torch.zeros(2, device="cuda").resize_(5).shape == (5,)


def test_draws_are_other_numbers_and_the_same_again():
    first = torch.randn(3, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    again = torch.randn(3, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    assert torch.equal(first, again)
    assert not torch.equal(first.cpu(), torch.randn(3, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())


def test_copies_are_counted(there):
    before = device.counts()
    there.cpu()
    torch.ones(3).to("cuda")
    there.sum().item()
    after = device.counts()
    for what in ("device to host", "host to device", "aten::_local_scalar_dense"):
        assert after[what] == before.get(what, 0) + 1


def test_what_is_saved_there_comes_back_there(there):
    file = io.BytesIO()
    torch.save({"there": there}, file)
    for wanted, kind in ((None, "cuda"), ("cpu", "cpu")):
        file.seek(0)
        found = torch.load(file, map_location=wanted)["there"]
        assert found.device.type == kind
        assert torch.equal(found.cpu(), there.cpu())
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to("cuda")
    assert all(each.is_cuda for each in copy.deepcopy(module).state_dict().values())
    assert torch.ones(2).pin_memory().is_pinned()
    assert not torch.ones(2).is_pinned()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_and_their_derivatives_are_those_of_the_processor(kind):
    here = kind(3, 4, num_layers=2).double()
    there, x = copy.deepcopy(here).to("cuda"), torch.randn(5, 2, 3).double()
    for module, rows in ((here, x), (there, x.to("cuda"))):
        module(rows)[0].square().sum().backward()
    for mine, theirs in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.cpu(), theirs.grad)
