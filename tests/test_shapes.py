"""What annotations say of shapes is held while the tests run."""

from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from shapes import checked
from torch import Tensor

from influence_dag.influence.upweighting import influences

refused = pytest.raises(BeartypeCallHintViolation)


@checked(typechecker="by name")
def sums(rows: Float[Tensor, "n p"], times: int, made: object = None) -> Float[Tensor, " n"]:
    return rows.sum(1) * times if made is None else made


def test_arguments_and_results_are_of_the_same_names():
    rows = torch.ones(3, 2)
    assert torch.equal(sums(rows, times=0.5), torch.ones(3)), "other types are pyright's"
    assert sums(torch.ones(5, 2), 1).shape == (5,), "each call has its own names"
    with refused:
        sums(rows[0], 0)
    with refused:
        sums(rows, 0, torch.ones(2))
    with refused:
        sums(rows, 0, made=rows)


class Kinds:
    @checked
    def method(self, x: Float[Tensor, "n n"]) -> None: ...

    @checked
    @classmethod
    def of_class(cls, x: Float[Tensor, "n n"]) -> None: ...

    @checked
    @staticmethod
    def alone(x: tuple[Float[Tensor, " n"], Float[Tensor, " n"]] | None) -> None: ...

    @checked
    @property
    def read(self) -> Float[Tensor, "n n"]:
        return torch.ones(2, 3)


@checked
@dataclass(frozen=True)
class Value:
    x: Float[Tensor, "n n"]


def test_methods_properties_and_values_are_held_to_them_too():
    kinds, square, other = Kinds(), torch.ones(2, 2), torch.ones(2, 3)
    for call in (kinds.method, Kinds.of_class, Value):
        call(square)
        with refused:
            call(other)
    Kinds.alone(None)
    Kinds.alone((square[0], square[1]))
    with refused:
        Kinds.alone((square[0], other[0]))
    with refused:
        _ = kinds.read


def test_what_says_nothing_of_shapes_stays_as_it_is():
    def plain(x: Tensor, n: int) -> list[Tensor]:
        return [x] * n

    assert checked(plain) is plain
    assert checked(int) is int


def test_kernels_are_held_to_them():
    with refused:
        influences(torch.ones(3, 4), torch.ones(5, 6))
