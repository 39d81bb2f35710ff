"""Opened results under xarray's own operations, text labels among them."""

import pickle

import numpy as np
import pytest
import xarray as xr

from influence_dag.query.result_arrays import ResultArray, of_results


@pytest.fixture
def dataset():
    values = np.arange(12.0).reshape(2, 6)
    return of_results(
        xr.Dataset(
            {"influences": (("test", "train"), values)},
            {
                "test": ["a", "b"],
                "train": [f"r{k}" for k in range(6)],
                "train_label": ("train", list("xyzxyz")),
                "self_influence": ("train", np.arange(6.0)),
            },
        )
    )


def test_coarsened_rows_are_named_by_the_first_of_their_block(dataset):
    found = dataset.influences.coarsen(train=2).mean()
    assert found.values.tolist() == [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]]
    assert found.train.values.tolist() == ["r0", "r2", "r4"]
    assert found.train_label.values.tolist() == ["x", "z", "y"]
    assert found.self_influence.values.tolist() == [0.5, 2.5, 4.5]
    xr.testing.assert_equal(dataset.coarsen(train=2).mean().influences, found)


def test_two_axes_and_functions_of_ones_own(dataset):
    found = dataset.influences.coarsen(train=3, test=2, coord_func={"train": "max"}).sum()
    assert found.values.tolist() == [[24.0, 42.0]]
    assert found.train.values.tolist() == ["r2", "r5"]
    assert found.test.values.tolist() == ["a"]
    by_largest = dataset.influences.coarsen(train=3, coord_func="max").sum()
    assert by_largest.self_influence.values.tolist() == [2.0, 5.0]
    assert by_largest.train.values.tolist() == ["r0", "r3"]


def test_what_is_made_of_results_are_results(dataset):
    array = dataset["influences"]
    made = [
        array.isel(train=slice(3)),
        array + 1,
        array.compute(),
        pickle.loads(pickle.dumps(array)),
    ]
    assert [type(each) for each in made] == [ResultArray] * 4
    assert isinstance(array.to_dataset(), xr.Dataset)
    assert array.idxmax("train").values.tolist() == ["r5", "r5"]
