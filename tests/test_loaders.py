"""What a loader gives is compared with what it gives again, to its last row."""

import pytest
import torch

from influence_dag.errors import ModelError
from influence_dag.functional.loaders import read_rows

X = torch.arange(24.0).reshape(12, 2)
X[3] = torch.nan
Y = torch.arange(12) % 3


class Passes:
    """A loader whose passes are told: rows by number, in batches of five."""

    def __init__(self, *passes):
        self.passes = [torch.tensor(list(rows)) for rows in passes]

    def __iter__(self):
        rows = self.passes.pop(0) if len(self.passes) > 1 else self.passes[0]
        return iter([(X[part], Y[part]) for part in rows.split(5)])


ALL = range(12)
LAST_TWO_CHANGED = [*range(10), 11, 10]


@pytest.mark.parametrize("ordered", [True, False])
def test_the_same_rows_are_taken_even_where_they_are_not_numbers(ordered):
    rows = read_rows(Passes(ALL, ALL), what="training_data", ordered=ordered)
    assert torch.equal(rows.y, Y)


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ([*range(11), 0], r"12 rows, then 12; row 11 differs"),
        (range(11), r"12 rows, then 11; row 11 differs"),
        (range(10), r"12 rows, then 10; row 10 differs"),
        ([*ALL, 0], r"12 rows, then 13; row 12 differs"),
        ([*ALL, *ALL], r"12 rows, then 24; row 12 differs"),
    ],
    ids=["another last row", "one row less", "one batch less", "one row more", "twice as many"],
)
def test_other_rows_are_refused_wherever_they_are(again, said):
    with pytest.raises(ModelError, match=said):
        read_rows(Passes(ALL, again), what="training_data", ordered=False)


def test_an_order_of_its_own_is_refused_only_where_rows_are_labelled_by_it():
    with pytest.raises(ModelError, match=r"in another order .*\(from row 10 on\)"):
        read_rows(Passes(ALL, LAST_TWO_CHANGED), what="training_data", ordered=True)
    rows = read_rows(Passes(ALL, LAST_TWO_CHANGED), what="training_data", ordered=False)
    assert torch.equal(rows.y, Y)


def test_batches_without_rows_are_passed_over():
    batches = [(X[:0], Y[:0]), (X[:7], Y[:7]), (X[7:7], Y[7:7]), (X[7:], Y[7:])]
    assert torch.equal(read_rows(batches, what="training_data").y, Y)


def test_rows_that_are_not_there_again_are_missed_beside_a_batch_without_rows():
    class Fewer(Passes):
        def __iter__(self):
            return iter([*super().__iter__(), (X[:0], Y[:0])])

    with pytest.raises(ModelError, match="12 rows, then 11"):
        read_rows(Fewer(ALL, range(11)), what="training_data")


def test_rows_that_are_kept_with_their_sign_turned_are_read():
    """The imaginary part of a conjugate is such a view."""
    turned = torch.complex(X, X).conj().imag
    assert turned.is_neg()
    rows = read_rows([(turned, Y)], what="training_data")
    assert torch.equal(rows.x.nan_to_num(), -X.nan_to_num())


def test_complex_rows_that_are_kept_as_conjugates_are_read():
    conjugate = torch.complex(Y.double(), Y.double()).conj()
    rows = read_rows([(conjugate, Y)], what="training_data")
    assert torch.equal(rows.x.imag, -Y.double())


def test_batches_that_all_are_without_rows_are_an_empty_loader():
    with pytest.raises(ModelError, match="the data loader is empty"):
        read_rows([(X[:0], Y[:0])], what="test_data")


def test_what_holds_no_number_may_come_and_go():
    class Loader(Passes):
        def __iter__(self):
            empty = [torch.ones(12, 0)][len(self.passes) - 1 :]
            self.passes = self.passes[-1:]
            return iter([((X, *empty), Y)])

    assert torch.equal(read_rows(Loader(ALL, ALL), what="training_data").y, Y)
