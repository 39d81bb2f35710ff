"""Memory of large results is like any other tensor's."""

import threading

import pytest
import torch

from influence_dag.gradients.memory import Recycled, fresh


@pytest.mark.parametrize("make", [fresh, Recycled().fresh])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 0, 5), (2, 3), (), (1024, 2100), (7, 300, 1024)], ids=str)
def test_it_has_the_shape_the_type_and_the_place_that_are_asked_for(dtype, shape, make):
    like = torch.empty(0, dtype=dtype)
    made = make(shape, like)
    assert (made.shape, made.dtype, made.device) == (torch.Size(shape), dtype, like.device)
    assert made.is_contiguous()
    assert not made.requires_grad
    assert made.data_ptr() % 64 == 0
    assert made.fill_(1.5).sum(dtype=torch.float64) == 1.5 * made.numel()


@pytest.mark.parametrize("make", [fresh, Recycled().fresh])
def test_no_two_share_it(make):
    like = torch.empty(0)
    one, other = (make((1024, 2048), like).fill_(value) for value in (1.0, 2.0))
    assert bool((one == 1.0).all())
    assert bool((other == 2.0).all())


def test_it_is_taken_again_when_nobody_has_any_of_it():
    memory, like = Recycled(), torch.empty(0)
    first = memory.fresh((1024, 2048), like)
    place, part = first.data_ptr(), first[3:5].numpy()
    part[:] = 7.0
    del first
    second = memory.fresh((1024, 2048), like).fill_(1.0)
    assert second.data_ptr() != place, "some of the first is held"
    assert (part == 7.0).all()
    del part
    assert memory.fresh((1000, 2048), like).data_ptr() == place
    assert memory.fresh((2048, 2048), like).fill_(2.0).sum() == 2.0 * 2**22, "more than it had"


def test_memory_that_another_thread_lets_go_of_comes_back():
    memory, like = Recycled(), torch.empty(0)
    held = [memory.fresh((1024, 2048), like)]
    place = held[0].data_ptr()
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert memory.fresh((1024, 2048), like).data_ptr() == place
