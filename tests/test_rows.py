"""Batches as loaders give them, and the weights of rows."""

import collections

import numpy as np
import pytest
import torch

import influence_dag as idag
from influence_dag.errors import ModelError
from influence_dag.functional.loaders import read_rows
from influence_dag.objective.objective import Rows

x, y = torch.randn(6, 3), torch.arange(6) % 2


def gathered(*batches):
    return Rows.from_loader(list(batches))


FORMS = {
    "numpy": (x.numpy(), y.numpy()),
    "another byte order": (x.numpy().astype(">f4"), y.numpy().astype(">i8")),
    "lists": (x.tolist(), y.tolist()),
    "numpy numbers": (x, [np.int64(k) for k in y.tolist()]),
    "a list of two": [x, y],
}


@pytest.mark.parametrize("name", ["numpy", "another byte order", "numpy numbers", "a list of two"])
def test_arrays_and_lists_of_numbers_become_tensors(name):
    rows = gathered(FORMS[name])
    assert torch.equal(rows.x, x)
    assert torch.equal(rows.y, y)


@pytest.mark.parametrize("key", ["labels", "label", "target", "y"])
def test_a_mapping_is_its_labels_and_what_goes_to_the_model_by_name(key):
    batch = collections.UserDict(tokens=x, mask=x > 0, **{key: y})
    rows = gathered(batch, batch)
    assert list(rows.x) == ["tokens", "mask"]
    assert torch.equal(rows.y, torch.cat([y, y]))
    assert rows.weights is None


def test_a_third_part_and_a_name_are_the_weights_of_rows():
    w = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0, 1.0])
    for rows in (gathered((x, y, w)), gathered({"x": x, "y": y, "weights": w[:, None]})):
        assert torch.equal(rows.weights, w)
        assert rows.weight_sum == 7.5
        assert torch.allclose(rows.shares, w.double() / 7.5)
        assert torch.equal(rows[2:4].weights, w[2:4])


def test_a_batch_may_weigh_nothing_if_another_does():
    rows = gathered((x, y, torch.zeros(6)), (x, y, torch.ones(6)))
    assert rows.weight_sum == 6


REFUSED = {
    "one tensor": (x, r"float32 \(6, 3\).*wanted \(x, y\)"),
    "four parts": ((x, y, y, y), "tuple of"),
    "a mapping without labels": ({"tokens": x, "mask": x}, "with 'labels'"),
    "text": (({"tokens": x, "text": ["a"] * 6}, y), r"holds a str.*drop it"),
    "positions for weights": ((x, y, torch.arange(6)), r"weights of rows are int64.*positions"),
    "negative weights": ((x, y, -torch.ones(6)), "row 0 has weight -1.0"),
    "weights of nan": ((x, y, torch.full((6,), torch.nan)), "row 0 has weight nan"),
    "no weight at all": ((x, y, torch.zeros(6)), "all rows are zero"),
    "weights of another shape": ((x, y, torch.ones(6, 2)), "one number a row"),
    "other lengths": ((x, y[:3]), r"\[3, 6\]"),
    "no axis": ((x, torch.tensor(1)), "without axes"),
    "a string for the loader's batch": ("abc", "batch of the data loader is a str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_batches_are_refused_with_what_was_seen(case):
    batch, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        gathered(batch)


def test_batches_of_other_lengths_of_rows_ask_for_padding():
    with pytest.raises(ModelError, match=r"differ from batch to batch.*pad"):
        gathered((torch.ones(2, 3), y[:2]), (torch.ones(2, 4), y[:2]))


def test_weights_in_some_batches_only_are_refused():
    with pytest.raises(ModelError, match="some batches"):
        gathered((x, y, torch.ones(6)), (x, y))


# Reading twice --------------------------------------------------------------------------------


class Drawing(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, k):
        return x[k] + 0.1 * torch.randn(3), y[k]


def loader(data=None, **settings):
    data = torch.utils.data.TensorDataset(x, y) if data is None else data
    return torch.utils.data.DataLoader(data, batch_size=4, **settings)


def test_a_loader_that_repeats_is_read_as_it_is_and_random_numbers_stay():
    state = torch.random.get_rng_state()
    rows = read_rows(loader(), what="the data")
    assert torch.equal(rows.x, x)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("weights", [(), (torch.rand(6) + 0.1,), (torch.rand(6, 1) + 0.1,)])
def test_tensors_at_hand_are_the_rows_that_their_loader_draws(weights, drop_last):
    told = loader(torch.utils.data.TensorDataset(x, y, *weights), drop_last=drop_last)
    taken, drawn = read_rows(told, what="the data"), Rows.from_loader(told)
    assert len(taken) == (4 if drop_last else 6)
    for one, other in ((taken.x, drawn.x), (taken.y, drawn.y), (taken.weights, drawn.weights)):
        assert one is other is None or torch.equal(one, other)
    assert taken.x.data_ptr() != x.data_ptr()  # what is done to the rows is not done to the data


class Noisy(torch.utils.data.TensorDataset):
    def __getitem__(self, index):
        drawn, label = super().__getitem__(index)
        return drawn + torch.randn(3), label


def noisy(rows):
    drawn, labels = torch.utils.data.default_collate(rows)
    return drawn + torch.randn(3), labels


@pytest.mark.parametrize(
    ("drawing", "collate"), [(Noisy(x, y), None), (None, noisy)], ids=["rows", "collate"]
)
def test_what_draws_around_tensors_at_hand_is_refused_all_the_same(drawing, collate):
    with pytest.raises(ModelError, match="gives other rows"):
        read_rows(loader(drawing, collate_fn=collate), what="the data")


def test_a_data_set_that_draws_is_refused():
    with pytest.raises(ModelError, match=r"training_data gives other rows.*row 0 differs.*draws"):
        read_rows(loader(Drawing()), what="training_data", ordered=False)


def test_a_loader_that_shuffles_serves_only_where_order_says_nothing():
    shuffled = loader(shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ModelError, match=r"another order.*shuffle=False"):
        read_rows(shuffled, what="training_data")
    rows = read_rows(shuffled, what="training_data", ordered=False)
    assert torch.equal(rows.x.sort(0).values, x.sort(0).values)


def test_an_iterator_is_read_once():
    rows = read_rows(iter([(x, y)]), what="the data")
    assert len(rows) == 6


def test_influences_of_a_shuffled_loader_are_refused_and_its_hessian_is_not():
    module = torch.nn.Linear(3, 2)
    wrapped = idag.TorchTwiceDifferentiable(module, "cross_entropy")
    with pytest.raises(ModelError, match=r"training_data.*shuffle=False"):
        idag.compute_influences(wrapped, loader(shuffle=True), hessian_regularization=0.1)
    options = {"hessian_perturbation": 0.1}
    b = torch.randn(2, 8)
    expected = idag.solve_hvp("direct", wrapped, loader(), b, **options).x
    found = idag.solve_hvp("direct", wrapped, loader(shuffle=True), b, **options).x
    torch.testing.assert_close(found, expected)
