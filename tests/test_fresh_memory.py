"""Memory of large results is like any other tensor's."""

import pytest
import torch

from influence_dag.gradients.memory import fresh


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 0, 5), (2, 3), (), (1024, 2100), (7, 300, 1024)], ids=str)
def test_it_has_the_shape_the_type_and_the_place_that_are_asked_for(dtype, shape):
    like = torch.empty(0, dtype=dtype)
    made = fresh(shape, like)
    assert (made.shape, made.dtype, made.device) == (torch.Size(shape), dtype, like.device)
    assert made.is_contiguous()
    assert not made.requires_grad
    assert made.data_ptr() % 64 == 0
    assert made.fill_(1.5).sum(dtype=torch.float64) == 1.5 * made.numel()


def test_no_two_share_it():
    like = torch.empty(0)
    one, other = (fresh((1024, 2048), like).fill_(value) for value in (1.0, 2.0))
    assert bool((one == 1.0).all())
    assert bool((other == 2.0).all())
