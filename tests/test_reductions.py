"""Perturbation influences reduced block by block, against the whole in float64."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from influence_dag.influence.reductions import OverTests, StrongestPairs, lengths, over_features

BY = {
    "mean": lambda flat: flat.mean(2),
    "absmax": lambda flat: np.abs(flat).max(2),
    "l2": lambda flat: np.sqrt((flat**2).sum(2)),
}


@pytest.mark.parametrize("scale", [1, 1e-25, 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 2), (40, 30)], ids=str)
@pytest.mark.parametrize("by", BY)
def test_a_number_is_left_of_each_pair(by, shape, dtype, scale):
    values = torch.randn(4, 6, *shape, dtype=dtype) * scale
    values[0, 1] = 0
    flat = values.double().numpy().reshape(4, 6, -1)
    found = over_features(values, by)
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    np.testing.assert_allclose(found, BY[by](flat), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("by", ["absmax", "l2"])
@pytest.mark.parametrize("cut", [[7], [1, 4, 2], [3, 4]], ids=str)
def test_blocks_of_test_rows_give_what_all_give(by, cut):
    values = torch.randn(7, 5, 3, 2, dtype=torch.float64)
    over = OverTests(by)
    for block in values.split(cut):
        over.add(block)
    whole = values.abs().amax(0) if by == "absmax" else values.square().sum(0).sqrt()
    assert_close(over.result(), whole)


@pytest.mark.parametrize("top", [1, 3, 12])
@pytest.mark.parametrize("cut", [[9], [2, 4, 3], [1] * 9], ids=str)
def test_the_strongest_pairs_of_blocks_are_those_of_all_rows(cut, top):
    """Of two inputs by the norm over both; of equal ones the earlier row."""
    alike = torch.tensor([0, 1, 2, 0, 3, 1, 4, 0, 2])
    parts = [torch.randn(4, 5, *shape, dtype=torch.float64)[:, alike] for shape in ((2,), (3, 2))]
    slots = torch.arange(9) * 2 + 5
    norms = np.sqrt(sum(part.flatten(2).square().sum(2).numpy() for part in parts))
    assert_close(lengths(parts), torch.from_numpy(norms))
    strongest, start = StrongestPairs(top), 0
    for size in cut:
        rows = slice(start, start + size)
        strongest.add([part[:, rows] for part in parts], slots[rows])
        start += size
    order = np.argsort(-norms[:, [0, 1, 2, 4, 6]][:, alike], axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(strongest.slots, slots.numpy()[order])
    for part, kept in zip(parts, strongest.parts, strict=True):
        expected = np.stack([part.numpy()[j, order[j]] for j in range(4)])
        np.testing.assert_array_equal(kept, expected)
